"""What a pod still knows of uids that it has forgotten: answers about them may be on their way."""

from __future__ import annotations

import math
from collections import OrderedDict

# No read of a link takes longer; one that does is asked for again.
_ANY_READ_S = 60.0


class Forgotten:
    """Uids that were lately given up, and forgotten since they are another's, or nobody's."""

    def __init__(self) -> None:
        # Not a plain one: after many have gone, to find the first that is left would be a search.
        self._last: OrderedDict[str, tuple[float, int]] = OrderedDict()
        self._all_at = -math.inf

    def add(self, uid: str, epoch: int, at: float) -> None:
        """Take in that a uid is forgotten, of which that was the last epoch."""
        self._last.pop(uid, None)  # the latest come last
        self._last[uid] = at, epoch
        while self._last[first := next(iter(self._last))][0] < at - _ANY_READ_S:
            self._all_at, _ = self._last.pop(first)

    def at(self, uid: str) -> float:
        """Return when a uid was last forgotten: a link that was asked for until then is void."""
        return self._last.get(uid, (self._all_at, 0))[0]

    def epoch(self, uid: str) -> int:
        """Return the epoch up to which a uid was lately given up here; 0: it was not."""
        return self._last.get(uid, (0.0, 0))[1]
