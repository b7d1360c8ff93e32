"""Works of the user's code, one after the other: none waits for one that hangs."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable

SOON_S = 0.2
"""A state that is not written or read within so many seconds is slow: nobody waits for it."""


def run_in_line(works: Iterable[Callable[[], None]], soon_s: float = SOON_S) -> None:
    """Run works, which raise nothing, in a thread; return when each has ended or is slow.

    One that has not ended after `soon_s` seconds, or twice that, goes on by itself, and those
    behind it in another thread.
    """
    todo = deque(works)
    while todo:
        _Line(todo).follow(soon_s)


class _Line:
    """One thread, which takes works until there are none, or it is left behind."""

    def __init__(self, todo: deque[Callable[[], None]]) -> None:
        self._todo = todo
        self._taken = 0
        self._is_left = False
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="ray_route-states", daemon=True).start()

    def _run(self) -> None:
        try:
            while self._todo and not self._is_left:
                self._taken += 1
                self._todo.popleft()()
        finally:
            self._ended.set()

    def follow(self, soon_s: float) -> None:
        """Return when the thread has ended, or is at one work for long."""
        taken = -1
        while not self._ended.wait(soon_s):
            if self._taken == taken:
                self._is_left = True
                return
            taken = self._taken
