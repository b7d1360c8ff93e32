"""The uids of a pod in the order of their last use, and of the ends of their leases.

A pod has 100,000 and more: what is done every second is done at the ends of these orders, never by
a look at all.
"""

from __future__ import annotations

from collections.abc import Iterator


class UseOrder:
    """Keeps the orders; whoever reads or changes them holds the lock of the holdings."""

    def __init__(self) -> None:
        self._used: dict[str, None] = {}
        self._leased: dict[str, None] = {}
        self.busy: set[str] = set()
        """Uids that have a call."""
        self.changing: set[str] = set()
        """Uids that are, or lately were, being acquired or given up."""

    def __len__(self) -> int:
        return len(self._used)

    def used(self, uid: str) -> None:
        """Take in that a uid is used now."""
        self._used.pop(uid, None)
        self._used[uid] = None

    def leased(self, uid: str) -> None:
        """Take in that a uid has a lease from now on: the latest ends last."""
        self._leased.pop(uid, None)
        self._leased[uid] = None

    def drop(self, uid: str) -> None:
        """Forget a uid that is nobody's."""
        self._used.pop(uid, None)
        self._leased.pop(uid, None)
        self.changing.discard(uid)

    def unused(self, uids: list[str]) -> None:
        """Forget the use of uids that are given up for want of it, or are not."""
        for uid in uids:
            self._used.pop(uid, None)

    def oldest(self) -> Iterator[str]:
        """Yield uids, those that were used the longest ago first."""
        return iter(self._used)

    def latest(self) -> Iterator[str]:
        """Yield uids, those that were used last first."""
        return reversed(self._used)

    def soonest(self) -> Iterator[str]:
        """Yield uids, those whose leases end first at the front."""
        return iter(self._leased)
