"""Ray Serve: each session's requests reach the replica that remembers it, also when one is added.

python examples/sessions_on_serve.py
"""

from collections import Counter

import ray
from ray import serve
from ray.serve.config import ProxyLocation, RequestRouterConfig

import ray_route

STICKY = RequestRouterConfig(
    request_router_class="ray_route.serve.StickyRequestRouter",
    request_router_kwargs={"namespace": "sessions-example", "service": "chats"},
)


@serve.deployment(num_replicas=3, ray_actor_options={"num_cpus": 0}, request_router_config=STICKY)
class Chats:
    """One replica's chats, in memory."""

    def __init__(self) -> None:
        self.heard: Counter[str] = Counter()

    def say(self, who: str) -> tuple[str, int]:
        """Return which replica this is, and how often it has heard of whom."""
        self.heard[who] += 1
        return serve.get_replica_context().replica_id.unique_id, self.heard[who]


def main() -> None:
    """Let sixty people say three things each."""
    ray.init(ignore_reinit_error=True)
    serve.start(proxy_location=ProxyLocation.Disabled)  # by handles; HTTP needs x-session-id
    handle = serve.run(Chats.bind(), name="sessions-example", route_prefix=None)
    people = [f"person {number}" for number in range(60)]
    homes: dict[str, set[str]] = {who: set() for who in people}
    heard = 0
    for _ in range(3):
        said = {who: handle.options(session_id=who).say.remote(who) for who in people}
        for who, answer in said.items():
            home, heard = answer.result(timeout_s=60)
            homes[who].add(home)
    wanderers = sum(len(seen) > 1 for seen in homes.values())
    per_replica = Counter(home for seen in homes.values() for home in seen)
    print(
        f"heard {heard} times each, {wanderers} wandered, {sorted(per_replica.values())} a replica"
    )
    with ray_route.connect("sessions-example") as sessions:
        print(sessions.explain("person 7", "chats"))
    serve.shutdown()


if __name__ == "__main__":
    main()
