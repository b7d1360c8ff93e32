"""Threads that run work, so many at a time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from queue import Empty
from typing import Any

Work = Callable[[], object]


class Threads:
    """Python's own, but what could not be begun never runs.

    `ThreadPoolExecutor.submit` queues work before it starts a thread for it. So it may raise, since
    the system has no more threads, and a thread that is there runs the work all the same.
    """

    def __init__(self, at_once: int, name: str) -> None:
        self._pool = _Pool(at_once, thread_name_prefix=name)

    def begin(self, function: Callable[..., object], *args: object) -> None:
        """Have a function called soon; what it returns or raises nobody hears.

        Raises `RuntimeError`, and never calls it, if these threads have ended, or if the system has
        none for it.
        """
        work: list[Work] = [partial(function, *args)]
        try:
            self._pool.submit(_run, work)
        except RuntimeError:
            if _taken(work):  # else a thread that was there has it by now
                raise

    def end(self) -> None:
        """Begin no more; what runs goes on."""
        self._pool.shutdown(wait=False)


class _Pool(ThreadPoolExecutor):
    """Python's own, but work for which no thread could be started leaves nothing behind.

    Up to Python 3.11 the thread that takes it out counts as idle once more, for ever: for each such
    piece of work a later one waits behind others instead of being run beside them.
    """

    def _adjust_thread_count(self) -> None:
        try:
            super()._adjust_thread_count()
        except RuntimeError:
            if not self._last_is_taken_back():
                # A thread that counted as idle before it took it will do so again.
                self._idle_semaphore.acquire(blocking=False)
            raise

    def _last_is_taken_back(self) -> bool:
        """Take the last work out of the queue: whoever submits holds the locks for that."""
        left: list[Any] = []
        with suppress(Empty):
            while True:
                left.append(self._work_queue.get_nowait())
        last = next((it for it in reversed(left) if it is not None), None)
        for it in left:
            if it is not last or it is None:
                self._work_queue.put(it)
        return last is not None


def _run(work: list[Work]) -> None:
    if function := _taken(work):
        function()


def _taken(work: list[Work]) -> Work | None:
    """Take the only piece of work; None if that is gone. Whoever has it decides about it."""
    try:
        return work.pop()
    except IndexError:
        return None
