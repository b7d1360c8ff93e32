"""Time as leases need it: one clock that never stops, and deadlines on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from ray_route.errors import RouteTimeoutError

Clock = Callable[[], float]

# Seconds on a clock that no one sets back and that counts a suspended machine's sleep: a lease
# must run out while its holder sleeps. `CLOCK_MONOTONIC` stands still during a suspend on Linux,
# so a laptop or a migrated VM would wake with its old leases in hand. A partial takes 60 ns,
# a function 90 ns.
now: Clock = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME)
    if hasattr(time, "CLOCK_BOOTTIME")
    else time.monotonic
)


# Beyond so many, a power of two is no float any more.
_MOST_DOUBLINGS = 100


def backoff_s(failures: int, first_s: float, most_s: float) -> float:
    """Return the seconds to wait after so many failures: twice as long each time, up to a limit."""
    return float(min(first_s * 2.0 ** min(failures, _MOST_DOUBLINGS), most_s))


# Of a timeout: leaves room for the way of the answer.
_SHORTER = 0.8


def shorter(timeout_s: float) -> float:
    """Return the timeout for whom one asks: it gives up first, so that the asker hears why."""
    return _SHORTER * timeout_s


class Deadline(NamedTuple):
    """A moment after which nobody waits any longer.

    Durations cross process borders, deadlines do not: clocks of two processes share no zero.
    """

    at: float
    timeout_s: float

    @classmethod
    def after(cls, timeout_s: float) -> Deadline:
        """Start a deadline `timeout_s` seconds from now."""
        return cls(now() + timeout_s, timeout_s)

    def remaining(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.at - now())

    def check(self, waiting_for: str) -> None:
        """Raise `RouteTimeoutError` once the deadline has passed."""
        if now() >= self.at:
            raise self.passed(waiting_for)

    def passed(self, waiting_for: str) -> RouteTimeoutError:
        """Make the error of who has waited until then by another clock, which may be ahead."""
        return RouteTimeoutError(waiting_for=waiting_for, timeout_s=self.timeout_s)
