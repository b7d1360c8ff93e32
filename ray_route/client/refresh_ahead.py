"""Reading links in use again before their leases end, so that nobody waits for Redis.

In the background, a few at a time between other work, and not at the same moment in all processes.
A link that was not asked for since it was read is let go.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial

from ray_route.clock import now
from ray_route.state.link_cache import LinkCache

Put = Callable[[Callable[[], None]], None]
Read = Callable[[str, Sequence[str]], None]

# Shares of the longest lease: how often is looked, and how long before its end a link is read
# again. So there are some looks in which one that could not be read may be.
_PERIOD = 1 / 16
_AHEAD = 0.4
_JITTER = 0.3
# What one step takes on is a few ms of work: look-ups wait no longer for the thread.
_SLOTS_PER_STEP = 5_000
_UIDS_PER_READ = 500


class RefreshAhead:
    """Looks through the near cache. `read` reads uids of one service again, in the worker."""

    def __init__(
        self, near: LinkCache, lease_s: float, put: Put, may_read: Callable[[], bool], read: Read
    ) -> None:
        self._near = near
        self._lease_s = lease_s
        self._put = put
        self._may_read = may_read
        self._read = read
        self._is_looking = False

    def period_s(self) -> float:
        """Seconds until the next look, a little different each time."""
        return _PERIOD * self._lease_s * random.uniform(1 - _JITTER, 1)  # noqa: S311 - no secret

    def look(self) -> None:
        """Begin to look through all links, unless that is still under way."""
        if not self._is_looking:
            self._look_from(0)

    def _look_from(self, slot: int) -> None:
        self._is_looking = slot < self._near.slots and self._may_read()
        if not self._is_looking:
            return
        due = self._near.due(slot, _SLOTS_PER_STEP, now() + _AHEAD * self._lease_s)
        for service, uids in due.items():
            self._read_soon(service, uids)
        self._put(partial(self._look_from, slot + _SLOTS_PER_STEP))

    def _read_soon(self, service: str, uids: Sequence[str]) -> None:
        for start in range(0, len(uids), _UIDS_PER_READ):
            self._put(partial(self._read, service, uids[start : start + _UIDS_PER_READ]))
