"""The order of one caller's calls for one uid, which Ray does not keep on loops and in threads."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol
from weakref import WeakValueDictionary

from ray_route.errors import FencedError, RouteError
from ray_route.protocol.calls import Header, Order, Refused, SendAgain

# By then what was sent before is here as a rule; if not, its caller decides what to wait for.
_MISSING_S = 0.25
# So many arrivals later a run is forgotten that has no call here; going on, it is sent again.
_REMEMBERED = 10_000


class Orders(Protocol):
    """Says of each call of a run whether its turn has come."""

    def come(self, order: Order) -> object:
        """Take in that a call has come; return what is to be kept until it has ended."""

    def turn(self, order: Order) -> bool:
        """Wait for the turn of a call; False if it is to be sent again."""

    async def turn_async(self, order: Order) -> bool:
        """Do the same on the running event loop."""

    def begins(self, order: Order, *, refused: bool) -> None:
        """Let the next call go on, or refuse all that come behind a refused one."""

    def begun(self, order: Order) -> int:
        """Return how many calls of a run have begun for certain."""


class ArrivalOrder:
    """For pods whose calls come one by one, in order: nobody waits, and a gap is noticed.

    What is missing was cancelled, or an argument of it failed, and its caller may send it again;
    so what comes behind is sent again, too.
    """

    def __init__(self) -> None:
        self._next: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._next)

    def come(self, order: Order) -> None:
        """Keep nothing: a call is here when it is its turn."""

    def turn(self, order: Order) -> bool:
        """Return True if all calls before this one have begun here."""
        return self.begun(order) == order[1]

    async def turn_async(self, order: Order) -> bool:
        """Do the same."""
        return self.turn(order)

    def begins(self, order: Order, *, refused: bool = False) -> None:
        """Take in that a call begins, or that its run has ended."""
        begun = self._next.pop(order[0], 0)
        if not refused:
            self._next[order[0]] = max(begun, order[1] + 1)
            if len(self._next) > _REMEMBERED:
                self._next.popitem(last=False)

    def begun(self, order: Order) -> int:
        """Return how many calls of a run have begun here; 0 if that is not known."""
        return self._next.get(order[0], 0)


class _Count:
    """How many calls of a run, from the first one on, have come so far without a gap."""

    __slots__ = ("_beyond", "first")

    def __init__(self) -> None:
        self.first = 0
        self._beyond: set[int] = set()

    def add(self, place: int) -> None:
        """Count a call, in whichever order; one that was counted before changes nothing."""
        if place >= self.first:
            self._beyond.add(place)
        while self.first in self._beyond:
            self.first += 1  # first: what is interrupted here goes on the next time
            self._beyond.discard(self.first - 1)


class _Run:
    """The calls of one run: which is next, and which have come; once cut it goes no further."""

    __slots__ = ("__weakref__", "begun", "cut", "here", "passed")

    def __init__(self) -> None:
        self.cut: int | None = None
        """From this place on all calls are to be sent again."""
        self.here: dict[int, Callable[[], None] | None] = {}
        """The calls that have come and not passed; how to wake those that wait."""
        self.passed = _Count()
        """Those that let the next one go on."""
        self.begun = _Count()

    @property
    def next(self) -> int:
        """The place of the call whose turn it is."""
        return self.passed.first

    def is_cut(self, place: int) -> bool:
        """True for a call that is to be sent again."""
        return self.cut is not None and place >= self.cut

    def holds_up(self, place: int) -> bool:
        """True while a call has to wait for one before it."""
        return self.next < place and not self.is_cut(place)

    def passes(self, place: int) -> None:
        """Let the next call go on; if that has not come, have one that waits look out for it."""
        self.here.pop(place, None)
        self.passed.add(place)
        if self.here:
            self._wake(self.next if self.next in self.here else next(iter(self.here)))

    def cuts(self, place: int) -> None:
        """Have all calls from this one on sent again."""
        self.cut = place if self.cut is None else min(self.cut, place)
        for later in list(self.here):
            self._wake(later)

    def _wake(self, place: int) -> None:
        wake = self.here[place]
        if wake is not None:
            wake()


@dataclass(frozen=True, slots=True)
class _Wait:
    """How long to wait for a turn: without limit if the next call is here, and about to begin."""

    next: int
    limit_s: float | None


class CallOrder:
    """Lets the calls of a run begin in the order in which they were sent. Thread-safe.

    A run begins where its caller has nothing under way for the uid, and ends with a refusal, or
    where a call is missing: all that was sent behind is to be sent again, and so is the missing one
    if it comes after all. So none begins before one that was sent before it, however late that is.
    """

    def __init__(self) -> None:
        self._runs: WeakValueDictionary[int, _Run] = WeakValueDictionary()
        # A run lives on while a call of it does, however long, since its `Place` has it.
        self._recent: deque[_Run] = deque(maxlen=_REMEMBERED)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._runs)

    def come(self, order: Order) -> _Run:
        """Take in that a call has come; return its run, to be kept until the call has ended."""
        number, place = order
        with self._lock:
            run = self._runs.get(number)
            if run is None:
                run = self._runs[number] = _Run()
            self._recent.append(run)
            run.here[place] = None
            return run

    def turn(self, order: Order) -> bool:
        """Wait for the turn of a call that has come; False if it is to be sent again."""
        run, place = self._runs[order[0]], order[1]
        while run.holds_up(place):
            woken = threading.Event()
            wait = self._wait(run, place, woken.set)
            if wait and not woken.wait(wait.limit_s):
                self._miss(run, wait)
        return not run.is_cut(place)

    async def turn_async(self, order: Order) -> bool:
        """Do the same on the event loop, where all calls of the pod are."""
        run, place = self._runs[order[0]], order[1]
        while run.holds_up(place):
            woken = asyncio.Event()
            wait = self._wait(run, place, woken.set)
            if wait and not await _within(woken, wait.limit_s):
                self._miss(run, wait)
        return not run.is_cut(place)

    def begins(self, order: Order, *, refused: bool = False) -> None:
        """Let the next call go on: this one begins; or refuse all behind it, with this one."""
        number, place = order
        with self._lock:
            run = self._runs.get(number)
            if run is None:  # interrupted before it came
                return
            if refused:
                run.here.pop(place, None)
                run.cuts(place)
            else:
                run.begun.add(place)
                run.passes(place)

    def begun(self, order: Order) -> int:
        """Return how many calls of a run have begun for certain."""
        return self._runs[order[0]].begun.first

    # Where a call waits for more than its place.

    def passes(self, order: Order) -> None:
        """Let the next call go on, though this one has not begun."""
        with self._lock:
            self._runs[order[0]].passes(order[1])

    def is_cut(self, order: Order) -> bool:
        """True if one before it has been refused since it passed: it is to be sent again."""
        return self._runs[order[0]].is_cut(order[1])

    def _wait(self, run: _Run, place: int, wake: Callable[[], None]) -> _Wait | None:
        with self._lock:
            if not run.holds_up(place):
                return None
            run.here[place] = wake
            return _Wait(run.next, None if run.next in run.here else _MISSING_S)

    def _miss(self, run: _Run, wait: _Wait) -> None:
        with self._lock:
            if run.next == wait.next and run.next not in run.here:
                run.cuts(run.next)


async def _within(woken: asyncio.Event, limit_s: float | None) -> bool:
    try:
        return await asyncio.wait_for(woken.wait(), limit_s)
    except asyncio.TimeoutError:
        return False


class Place:
    """The place of one call in the order of its caller's; one without a place waits for nobody.

    It comes as it begins to wait for its turn. To leave twice changes nothing.
    """

    __slots__ = ("_order", "_orders", "_refused", "_run")

    def __init__(self, orders: Orders, header: Header) -> None:
        self._orders = orders
        self._order: Order | None = (header[4], header[5]) if header[4:] and header[4] else None
        self._run: object = None  # which lives as long as this does
        self._refused = False

    def come(self) -> None:
        """Take it in: those behind wait for it from now on, until it leaves."""
        self._run = self._order and self._orders.come(self._order)

    def turn(self) -> bool:
        """Wait for its turn; False if it is to be sent again."""
        self.come()
        return self._order is None or self._orders.turn(self._order)

    async def turn_async(self) -> bool:
        """Do the same on the running event loop."""
        self.come()
        return self._order is None or await self._orders.turn_async(self._order)

    def send_again(self) -> SendAgain:
        """Answer that it has not run."""
        self._refused = True
        return SendAgain(0 if self._order is None else self._orders.begun(self._order))

    def refused(self, error: RouteError) -> Refused:
        """Answer with a refusal; one that is followed takes the calls behind along."""
        self._refused = isinstance(error, FencedError)
        return Refused(error)

    def leave(self) -> None:
        """Let the next call go on."""
        if self._order is not None:
            self._orders.begins(self._order, refused=self._refused)


class TurnPlace(Place):
    """The same where a call, once its place has come, waits for the turn of its uid.

    Those behind it wait there, too, and none of them begins before it.
    """

    __slots__ = ("_call_order",)

    def __init__(self, orders: CallOrder, header: Header) -> None:
        super().__init__(orders, header)
        self._call_order = orders

    @property
    def run(self) -> int:
        """The number of its run; 0: it has none."""
        return 0 if self._order is None else self._order[0]

    def passes(self) -> None:
        """Let the next call go on: this one waits for its turn."""
        if self._order is not None:
            self._call_order.passes(self._order)

    def is_cut(self) -> bool:
        """True if one before it has been refused meanwhile."""
        return self._order is not None and self._call_order.is_cut(self._order)

    def busy(self) -> SendAgain:
        """Answer that it has not run, and may be sent again after a while."""
        return replace(self.send_again(), busy=True)

    def turned_away(self, error: RouteError) -> Refused | SendAgain:
        """Answer with a refusal; but one that is followed at its place alone.

        Its caller takes it that all before have begun: else they might be overtaken.
        """
        follows = isinstance(error, FencedError) and self._order is not None
        if follows and self._order and self._orders.begun(self._order) < self._order[1]:
            return self.send_again()
        return self.refused(error)
