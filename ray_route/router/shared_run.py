"""Work that is done once for many who ask for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class SharedRun(Generic[T]):
    """Runs of some work for many: each who asks gets the result of one that began afterwards."""

    def __init__(self, work: Callable[[], Awaitable[T]]) -> None:
        self._work = work
        self._running: asyncio.Task[T] | None = None
        self._next: asyncio.Task[T] | None = None

    async def begun_now(self) -> T:
        """Return what a run returns that began after this call; raise what it raised."""
        return await asyncio.shield(self._next or self._begin())

    def begin_if_idle(self) -> None:
        """Begin a run for nobody in particular, unless one is under way."""
        if self._next is None and (self._running is None or self._running.done()):
            self._begin()

    def _begin(self) -> asyncio.Task[T]:
        self._next = asyncio.get_running_loop().create_task(self._run(self._running))
        self._next.add_done_callback(_heard)
        return self._next

    async def _run(self, previous: asyncio.Task[T] | None) -> T:
        if previous is not None:
            await asyncio.wait([previous])
        # Whoever asks from here on asks too late for this one.
        self._running, self._next = self._next, None
        return await self._work()


def _heard(task: asyncio.Task[T]) -> None:
    """Take an error that nobody waits for any more."""
    if not task.cancelled():
        task.exception()
