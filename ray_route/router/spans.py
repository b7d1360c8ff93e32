"""Notices that two servers have taken writes to one shard, by what each script found and left.

A primary that was replaced takes writes until it is demoted. What it has acknowledged the new one
lacks; but of two scripts that were sent at once, one to each, the later counter hides that the
other's writes are lost. On one server the span from the counter that a script found to the one that
it left is that script's alone.
"""

from __future__ import annotations

from bisect import bisect_left, insort

# Answers may overtake each other, and what others wrote lies between: few are ever apart.
_KEPT = 32

Span = tuple[int, int]


class Spans:
    """The spans of one shard that this router's scripts have taken, joined where they touch."""

    def __init__(self) -> None:
        self._taken: list[Span] = []

    def saw(self, counter: int) -> None:
        """Take in a counter that was read: no script on that server can reach across it later."""
        index = bisect_left(self._taken, (counter, counter))
        inside = index and self._taken[index - 1][1] >= counter
        if not inside and self._taken[index : index + 1] != [(counter, counter)]:
            self._taken.insert(index, (counter, counter))
            del self._taken[:-_KEPT]

    def take(self, found: int, left: int) -> bool:
        """Take in a script's span; say if it is its alone. One that overlaps is not taken in."""
        if found >= left:
            return True  # it has written nothing
        index = bisect_left(self._taken, (left, left))
        if index and self._taken[index - 1][1] > found:
            return False
        if index and self._taken[index - 1][1] == found:
            index -= 1
            found = self._taken.pop(index)[0]
        if index < len(self._taken) and self._taken[index][0] == left:
            left = self._taken.pop(index)[1]
        insort(self._taken, (found, left))
        del self._taken[:-_KEPT]
        return True
