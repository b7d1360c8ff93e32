"""What the clock of a Redis server may show: how a step of it is noticed before it does harm.

Links end by the server's clock, the leases that are given on them by the clocks of their holders,
`margin_s` earlier. A server's clock that steps forward ends links whose holders still serve: if the
router placed their uids anew, two pods would have them. So the router tells each script how late
it may be at most, and one that finds it later changes nothing. No I/O here.

Of `margin_s` a step may use up three quarters unnoticed within a link's life: a half at once, and a
quarter by and by, as clocks run apart; the last quarter is for the way of an answer.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence

from ray_route.clock import Clock, now
from ray_route.config import RouteConfig
from ray_route.store.links import ANY_TIME_US

logger = logging.getLogger(__name__)

_AT_ONCE = 1 / 2
_BY_AND_BY = 1 / 4


class ServerClock:
    """The clock of one server, as an offset to our own: the lowest seen lately.

    That of an answer is known but for its way: it lies between the server's time less the moment
    at which it was received, and less the moment at which it was asked for.
    """

    def __init__(self, config: RouteConfig, clock: Clock = now) -> None:
        self._clock = clock
        self._slack_s = _AT_ONCE * config.margin_s
        self._drift_s = _BY_AND_BY * config.margin_s
        self._life_s = config.ttl_s
        self._offset_s: float | None = None
        self._seen_at = -math.inf
        self.stepped_to_s: float | None = None
        """Where the clock was found to have stepped to, until that is believed."""

    def latest_us(self) -> int:
        """The latest time, in microseconds, that a script sent now may find."""
        if self._offset_s is None:
            return ANY_TIME_US
        return int((self._clock() + self._offset_s + self._slack_s) * 1e6)

    def showed(self, time_us: int) -> None:
        """Take in what an earlier router wrote down that it showed; not if more is known."""
        if self._offset_s is None:
            self._seen_at = self._clock()
            self._offset_s = time_us / 1e6 - self._seen_at

    def shows(self, time_us: int, asked_at: float) -> bool:
        """Take in an answer to what was asked at `asked_at`; True if the clock has stepped forward.

        It is said again until `believe`. An answer that is only late is no step.
        """
        at, time_s = self._clock(), time_us / 1e6
        highest = time_s - asked_at
        known = highest if self._offset_s is None else self._offset_s + self._drifted_s(at)
        has_stepped = time_s - at > known + self._slack_s
        self._offset_s, self._seen_at = min(known, highest), at
        self.stepped_to_s = highest if has_stepped else None
        return has_stepped

    def _drifted_s(self, at: float) -> float:
        return self._drift_s * min(1.0, (at - self._seen_at) / self._life_s)

    def believe(self, stepped_to_s: float | None) -> None:
        """Go by a step that was found: what it may have ended has been written back.

        One that was found since, and leads further, is told by the next answer.
        """
        if stepped_to_s is None or self._offset_s is None:
            return
        step_s = stepped_to_s - self._offset_s
        logger.error("the clock of Redis showed %.3f s more than it could", step_s)
        self._offset_s, self.stepped_to_s = stepped_to_s, None


class ServerClocks:
    """The clocks behind all shards: one, or that of each shard's server in a Cluster."""

    def __init__(self, config: RouteConfig, shards: int, *, is_cluster: bool) -> None:
        self._clocks = [ServerClock(config) for _ in range(shards if is_cluster else 1)]

    def of(self, shard: int) -> ServerClock:
        """Return the clock of a shard's server."""
        return self._clocks[shard % len(self._clocks)]

    def showed(self, time_us: int) -> None:
        """See `ServerClock.showed`; the servers of a Cluster are thought to agree then."""
        for clock in self._clocks:
            clock.showed(time_us)

    def steps(self, shards: Iterable[int]) -> list[float | None]:
        """Where the clocks of some shards have stepped to, for `believe`."""
        found = {self.of(shard) for shard in shards}
        return [clock.stepped_to_s if clock in found else None for clock in self._clocks]

    def believe(self, steps: Sequence[float | None]) -> None:
        """See `ServerClock.believe`."""
        for clock, stepped_to_s in zip(self._clocks, steps, strict=False):
            clock.believe(stepped_to_s)
