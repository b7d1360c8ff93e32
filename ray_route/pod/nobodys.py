"""Uids that are nobody's, as far as a pod knows, and the states that wait for their next owners."""

from __future__ import annotations

from collections.abc import Mapping

from ray_route.pod.entries import Entry
from ray_route.protocol.commands import Given


class Nobodys:
    """What a pod knows of uids at GIVEN; whoever reads or changes it holds the holdings' lock."""

    def __init__(self) -> None:
        self.given_up: dict[str, None] = {}
        """All of them, those that were given up first at the front."""
        self.kept: set[str] = set()
        """Those whose state is kept here for whoever has them next."""
        self.come: set[str] = set()
        """Those whose state has come here from another pod."""
        self.slow: set[str] = set()
        """Those kept ones whose state takes long to pickle: nobody waits for them."""
        self.removed: set[str] = set()
        """Those whose links are to go."""

    @property
    def undecided(self) -> int:
        """How many states there are, which would be lost with the pod."""
        return len(self.kept) + len(self.come)

    @property
    def soon_gone(self) -> int:
        """How many states are fetched as fast as others are given up: not those that are slow."""
        return len(self.kept) - len(self.slow)

    def add(self, uid: str, entry: Entry) -> None:
        """Take in that a uid is nobody's from now on."""
        self.drop(uid)
        self.given_up[uid] = None
        if entry.has_own_state:
            self.kept.add(uid)
        if entry.removes:
            self.removed.add(uid)

    def drop(self, uid: str) -> None:
        """Take in that a uid is somebody's again, or forgotten."""
        self.given_up.pop(uid, None)
        for uids in (self.kept, self.come, self.slow, self.removed):
            uids.discard(uid)

    def has_state(self, uid: str) -> bool:
        """True if a state would be lost with the pod."""
        return uid in self.kept or uid in self.come

    def unsettled(self, entries: Mapping[str, Entry], before: float) -> dict[str, Given]:
        """Return those that Redis may still name this pod for; see `unsettled`."""
        some = {uid: (entries[uid].epoch, entries[uid].removes) for uid in self.removed}
        for uid in self.given_up:
            entry = entries[uid]
            if entry.given_at >= before:
                break
            some[uid] = entry.epoch, entry.removes
        return some
