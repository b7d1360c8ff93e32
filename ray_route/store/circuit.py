"""Failing fast while the store is known to be down.

Each attempt at a store that does not answer costs seconds, so once one has failed, with all its
retries, others fail at once, and one now and then is let through to look.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ray_route.clock import Clock, now
from ray_route.errors import StoreUnavailableError

PROBE_S = 0.25


class Circuit:
    """Closed while the store answers. Thread-safe; `clock` is injected by tests."""

    # pybreaker's asyncio half needs Tornado, and counts by calls where this goes by time.

    def __init__(self, clock: Clock = now) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._last: StoreUnavailableError | None = None
        self._probe_at = 0.0
        self._probing = False

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Wrap one attempt; raise the last `StoreUnavailableError` at once while it is open."""
        probing = self._enter()
        try:
            yield
        except StoreUnavailableError as error:
            self._fail(error)
            raise
        else:
            self._last = None
        finally:
            if probing:
                self._probing = False

    def _enter(self) -> bool:
        """Return whether this attempt is the one that looks."""
        if self._last is None:  # without the lock: the common case, and 0.1 µs
            return False
        with self._lock:
            self._refuse()
            self._probing = self._last is not None
            return self._probing

    def check(self) -> None:
        """Raise if an attempt would be refused now."""
        with self._lock:
            self._refuse()

    def _refuse(self) -> None:
        last = self._last
        if last is not None and (self._probing or self._clock() < self._probe_at):
            raise StoreUnavailableError(address=last.address, reason=last.reason)

    def _fail(self, error: StoreUnavailableError) -> None:
        with self._lock:
            self._last = error
            self._probe_at = self._clock() + PROBE_S
