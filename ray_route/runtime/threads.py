"""Threads that run work, so many at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue

Work = Callable[[], object]

_LOOK_S = 0.01
_ENDS = "ray_route-end"


@dataclass(eq=False, slots=True)
class _Line:
    """Work that is queued for some threads. It is all that they have of who queues it."""

    queue: SimpleQueue[Work | None] = field(default_factory=SimpleQueue)
    lock: threading.Lock = field(default_factory=threading.Lock)
    threads: int = 0
    """How many there are; after interrupts fewer than there are."""
    left: int = 0
    """So much work waits, or runs."""
    is_over: bool = False

    def end(self) -> None:
        """Take no more; threads end once they have run what there is.

        Without the lock: this may come in the midst of anything.
        """
        self.is_over = True
        self.queue.put(None)

    def lets_go(self, *, ran: bool) -> bool:
        """Say whether a thread is to end, which has run something, begins, or was woken for this.

        Not if there is as much work as there are threads: then some of it waits for this one.
        """
        with self.lock:
            self.left = max(self.left - ran, 0)
            is_spare = self.left < max(self.threads, 1)
            ends = is_spare and (self.is_over or _ending.has_begun)
            self.threads -= ends
        if ends:
            self.queue.put(None)  # for the next thread
        return ends


class Threads:
    """Threads that stay, until this is dropped; each is started before there is work for it.

    What they have been given comes to its end before the process does. Python's own pool, a
    `ThreadPoolExecutor`, queues work first: its `submit` may raise, since the system has no more
    threads, and a thread that is there runs the work all the same. Nor has it any once the main
    thread has ended, be there others by which the process lives.
    """

    def __init__(self, at_once: int, name: str) -> None:
        self._at_once = at_once
        self._name = name
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
            _ending.see_to_it()
            if line.left >= line.threads and line.threads < self._at_once:
                self._start()
            line.queue.put(partial(function, *args))
            line.left += 1  # last: an interrupt before must leave no work to wait for

    def _start(self) -> None:
        line = self._line
        try:
            line.threads += 1
            _Thread(line, f"{self._name}_{line.threads}").start()
        except BaseException:
            # After an interrupt there may be one too many: that is better than none for ever.
            line.threads -= 1
            raise

    def end(self) -> None:
        """Begin no more; what runs goes on."""
        with self._line.lock:  # of what is being begun all are told
            self._line.end()

    def __del__(self) -> None:
        with suppress(AttributeError):  # of what was never made
            self._line.end()


class _Thread(threading.Thread):
    """Runs what is queued until that is over."""

    def __init__(self, line: _Line, name: str) -> None:
        # A daemon if it is begun by one, as threads that users' code starts in it will be then.
        super().__init__(name=name)
        self.line = line

    def run(self) -> None:
        ran = False
        while not self.line.lets_go(ran=ran):
            work = self.line.queue.get()
            ran = work is not None
            if work is not None:
                with suppress(BaseException):
                    work()
            del work  # and all that it refers to: the next one may be long in coming


class _Ending:
    """Lets what has been begun come to its end before the process does.

    And before what is registered by `atexit` runs: users' work may need what that closes. So it is
    a thread for which the interpreter waits. It waits for the main thread, for all others for which
    the interpreter does, since they may have more to begin, and for what was begun.
    """

    def __init__(self) -> None:
        self.has_begun = False
        """From then on threads end as soon as they have nothing to do."""
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def see_to_it(self) -> None:
        """Start that thread, if it is not there; raise `RuntimeError` if the system has none."""
        if self._is_seen_to():
            return
        with self._lock:
            if not self._is_seen_to():
                self._thread = threading.Thread(target=self._run, name=_ENDS, daemon=False)
                self._thread.start()

    def _is_seen_to(self) -> bool:
        return self._thread is not None and self._thread.is_alive()  # not after a fork

    def _run(self) -> None:
        threading.main_thread().join()
        while self._waits():
            pass
        self.has_begun = True
        while there := list(_pooled()):
            for each in there:
                each.line.queue.put(None)
            time.sleep(_LOOK_S)

    def _waits(self) -> bool:
        """Wait for something that may have more begun; False if there is nothing."""
        for each in _running():
            # Of those that end all there are two after an interrupt: neither waits for the other.
            is_ours = isinstance(each, _Thread) or each.name == _ENDS
            if not (is_ours or each.daemon or each is threading.main_thread()):
                with suppress(RuntimeError):  # it is just being started
                    threading.Thread.join(each)  # its own may do more than wait
                return True
        if any(each.line.left for each in _pooled()):
            time.sleep(_LOOK_S)
            return True
        return False


def _running() -> Iterator[threading.Thread]:
    """Give all threads but those that may never run: the start of one may have been interrupted."""
    return (each for each in threading.enumerate() if each.ident is not None)


def _pooled() -> Iterator[_Thread]:
    main = threading.main_thread()  # one of them is, in a process that was forked in it
    return (each for each in _running() if isinstance(each, _Thread) and each is not main)


_ending = _Ending()
