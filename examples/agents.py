"""Agents of users, one object for each, whose memory moves with them when their pod is drained.

There is no hook to write: the state of an object goes along with its user. For what is to outlive
a crash, too, give `deploy` a `store` (see docs/per_uid.md).

    python examples/agents.py
"""

import ray_route


class Agent:
    """What one user's agent was told, in memory."""

    def __init__(self, user: str) -> None:
        self.user = user
        self.memory: list[str] = []

    def tell(self, text: str) -> int:
        """Remember a text; return how many the agent knows."""
        self.memory.append(text)
        return len(self.memory)


def main() -> None:
    """Tell 30 agents five texts each, drain a pod in between, and see that none forgot any."""
    users = [f"user-{number}" for number in range(30)]
    with (
        ray_route.connect("agents-example") as client,
        ray_route.deploy(
            Agent, namespace="agents-example", service="agents", replicas=3, per_uid=True
        ) as pods,
    ):
        agents = client.service("agents", Agent)
        for number in range(3):
            agents.map("tell", dict.fromkeys(users, (f"text {number}",)))
        for progress in pods.drain(0):
            last = progress
        for number in range(3, 5):
            counts = agents.map("tell", dict.fromkeys(users, (f"text {number}",))).values()
        print(f"{last.moved} agents moved; they know {min(counts)} to {max(counts)} texts each")


if __name__ == "__main__":
    main()
