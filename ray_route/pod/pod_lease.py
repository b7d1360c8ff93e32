"""A pod's lease: the right of one incarnation to serve, on its own clock."""

from __future__ import annotations

import math

from ray_route.clock import Clock, now

# A pod stops this much before the router may call its lease ended, whatever their clocks' rates.
_LEASE_SHARE = 0.9


class PodLease:
    """One incarnation's right to serve. Belongs to `Holdings`, whose lock guards it."""

    def __init__(
        self, incarnation: int, lease_s: float, asked_at: float, clock: Clock = now
    ) -> None:
        self.incarnation = incarnation
        self._lease_s = lease_s * _LEASE_SHARE
        self._clock = clock
        self._ended = False
        self._deadline = asked_at + self._lease_s

    def serves(self) -> bool:
        """True until it has run out, counted from before the last renewal was sent."""
        return self._clock() < self._deadline

    def extend(self, asked_at: float) -> None:
        """Let it run from `asked_at`, unless it has ended for ever."""
        if not self._ended:
            self._deadline = max(self._deadline, asked_at + self._lease_s)

    def suspend(self) -> None:
        """Let it serve nobody until it is extended."""
        self._deadline = -math.inf

    def end(self) -> None:
        """End it for ever."""
        self._ended, self._deadline = True, -math.inf
