"""The order of one caller's calls for one uid, which Ray does not keep on loops and in threads."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from ray_route.clock import Clock, now
from ray_route.errors import FencedError, RouteError
from ray_route.protocol.calls import Header, Order, Refused, SendAgain

# A call that has not come by then never will: an argument of it failed, or it was cancelled.
_MISSING_S = 0.25
# What was sent meanwhile has arrived by then.
_IDLE_S = 10.0


@dataclass(eq=False, slots=True)
class _Run:
    """The calls of one run: which is next, which have come, which of those are past their turn."""

    used_at: float
    next: int = 0
    come: set[int] = field(default_factory=set)
    passed: set[int] = field(default_factory=set)
    refused: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def passes(self, number: int) -> None:
        """Let the calls behind one go on."""
        self.passed.add(number)
        while self.next in self.passed:
            self.passed.discard(self.next)
            self.come.discard(self.next)
            self.next += 1

    def lacks_next(self) -> bool:
        """True if the next has not come."""
        return self.next not in self.come


class CallOrder:
    """Lets the calls of a run begin in the order in which they were sent. Thread-safe.

    A run begins where its caller has nothing under way for the uid, and ends with a refusal: all
    that was sent behind a refused call is refused too, since the caller sends that again first.
    `keeps_order` is true where calls come one by one, in order: then nobody waits.
    """

    def __init__(self, *, keeps_order: bool, clock: Clock = now) -> None:
        self._keeps_order = keeps_order
        self._clock = clock
        self._runs: OrderedDict[int, _Run] = OrderedDict()
        self._lock = threading.Condition()

    def __len__(self) -> int:
        return len(self._runs)

    def turn(self, order: Order) -> bool:
        """Wait for the turn of a call; False if it is to be refused."""
        if self._keeps_order:
            run = self._runs.get(order[0])
            return run is None or not run.refused
        with self._lock:
            run = self._came(order)
            while run.next < order[1]:
                at, limit_s = run.next, _MISSING_S if run.lacks_next() else None
                if not self._lock.wait_for(lambda at=at: run.next > at, limit_s):  # type: ignore[misc]
                    self._skip(run, at)
            return not run.refused

    async def turn_async(self, order: Order) -> bool:
        """Do the same on the event loop, where all calls of the pod are."""
        run = self._came(order)
        while run.next < order[1]:
            at, limit_s = run.next, _MISSING_S if run.lacks_next() else None
            run.changed.clear()
            try:
                await asyncio.wait_for(run.changed.wait(), limit_s)
            except asyncio.TimeoutError:
                self._skip(run, at)
        return not run.refused

    def begins(self, order: Order, *, refused: bool = False) -> None:
        """Let the next call go on: this one begins, or is refused."""
        if self._keeps_order:
            if refused:
                self._refuse(order)
            return
        with self._lock:
            run = self._runs.get(order[0])
            if run is None:
                return
            run.refused = run.refused or refused
            run.passes(order[1])
            self._changed(run)

    def _refuse(self, order: Order) -> None:
        run = self._came(order)
        run.refused = True
        run.come.clear()

    def _came(self, order: Order) -> _Run:
        with self._lock:
            at = self._clock()
            run = self._runs.pop(order[0], None) or _Run(at)
            run.used_at = at
            self._runs[order[0]] = run  # the latest come last
            run.come.add(order[1])
            self._forget_idle(at)
            self._changed(run)
            return run

    def _forget_idle(self, at: float) -> None:
        while next(iter(self._runs.values())).used_at < at - _IDLE_S:
            number, run = self._runs.popitem(last=False)
            if run.come:  # its next call takes long to begin
                run.used_at = at
                self._runs[number] = run

    def _skip(self, run: _Run, number: int) -> None:
        with self._lock:
            if run.next == number and run.lacks_next():
                run.passes(number)
                self._changed(run)

    def _changed(self, run: _Run) -> None:
        run.changed.set()
        self._lock.notify_all()


class Place:
    """The place of one call in the order of its caller's; one without a place waits for nobody."""

    __slots__ = ("_all", "_order", "_refused")

    def __init__(self, all_calls: CallOrder, header: Header) -> None:
        self._all = all_calls
        self._order: Order | None = (header[4], header[5]) if header[4:] and header[4] else None
        self._refused = False

    def turn(self) -> bool:
        """Wait for its turn; False if a call before it was refused."""
        return self._order is None or self._all.turn(self._order)

    async def turn_async(self) -> bool:
        """Do the same on the running event loop."""
        return self._order is None or await self._all.turn_async(self._order)

    def send_again(self) -> SendAgain:
        """Answer that it has not run."""
        self._refused = True
        return SendAgain()

    def refused(self, error: RouteError) -> Refused:
        """Answer with a refusal; one that is followed takes the calls behind along."""
        self._refused = isinstance(error, FencedError)
        return Refused(error)

    def leave(self) -> None:
        """Let the next call go on."""
        if self._order is not None:
            self._all.begins(self._order, refused=self._refused)
