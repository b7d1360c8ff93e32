"""Chat rooms: each room lives on one pod, whoever speaks, and survives that pod's death.

python examples/chat_rooms.py
"""

import random

import ray

import ray_route


class Room:
    """One room: what was said, in memory. After a death of its pod it is made anew, and empty."""

    def __init__(self, room: str) -> None:
        self.room = room
        self.said: list[str] = []

    def say(self, who: str, text: str) -> list[str]:
        """Add a line, and return the last three."""
        self.said.append(f"{who}: {text}")
        return self.said[-3:]


@ray.remote(num_cpus=0)
def speak(who: str, seed: int, texts: int) -> int:
    """One participant, anywhere in the cluster: finds each room's pod by itself."""
    at_random = random.Random(seed)  # noqa: S311 - a conversation, no secret
    with ray_route.connect("chat-example") as chat:
        for number in range(texts):
            room = f"room-{at_random.randrange(20)}"
            chat.call(room, "rooms", "say", who, f"text {number}", idempotent=True)
    return texts


def main() -> None:
    """Let four people talk in twenty rooms; kill a pod half-way, and add two."""
    with (
        ray_route.connect("chat-example") as chat,
        ray_route.deploy(
            Room, namespace="chat-example", service="rooms", replicas=3, per_uid=True
        ) as pods,
    ):
        people = [speak.remote(who, seed, 50) for seed, who in enumerate(("ann", "bo", "cy", "di"))]
        said = ray.get(people[0])
        ray.kill(chat.actor("room-0", "rooms"), no_restart=False)
        pods.scale(5)
        said += sum(ray.get(people[1:]))
        last = chat.call("room-0", "rooms", "say", "eve", "bye", idempotent=True)
        print(f"{said} texts were said; the last in room-0: {last[-1]!r}")
        rooms = [f"room-{number}" for number in range(20)]
        print({pod: len(uids) for pod, uids in chat.batch_get_linked_pod(rooms, "rooms").items()})


if __name__ == "__main__":
    main()
