"""Turns: of one uid, one call at a time, on the event loop of a pod.

All is done on that loop, so nothing here is locked. A turn ends with its last call; a call that
comes back to a uid from within a turn of it, by whatever way, has its turn within that one. So two
calls of a uid overlap only if one of them is made within the other.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ray_route.clock import Clock, now
from ray_route.protocol.calls import Chain

# So many calls of a uid may wait; beyond that a caller that has its share of them comes again.
WAITING = 64
# So many of a pod, each of which takes 48 KB of Ray's; beyond that no uid may have more than one.
MOST_WAITING = 1_000
_NUMBER_BITS = 63  # what Ray packs as a plain integer

Refusal = Callable[[], Exception | None]

_numbers = random.SystemRandom()


def turn_number() -> int:
    """Return a number that no other turn has, of whichever pod."""
    return _numbers.getrandbits(_NUMBER_BITS) or 1


@dataclass(eq=False, slots=True)
class Turn:
    """The right of one call to run for its uid, and of those that it leads back to it."""

    line: _Line
    method: str
    since: float
    number: int = field(default_factory=turn_number)
    inner: _Line | None = None
    """The calls that have come back."""
    is_over: bool = False

    @property
    def is_within(self) -> bool:
        """True for a call that has come back, within another turn of its uid."""
        return self.line.outer is not None

    def end(self) -> None:
        """End the call; the next has its turn once those within have ended, too."""
        self.is_over = True
        self.settle()

    def settle(self) -> None:
        """Let the next have its turn if nothing of this one is left."""
        if self.is_over and (self.inner is None or self.inner.turn is None):
            self.line.go_on()


@dataclass(eq=False, slots=True)
class Beside:
    """An interleaved call, which runs beside the turns of its uid; stands in for its turn."""

    turns: Turns
    uid: str
    is_within: bool
    number: int = field(default_factory=turn_number)

    def end(self) -> None:
        """End the call."""
        del self.turns.beside_turns[self.number]


@dataclass(eq=False, slots=True)
class Ticket:
    """A call that waits for its turn, or has it."""

    line: _Line
    method: str
    run: int
    refusal: Refusal
    turn: Turn | None = None
    future: asyncio.Future[Turn] | None = None

    async def wait(self, limit_s: float | None) -> Turn:
        """Wait for the turn; raises `asyncio.TimeoutError`, and what turned the call away."""
        if self.turn is not None:
            return self.turn
        assert self.future is not None
        try:
            await asyncio.wait({self.future}, timeout=limit_s)
        except BaseException:
            self._withdraw()
            raise
        if not self.future.done():
            self._withdraw()
            raise asyncio.TimeoutError
        return self.future.result()

    def _withdraw(self) -> None:
        if self.turn is not None:
            self.turn.end()  # it has just come
        elif self.future is not None and not self.future.done():
            self.line.forget(self)
        elif self.future is not None:
            self.future.exception()  # seen, though nobody is told any more


class _Line:
    """The running turn of a uid, or within one; and who waits for it.

    First come, first served for the calls of one caller's run; turn about between runs.
    """

    __slots__ = ("_all", "count", "outer", "turn", "uid", "waiting")

    def __init__(self, all_turns: Turns, uid: str, outer: Turn | None) -> None:
        self._all = all_turns
        self.uid = uid
        self.outer = outer
        self.turn: Turn | None = None
        self.waiting: OrderedDict[object, deque[Ticket]] = OrderedDict()
        self.count = 0

    def join(self, method: str, run: int, refusal: Refusal) -> Ticket:
        """Take a call in: it has the turn if nobody else does; raises its refusal if it has one.

        One that has come back is not refused for having to wait: the outer one can't end before it.
        """
        ticket = Ticket(self, method, run, refusal)
        if self.turn is None:
            self._begin(ticket)
        elif self.outer is None and (error := refusal()) is not None:
            raise error
        else:
            ticket.future = asyncio.get_running_loop().create_future()
            self.waiting.setdefault(_key(ticket), deque()).append(ticket)
            self._count(1)
        return ticket

    def is_full(self, run: int) -> bool:
        """True if a call of a run would be one too many of those that wait.

        Never one that has come back: what waits for it would wait for ever.
        """
        if not self.count or self.outer is not None:
            return False
        if self._all.are_many:
            return True
        own = len(self.waiting.get(run, ())) if run else self.count
        return self.count >= WAITING and own * len(self.waiting) >= WAITING

    def go_on(self) -> None:
        """Give the next call its turn."""
        self.turn = None
        if not self.waiting:
            self._all.ended(self)
            return
        key, tickets = self.waiting.popitem(last=False)
        ticket = tickets.popleft()
        if tickets:
            self.waiting[key] = tickets  # behind the others
        self._count(-1)
        self._begin(ticket)

    def _begin(self, ticket: Ticket) -> None:
        self.turn = ticket.turn = Turn(self, ticket.method, self._all.clock())
        if ticket.future is not None:
            ticket.future.set_result(self.turn)

    def _count(self, by: int) -> None:
        self.count += by
        self._all.waiting += by

    def forget(self, ticket: Ticket) -> None:
        """Take out a call that waits no more."""
        tickets = self.waiting[_key(ticket)]
        tickets.remove(ticket)
        if not tickets:
            del self.waiting[_key(ticket)]
        self._count(-1)

    def turn_away(self) -> None:
        """Refuse those that wait, if they are refused by now."""
        for ticket in [one for tickets in self.waiting.values() for one in tickets]:
            error = ticket.refusal()
            if error is not None:
                self.forget(ticket)
                assert ticket.future is not None
                ticket.future.set_exception(error)


def _key(ticket: Ticket) -> object:
    return ticket.run or ticket  # without a place in an order, it is a run of its own


class Turns:
    """The turns of all uids of a pod that have calls.

    Args:
        most: so many calls may wait; beyond that each uid may have one.

    """

    def __init__(self, most: int = MOST_WAITING, clock: Clock = now) -> None:
        self.waiting = 0
        self.clock = clock
        self.beside_turns: dict[int, str] = {}
        """The numbers of interleaved calls, and their uids."""
        self._most = most
        self._lines: dict[str, _Line] = {}

    def __len__(self) -> int:
        """Number of uids that have calls."""
        return len(self._lines)

    @property
    def are_many(self) -> bool:
        """True while so many calls wait that there is hardly room for others."""
        return self.waiting >= self._most

    def join(
        self, uid: str, method: str, chain: Chain, run: int, refusal: Refusal
    ) -> Ticket | None:
        """Have a call wait for its turn; None if too many do.

        Args:
            uid: for whom it is.
            method: what `running` says of it.
            chain: the turns that it is made within.
            run: those of one run have their turns in the order in which they join; 0: it has none.
            refusal: says whether it is refused by now; asked if it has to wait, and by `turn_away`,
                but not of one within a turn of its uid.

        Raises that refusal.

        """
        line = self._line(uid, chain)
        return None if line.is_full(run) else line.join(method, run, refusal)

    def _line(self, uid: str, chain: Chain) -> _Line:
        line = self._lines.get(uid)
        if line is None:
            line = self._lines[uid] = _Line(self, uid, None)
        while line.turn is not None and line.turn.number in chain:
            if line.turn.inner is None:
                line.turn.inner = _Line(self, uid, line.turn)
            line = line.turn.inner
        return line

    def beside(self, uid: str, chain: Chain) -> Beside:
        """Have a call run beside the turns of its uid; end it with `end`."""
        one = Beside(self, uid, self.is_within(uid, chain))
        self.beside_turns[one.number] = uid
        return one

    def is_within(self, uid: str, chain: Chain) -> bool:
        """True for a call that is made within another of its uid, which has not ended."""
        line = self._lines.get(uid)
        if line is not None and line.turn is not None and line.turn.number in chain:
            return True
        return any(self.beside_turns.get(number) == uid for number in chain)

    def running(self, uid: str) -> Iterator[tuple[str, float]]:
        """Yield the methods that have their turn, the outermost first, and for how many seconds."""
        line = self._lines.get(uid)
        while line is not None and line.turn is not None:
            yield line.turn.method, self.clock() - line.turn.since
            line = line.turn.inner

    def turn_away(self, uid: str | None) -> None:
        """Refuse those that wait for a uid, or for any, if they are refused by now.

        Not those within a turn: that can't end before they do.
        """
        lines = list(self._lines.values()) if uid is None else [self._lines.get(uid)]
        for line in lines:
            if line is not None and line.waiting:
                line.turn_away()

    def ended(self, line: _Line) -> None:
        """Take in that a line has no calls any more."""
        if line.outer is None:
            del self._lines[line.uid]
        else:
            line.outer.settle()
