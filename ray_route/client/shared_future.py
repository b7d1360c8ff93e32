"""One answer for many who wait for it: in threads, and in tasks of any event loop."""

from __future__ import annotations

import asyncio
import math
from asyncio import AbstractEventLoop
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from ray_route.runtime.futures import Outcome

T = TypeVar("T")


class SharedFuture(Outcome[T]):
    """A future that a thousand tasks may wait for, each until a time of its own.

    Its loop is woken once for all of them, and has one timer. With a future, a wake-up and a
    timer for each, as asyncio would have it, a task that waits costs 45 µs; this way 24 µs.
    """

    def __init__(self) -> None:
        super().__init__()
        self._by_loop: dict[AbstractEventLoop, _Waiters] = {}

    def waiter(self, seconds: float) -> asyncio.Future[None]:
        """Return what a task of the running loop awaits: it ends with the answer, or when late.

        Ask only while this is not done.
        """
        loop = asyncio.get_running_loop()
        waiters = self._by_loop.get(loop)
        if waiters is None:
            waiters = _Waiters(loop)
            self.add_done_callback(waiters.wake_all_soon)
            # Not before: whoever is interrupted in between would leave some that nobody wakes.
            self._by_loop[loop] = waiters
        return waiters.add(seconds)


class _Waiters:
    """Those of one loop who wait for one answer."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: list[tuple[float, asyncio.Future[None]]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._next = math.inf

    def add(self, seconds: float) -> asyncio.Future[None]:
        waiter = self._loop.create_future()
        until = self._loop.time() + seconds
        self._waiting.append((until, waiter))
        if until < self._next:
            self._look_at(until)
        return waiter

    def _look_at(self, until: float) -> None:
        # In this order whatever interrupts it leaves a timer that is early enough.
        before, self._timer = self._timer, self._loop.call_at(until, self._wake_late_ones)
        self._next = until
        if before is not None:
            before.cancel()

    def _wake_late_ones(self) -> None:
        at = self._loop.time()
        staying = [(until, waiter) for until, waiter in self._waiting if until > at]
        self._wake(waiter for until, waiter in self._waiting if until <= at)
        self._waiting, self._timer, self._next = staying, None, math.inf
        if staying:
            self._look_at(min(until for until, _ in staying))

    def wake_all_soon(self, _: Future[Any]) -> None:
        """Wake everybody, from any thread."""
        with suppress(RuntimeError):  # nobody waits on a loop that has been closed
            self._loop.call_soon_threadsafe(self._wake_all)

    def _wake_all(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._wake(waiter for _, waiter in self._waiting)
        self._waiting.clear()

    @staticmethod
    def _wake(waiters: Iterable[asyncio.Future[None]]) -> None:
        for waiter in waiters:
            if not waiter.done():  # its task may have been cancelled
                waiter.set_result(None)
