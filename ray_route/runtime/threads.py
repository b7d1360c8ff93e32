"""Threads that run work, so many at a time."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue

Work = Callable[[], object]


@dataclass(eq=False, slots=True)
class _Line:
    """Work that is queued for some threads. It is all that they have of who queues it."""

    queue: SimpleQueue[Work | None] = field(default_factory=SimpleQueue)
    lock: threading.Lock = field(default_factory=threading.Lock)
    left: int = 0
    """So much of it waits, or runs."""
    is_over: bool = False

    def end(self) -> None:
        """Take no more; threads end once they have run what there is."""
        with self.lock:
            self.is_over = True
            self.queue.put(None)


class Threads:
    """Threads that stay, until this is dropped; each is started before there is work for it.

    What they have been given comes to its end before the process does. Python's own pool, a
    `ThreadPoolExecutor`, queues work first: its `submit` may raise, since the system has no more
    threads, and a thread that is there runs the work all the same.
    """

    def __init__(self, at_once: int, name: str) -> None:
        self._at_once = at_once
        self._name = name
        self._started = 0
        self._line = _Line()

    def begin(self, function: Callable[..., object], *args: object) -> None:
        """Have a function called soon; what it returns or raises nobody hears.

        Raises `RuntimeError`, and never calls it, if these threads have ended, or if the system has
        none for it.
        """
        line = self._line
        with line.lock:
            if line.is_over:
                raise RuntimeError("these threads have ended")
            if line.left >= self._started and self._started < self._at_once:
                self._start()
            line.left += 1
            line.queue.put(partial(function, *args))

    def _start(self) -> None:
        thread = _Thread(self._line, f"{self._name}_{self._started}")
        self._started += 1
        try:
            thread.start()
        except BaseException:
            # After an interrupt there may be one too many: that is better than none for ever.
            self._started -= 1
            raise

    def end(self) -> None:
        """Begin no more; what runs goes on."""
        self._line.end()

    def __del__(self) -> None:
        with suppress(AttributeError):  # of what was never made
            # Without the lock: this may come in the midst of anything, and nobody begins any more.
            self._line.queue.put(None)


class _Thread(threading.Thread):
    """Runs what is queued until that is over."""

    def __init__(self, line: _Line, name: str) -> None:
        super().__init__(name=name, daemon=True)  # the process ends though it waits for work
        self.line = line

    def run(self) -> None:
        line = self.line
        while (work := line.queue.get()) is not None:
            with suppress(BaseException):
                work()
            del work  # and all that it refers to: the next one may be long in coming
            with line.lock:
                line.left -= 1
        line.queue.put(None)  # for the next thread


@atexit.register
def _end_all() -> None:
    """Let what has been begun come to its end before the process does."""
    while there := [each for each in threading.enumerate() if isinstance(each, _Thread)]:
        for thread in there:
            thread.line.end()
        for thread in there:
            thread.join()
