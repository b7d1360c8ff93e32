"""A thread that does, one after the other, what others put before it.

No signal reaches it, since Python interrupts the main thread alone. So what is begun here is
brought to its end, whoever was interrupted while he waited for it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import cache
from queue import Empty, SimpleQueue

from ray_route.clock import now

logger = logging.getLogger(__name__)

Work = Callable[[], None]


class Worker:
    """Does work in the order in which it is put. Thread-safe; `stop` ends it."""

    def __init__(self, name: str) -> None:
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        self._duties: list[_Duty] = []
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, work: Work) -> None:
        """Have something done soon."""
        self._queue.put(work)

    def every(self, period_s: Callable[[], float], work: Work) -> None:
        """Have something done again and again; asks each time how many seconds until the next."""
        self.put(lambda: self._duties.append(_Duty(period_s, work)))

    def stop(self, timeout_s: float) -> None:
        """Do no more than what was put before; wait for that for so many seconds."""
        self._queue.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            work = self._next()
            if work is None:
                return
            try:
                work()
            except BaseException:
                logger.exception("%r failed", work)

    def _next(self) -> Work | None:
        """Wait for what is to be done next: a duty that is due, or else what was put."""
        if not self._duties:
            return self._queue.get()
        duty = min(self._duties, key=_Duty.is_due_at)
        try:
            pause_s = duty.due_at - now()
            return self._queue.get(timeout=pause_s) if pause_s > 0 else duty.do
        except Empty:
            return duty.do


class _Duty:
    """Something that is to be done now and then."""

    def __init__(self, period_s: Callable[[], float], work: Work) -> None:
        self._period_s = period_s
        self._work = work
        self.due_at = now() + period_s()

    def is_due_at(self) -> float:
        return self.due_at

    def do(self) -> None:
        self.due_at = now() + self._period_s()
        self._work()


@cache
def beginner() -> Worker:
    """Return a thread of this process that begins others; what it does must not block.

    To start a thread takes locks that lines of Python lock and unlock. Who is interrupted there
    leaves them locked, and those of a pool of threads are the locks of all pools of the process.
    """
    return Worker("ray_route-begin")
