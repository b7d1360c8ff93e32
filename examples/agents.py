"""Agents of users, whose memory moves with them when their pod is drained.

`on_release` writes an agent's state to a folder that all machines share (yours may be a database
or a bucket), `on_acquire` reads it. A write carries the epoch, and an older one is refused: a pod
that was fenced in mid-call can't overwrite its successor's.

    python examples/agents.py
"""

import json
import tempfile
from pathlib import Path

import ray_route


class Shelf:
    """A store of states, each with the epoch under which it was written."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def read(self, user: str) -> tuple[int, list[str]]:
        """Return epoch and state; an unknown user has none of either."""
        place = self._folder / f"{user}.json"
        if not place.exists():
            return 0, []
        epoch, state = json.loads(place.read_text())
        return epoch, state

    def write(self, user: str, epoch: int, state: list[str]) -> bool:
        """Write unless a later owner has written; say whether it was written."""
        if epoch < self.read(user)[0]:
            return False
        draft = self._folder / f"{user}.{epoch}.draft"
        draft.write_text(json.dumps([epoch, state]))
        draft.replace(self._folder / f"{user}.json")
        return True


class Agents:
    """One pod's agents: what each was told, in memory."""

    def __init__(self, folder: str) -> None:
        self.shelf = Shelf(folder)
        self.memory: dict[str, list[str]] = {}
        self.epochs: dict[str, int] = {}

    def on_acquire(self, user: str) -> None:
        """Fetch what the agent knows."""
        self.epochs[user], self.memory[user] = self.shelf.read(user)

    def on_release(self, user: str) -> None:
        """Hand it over: no call for this user runs here any more."""
        self.shelf.write(user, self.epochs.pop(user), self.memory.pop(user))

    def tell(self, user: str, text: str) -> int:
        """Remember a text; return how many the agent knows."""
        link = ray_route.current_link()
        assert link is not None
        self.epochs[user] = link.epoch
        self.memory[user].append(text)
        return len(self.memory[user])


def main() -> None:
    """Tell 30 agents five texts each, drain a pod in between, and see that none forgot any."""
    users = [f"user-{number}" for number in range(30)]
    with (
        tempfile.TemporaryDirectory() as folder,
        ray_route.connect("agents-example") as client,
        ray_route.deploy(
            Agents, namespace="agents-example", service="agents", replicas=3, args=(folder,)
        ) as pods,
    ):
        for number in range(3):
            client.call_many([(u, (u, f"text {number}")) for u in users], "agents", "tell")
        for progress in pods.drain(0):
            last = progress
        counts: list[int] = []
        for number in range(3, 5):
            calls = [(u, (u, f"text {number}")) for u in users]
            counts = client.call_many(calls, "agents", "tell")
        print(f"{last.moved} agents moved; they know {min(counts)} to {max(counts)} texts each")


if __name__ == "__main__":
    main()
