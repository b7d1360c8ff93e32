"""Evens out a service's loads by itself, where its owner has said how uneven they may be."""

from __future__ import annotations

from collections.abc import Callable

from ray_route.clock import Deadline, now
from ray_route.controller.rebalancing import Rebalancer
from ray_route.runtime.waiting import Check

# Between looks: each asks all pods about all their uids. What was uneven at one may pass.
_EACH_S = 60.0
# So long a run lasts, at that rate; what is left then is for the next, two looks later.
_RUN_S = 60.0
_MOVES_PER_S = 20.0
_ASK_S = 30.0


class Evenness:
    """Keeps one service's loads even; who calls holds its controller's turn."""

    def __init__(self, rebalancer: Rebalancer, clock: Callable[[], float] = now) -> None:
        self._rebalancer = rebalancer
        self._clock = clock
        self._look_at = 0.0
        self._was_uneven = False

    @property
    def is_due(self) -> bool:
        """True if it is time to look again."""
        return self._clock() >= self._look_at

    def forget(self) -> None:
        """Take what was seen for past: the service has not been as it is wanted meanwhile."""
        self._was_uneven = False

    def look(self, tolerance: float, check: Check) -> None:
        """Even loads out, for a while, if they are uneven and were so at the look before.

        Raises what `check` raises, which ends a run, and what a rebalancing raises.
        """
        self._look_at = self._clock() + _EACH_S
        was_uneven, self._was_uneven = self._was_uneven, False
        is_uneven = bool(self._rebalancer.planned(tolerance, Deadline.after(_ASK_S)).moves)
        if is_uneven and was_uneven:
            self._rebalancer.run(tolerance, _MOVES_PER_S, Deadline.after(_RUN_S), check)
        else:
            self._was_uneven = is_uneven
