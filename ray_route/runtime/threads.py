"""Threads that run work, so many at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue

from ray_route.clock import Deadline

Work = Callable[[], object]

_STARTS_S = 1.0
_LOOK_S = 0.01


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
            if line.is_over or _ending.has_begun:
                raise RuntimeError("these threads have ended")
            _ending.see_to_it()
            if line.left >= self._started and self._started < self._at_once:
                self._start()
            line.left += 1
            line.queue.put(partial(function, *args))

    def _start(self) -> None:
        try:
            self._started += 1
            _Thread(self._line, f"{self._name}_{self._started}").start()
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
        # A daemon if it is begun by one, as threads that users' code starts in it will be then.
        super().__init__(name=name)
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


class _Ending:
    """Lets what has been begun come to its end before the process does.

    And before what is registered by `atexit` runs: users' work may need what that closes. So it is
    a thread for which the interpreter waits, and which waits for the main thread's end.
    """

    def __init__(self) -> None:
        self.has_begun = False
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def see_to_it(self) -> None:
        """Start that thread, if it is not there; raise `RuntimeError` if the system has none."""
        if self._is_seen_to():
            return
        with self._lock:
            if not self._is_seen_to():
                thread = threading.Thread(target=self._run, name="ray_route-end", daemon=False)
                thread.start()
                self._thread = thread

    def _is_seen_to(self) -> bool:
        return self._thread is not None and self._thread.is_alive()  # not after a fork

    def _run(self) -> None:
        threading.main_thread().join()
        self.has_begun = True
        # Those that are just being started are waited for, but not for ever: one whose start was
        # interrupted stays so.
        starting = Deadline.after(_STARTS_S)
        while there := [each for each in threading.enumerate() if isinstance(each, _Thread)]:
            for thread in there:
                thread.line.end()
                if thread.ident is not None:
                    thread.join()
            if all(thread.ident is None for thread in there):
                if not starting.remaining():
                    return
                time.sleep(_LOOK_S)


_ending = _Ending()
