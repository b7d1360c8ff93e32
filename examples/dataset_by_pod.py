"""Group a Ray Data set by pod: one call per pod and block, instead of one per row.

pip install 'ray[data]'
python examples/dataset_by_pod.py
"""

from collections import Counter
from typing import Any

import ray

import ray_route

SERVICE = {"namespace": "data-example", "service": "profiles"}


class Profiles:
    """One pod's profiles: how much each user has spent."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()

    def buy(self, user: str, amount: int) -> int:
        """Add to a user's profile; return what they have spent."""
        self.spent[user] += amount
        return self.spent[user]


class Apply:
    """Takes blocks of rows to the pods of their users; `call_many` makes one call per pod."""

    def __init__(self, namespace: str) -> None:
        self.client = ray_route.connect(namespace)

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        """Return the block with each user's total after the purchase."""
        users = [str(user) for user in block["user"]]
        calls = [(u, (u, int(n))) for u, n in zip(users, block["amount"], strict=True)]
        links = self.client.compute_linked_pods(set(users), "profiles")
        return {
            **block,
            "pod": [links[user].pod for user in users],
            "spent": self.client.call_many(calls, "profiles", "buy"),
        }


def main() -> None:
    """Apply 2,000 purchases of 100 users, then add up by pod."""
    rows = [{"user": f"user-{n * 7 % 100}", "amount": n % 10} for n in range(2_000)]
    with ray_route.connect("data-example"), ray_route.deploy(Profiles, **SERVICE, replicas=3):
        bought = ray.data.from_items(rows, override_num_blocks=4).map_batches(
            Apply,
            fn_constructor_args=("data-example",),
            batch_size=250,
            concurrency=2,
            num_cpus=0.5,
        )
        table = bought.take_all()
    pods: dict[str, set[int]] = {}
    for row in table:
        pods.setdefault(row["user"], set()).add(row["pod"])
    spent = sum(max(r["spent"] for r in table if r["user"] == user) for user in pods)
    print(f"{len(table)} purchases on {len({row['pod'] for row in table})} pods")
    print(f"{spent} spent, {max(map(len, pods.values()))} pod per user")


if __name__ == "__main__":
    main()
