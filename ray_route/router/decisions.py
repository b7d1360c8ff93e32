"""Why links are as they are: what the router has decided lately."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from itertools import islice
from time import time

from ray_route.model import Link
from ray_route.protocol.decided import Decision

_KEPT = 20_000


class Decisions:
    """The router's last decisions about links, for whoever asks why a uid is where it is."""

    def __init__(self) -> None:
        self.count = 0
        self._noted: deque[tuple[float, str, str, str, int, int | None]] = deque(maxlen=_KEPT)

    def note(
        self,
        service: str,
        links: Mapping[str, Link],
        what: str,
        sources: Mapping[str, int] | None = None,
    ) -> None:
        """Note what has been decided about uids: the pods of their links, those they came from."""
        at, sources = time(), sources or {}
        self._noted.extend(
            (at, service, uid, what, link.pod, sources.get(uid)) for uid, link in links.items()
        )
        self.count += len(links)

    def about(self, service: str, uid: str) -> tuple[str, ...]:
        """Return what was decided about a uid, oldest first, with the router's local time."""
        return tuple(
            str(Decision(*noted))
            for noted in self._noted
            if noted[2] == uid and noted[1] == service
        )

    def after(self, count: int, most: int) -> list[Decision]:
        """Return what was noted since so many had been: the last `most` of it, oldest first."""
        new = min(self.count - count, most)
        return [Decision(*noted) for noted in self._last(new)][::-1] if new > 0 else []

    def _last(self, most: int) -> Iterator[tuple[float, str, str, str, int, int | None]]:
        return islice(reversed(self._noted), most)
