"""Removals of links, remembered so that a recovery does not bring back what was removed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cachetools import TLRUCache

from ray_route.clock import now
from ray_route.model import Link
from ray_route.store.links import RememberedLink

_KEPT = 100_000
_REMEMBERED_S = 300.0

# The link, and when it goes, or went.
_Removal = tuple[Link, float]


class Removals:
    """What was removed lately, or is to be, by service and uid. Belongs to one event loop."""

    def __init__(self) -> None:
        self._removals: TLRUCache[tuple[str, str], _Removal] = TLRUCache(
            _KEPT,
            ttu=lambda _, removal, at: max(at, removal[1]) + _REMEMBERED_S,
            timer=now,
        )

    def add(self, service: str, uid: str, link: Link, after_s: float) -> None:
        """Remember that a link is gone, or will be in so many seconds."""
        self._removals[service, uid] = (link, now() + after_s)

    def forget(self, service: str, uids: Iterable[str]) -> None:
        """Forget the removals of uids that have been linked anew."""
        if self._removals:
            for uid in uids:
                self._removals.pop((service, uid), None)

    def cover(self, service: str, uid: str, epoch: int) -> bool:
        """True if a link of that epoch or a later one was removed, or is to be."""
        removal = self._removals.get((service, uid))
        return removal is not None and removal[0].epoch >= epoch

    def remembered(self) -> Iterator[tuple[str, str, RememberedLink]]:
        """Yield (service, uid, the link and how long it has left) of every removal."""
        at = now()
        for (service, uid), (link, due_at) in list(self._removals.items()):
            yield service, uid, RememberedLink(link, max(0.0, due_at - at))
