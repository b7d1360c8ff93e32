"""How threads that wait for something to do are woken."""

from __future__ import annotations

import threading


class Bell:
    """Wakes one thread. Rung many times before that looks, it has been rung once.

    Each thread has a bell of its own: to wake one that has nothing to do costs those that have.
    """

    def __init__(self, lock: threading.Lock) -> None:
        self._rung = threading.Condition(lock)
        self._times = 0

    def ring(self) -> None:
        """Let whoever waits go on; `lock` is held."""
        self._times += 1
        self._rung.notify_all()

    def wait(self, known: int, seconds: float) -> int:
        """Return when it has been rung, or so many seconds later.

        Returns how often it has been rung by then; whoever comes again names that as `known`.
        """
        with self._rung:
            self._rung.wait_for(lambda: self._times != known, seconds)
            return self._times
