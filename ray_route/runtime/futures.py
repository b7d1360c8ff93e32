"""Futures that whoever waits for them may be interrupted at, at any line.

Python's own are guarded by a `threading.Condition`. It is locked and unlocked by lines of Python,
and an interrupt there leaves it locked for ever: whoever settles the future hangs then, and with it
all whom that thread serves. An interrupt of its wait comes out as another error.
"""

from __future__ import annotations

import concurrent.futures
import threading
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


class _Guard(threading.Condition):
    """A condition whose `with` locks and unlocks by the lock's own methods: none is cut in two."""

    __enter__ = property(lambda self: self._lock.__enter__)  # pyright: ignore[reportAssignmentType]
    __exit__ = property(lambda self: self._lock.__exit__)  # pyright: ignore[reportAssignmentType]


class Outcome(Future[T]):
    """A future that an interrupt of those who wait for it leaves to all others as it is."""

    def __init__(self) -> None:
        super().__init__()
        self._condition.__class__ = _Guard  # another one would take as long to make as all of this

    def result(self, timeout: float | None = None) -> T:
        """Do as any future does; wait at a lock of one's own."""
        if not self.done():
            settled = threading.Lock()
            settled.acquire()
            self.add_done_callback(lambda _: settled.release())
            if not settled.acquire(timeout=-1 if timeout is None else timeout):
                raise concurrent.futures.TimeoutError
        return super().result(0)
