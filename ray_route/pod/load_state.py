"""The load that a pod reports: what its code says, and the calls that run."""

from __future__ import annotations

import math

from ray_route.errors import InvalidInputError


class LoadState:
    """A load in units of one uid. `cpu_factor` is the weight of running calls, 0 to 1."""

    def __init__(self, cpu_factor: float) -> None:
        if not 0 <= cpu_factor <= 1:
            raise InvalidInputError(
                argument="cpu_factor", value=cpu_factor, reason="must be between 0 and 1"
            )
        self._cpu_factor = cpu_factor
        self._reported: float | None = None

    def report(self, load: float | None) -> None:
        """Take in what the pod's code says; None: the number of its uids."""
        self._reported = checked_load(load)

    def weighted(self, uids: int, running: int) -> float:
        """Return the load of a pod with so many uids and running calls."""
        state = float(uids) if self._reported is None else self._reported
        return self._cpu_factor * running + (1 - self._cpu_factor) * state


def checked_load(load: float | None) -> float | None:
    """Return a load that user code reports; raise `InvalidInputError` for what is none."""
    if load is None:
        return None
    try:
        number = float(load)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        reason = "must be a finite number from 0 on"
        raise InvalidInputError(argument="load", value=load, reason=reason)
    return number
