"""Threads that run work, so many at a time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

Work = Callable[[], object]


class Threads:
    """Python's own, but what could not be begun never runs.

    `ThreadPoolExecutor.submit` queues work before it starts a thread for it. So it may raise, since
    the system has no more threads, and a thread that is there runs the work all the same.
    """

    def __init__(self, at_once: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix=name)

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


def _run(work: list[Work]) -> None:
    if function := _taken(work):
        function()


def _taken(work: list[Work]) -> Work | None:
    """Take the only piece of work; None if that is gone. Whoever has it decides about it."""
    try:
        return work.pop()
    except IndexError:
        return None
