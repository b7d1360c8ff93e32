"""The order in which uids are given up. A look costs the same however many wait behind the first.

A pod may have to give up 100,000 uids at once. So whoever looks for what is to be done looks at
the front of a line alone, and what is not fit yet, since Redis has not confirmed it, is asked for
a little ahead.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from enum import Enum

# So many uids are confirmed, or being confirmed, ahead of the hooks: one read has as many.
AHEAD = 256


class Why(Enum):
    """Why a uid is given up, which decides what it has to wait for.

    LOST: Redis does not name this pod: neither for its word nor for the pod's lease. OWN: the pod
    itself wants that. ASKED: a router does, for the next owner, who fetches what is kept.
    """

    LOST = "lost"
    OWN = "own"
    ASKED = "asked"


class _Line:
    def __init__(self) -> None:
        # Not plain ones: after many have gone, to find the first that is left would be a search.
        self.first: OrderedDict[str, None] = OrderedDict()
        """Those that have been confirmed; they go before those that wait."""
        self.waiting: OrderedDict[str, None] = OrderedDict()
        self.asked: set[str] = set()
        """Those that Redis is just being asked about."""

    def __len__(self) -> int:
        return len(self.first) + len(self.waiting) + len(self.asked)

    def __iter__(self) -> Iterator[str]:
        yield from self.first
        yield from self.waiting
        yield from self.asked

    def __contains__(self, uid: object) -> bool:
        return uid in self.waiting or uid in self.first or uid in self.asked

    def discard(self, uid: str) -> None:
        self.first.pop(uid, None)
        self.waiting.pop(uid, None)
        self.asked.discard(uid)

    @property
    def room(self) -> int:
        """How many more may be confirmed ahead."""
        return AHEAD - len(self.first) - len(self.asked)

    def front(self) -> str | None:
        return next(iter(self.first or self.waiting), None)


Is = Callable[[str], bool]


class ReleaseLines:
    """Uids that are to be given up or dropped, as far as their calls allow; one line a reason."""

    def __init__(self) -> None:
        self._lines = {why: _Line() for why in Why}
        self._why: dict[str, Why] = {}
        self._read_at: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._why)

    def __iter__(self) -> Iterator[str]:
        return iter(self._why)

    def __contains__(self, uid: object) -> bool:
        return uid in self._why

    def add(self, uid: str, why: Why) -> bool:
        """Have a uid wait in a line, behind the others; False if it does already.

        To add one once more mends what an interrupt has left of the first time.
        """
        known = self._why.get(uid)
        if known is why and uid in self._lines[why]:
            return False
        if known is not None:
            self._lines[known].discard(uid)
        self._why[uid] = why
        self._lines[why].waiting[uid] = None
        return True

    def read(self, uid: str, asked_at: float) -> None:
        """Take in that the link of a uid was read, as was asked for then, if it waits here."""
        if uid in self._why:
            self._read_at[uid] = asked_at

    def read_at(self, uid: str) -> float:
        """Return when that was asked for last, while it waits here."""
        return self._read_at.get(uid, -math.inf)

    def discard(self, uid: str) -> None:
        """Have a uid wait no more."""
        why = self._why.pop(uid, None)
        self._read_at.pop(uid, None)
        if why is not None:
            self._lines[why].discard(uid)

    def clear(self) -> None:
        """Have none wait."""
        self._lines = {why: _Line() for why in Why}
        self._why.clear()
        self._read_at.clear()

    def to_confirm(self, is_confirmed: Is, may_end: Is) -> list[str]:
        """Return those next ones that are to be confirmed, each once, until it is `answered`."""
        return [
            uid
            for why in (Why.OWN, Why.ASKED)
            for uid in self._to_confirm(self._lines[why], is_confirmed, may_end)
        ]

    def _to_confirm(self, line: _Line, is_confirmed: Is, may_end: Is) -> Iterator[str]:
        while line.waiting and line.room > 0:
            uid = next(iter(line.waiting))
            del line.waiting[uid]
            if not may_end(uid):
                self.discard(uid)
            elif is_confirmed(uid):
                line.first[uid] = None
            else:
                line.asked.add(uid)
                yield uid

    def answered(self, uid: str, *, well: bool) -> bool:
        """Take in that a uid has been asked for; False if it was not, for its release.

        One that could not be confirmed goes behind all others: it must not keep them waiting.
        """
        why = self._why.get(uid)
        line = None if why is None else self._lines[why]
        if line is None or uid not in line.asked:
            return False
        line.asked.discard(uid)
        (line.first if well else line.waiting)[uid] = None
        return True

    def take(self, why: Why, is_fit: Is, may_end: Is) -> str | None:
        """Take the first uid out of a line, if it is fit; None if there is none.

        One that was confirmed, and is not any more, goes behind all others.
        """
        line = self._lines[why]
        while (uid := line.front()) is not None:
            if not may_end(uid):
                self.discard(uid)
            elif is_fit(uid):
                self.discard(uid)
                return uid
            elif uid in line.first:
                del line.first[uid]
                line.waiting[uid] = None
            else:
                return None
        return None
