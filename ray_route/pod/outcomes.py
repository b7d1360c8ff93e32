"""What became of uids that a router has asked for, until it has been told."""

from __future__ import annotations

import threading

from ray_route.pod.bell import Bell
from ray_route.pod.entries import Entry
from ray_route.protocol.commands import Outcome, Taken


class Outcomes:
    """Keeps what a router is to be told, in order; `lock` is that of the holdings."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._untold: list[Outcome | Taken] = []
        self.news = Bell(lock)
        """For whoever tells the router."""

    def add(self, *outcomes: Outcome | Taken) -> None:
        """Have the router told what became of some uids; `lock` is held."""
        if outcomes:
            self._untold += outcomes
            self.news.ring()

    def tell(self, taken: list[Taken]) -> None:
        """Have the router told what became of states that were to be fetched."""
        with self._lock:
            self.add(*taken)

    def take(self) -> list[Outcome | Taken]:
        """Return the outcomes since the last time."""
        with self._lock:
            some, self._untold = self._untold, []
            return some

    def not_told(self, outcomes: list[Outcome | Taken]) -> None:
        """Take in that some outcomes may have reached nobody: they are to be told again."""
        with self._lock:
            self._untold[:0] = outcomes


def given(uid: str, entry: Entry, number: int, epoch: int) -> Outcome:
    """Tell that a uid was given up, and whether its state of that epoch is here."""
    has_state = entry.epoch == epoch and entry.has_own_state
    return Outcome(number, uid, epoch, given=True, has_state=has_state)
