"""What a pod still knows of links that are over: answers about them may be on their way."""

from __future__ import annotations

import math
from collections import OrderedDict

# No read of a link takes longer; one that does is asked for again.
_ANY_READ_S = 60.0


class Forgotten:
    """Up to which epoch the links of uids are over, or set anew since, and when that was known."""

    def __init__(self) -> None:
        # Not a plain one: after many have gone, to find the first that is left would be a search.
        self._last: OrderedDict[str, tuple[float, int]] = OrderedDict()
        self._all_at = -math.inf

    def add(self, uid: str, epoch: int, at: float) -> None:
        """Take in that what was read of a uid until then is void, up to that epoch."""
        epoch = max(epoch, self.epoch(uid))
        self._last.pop(uid, None)  # the latest come last
        self._last[uid] = at, epoch
        while self._last[first := next(iter(self._last))][0] < at - _ANY_READ_S:
            self._all_at, _ = self._last.pop(first)

    def voids(self, uid: str, epoch: int, asked_at: float) -> bool:
        """True of a link of that epoch, if it was asked for before that was known."""
        at, last = self._last.get(uid, (self._all_at, math.inf))
        return asked_at <= at and epoch <= last

    def epoch(self, uid: str) -> int:
        """Return up to which epoch, lately; 0: none."""
        return self._last.get(uid, (0.0, 0))[1]
