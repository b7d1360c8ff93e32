"""When something is to be looked at again. Nobody looks at all that are waited for."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

_FEW = 64


class Moments:
    """Uids, and of each the moment at which it is to be looked at next."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._at)

    def __iter__(self) -> Iterator[str]:
        return iter(self._at)

    def set(self, uid: str, at: float) -> None:
        """Have a uid looked at at a moment, if not sooner."""
        known = self._at.get(uid)
        if known is None or at < known:
            heapq.heappush(self._heap, (at, uid))
            self._at[uid] = at  # last: who is interrupted before it sets it anew
            if len(self._heap) > 2 * len(self._at) + _FEW:
                self._tidy()

    def _tidy(self) -> None:
        """Drop moments that are void, so that there are never many."""
        tidy = [(at, uid) for uid, at in self._at.items()]
        heapq.heapify(tidy)
        self._heap = tidy

    def drop(self, uid: str) -> None:
        """Take a uid's moment back."""
        self._at.pop(uid, None)

    def take(self, at: float) -> list[str]:
        """Return the uids whose moments have come; each is to be set again, if it waits on."""
        come = []
        while self._heap and self._heap[0][0] <= at:
            moment, uid = heapq.heappop(self._heap)
            if self._at.get(uid) == moment:
                del self._at[uid]
                come.append(uid)
        return come
