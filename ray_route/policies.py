"""What a deployed service's controller decides by itself, where its owner has said how."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ray_route.errors import InvalidInputError

DOWN_S = 300.0
"""For how long a service must have needed fewer pods before one goes, unless its owner says."""

_LIMITS = 2


@dataclass(frozen=True, slots=True)
class Autoscale:
    """How many pods a service is to have: `least` to `most`, as its load needs.

    One for every `target_uids` uids that pods hold, or for every `target_load` of the load that
    they report: one of these is None. A pod goes once fewer have been enough for `down_s` seconds.
    """

    least: int
    most: int
    target_uids: float | None
    target_load: float | None
    down_s: float

    @property
    def target(self) -> float:
        """What one pod is to have, of either."""
        target = self.target_load if self.target_uids is None else self.target_uids
        assert target is not None
        return target

    @property
    def unit(self) -> str:
        """What is counted."""
        return "load" if self.target_uids is None else "uids"


@dataclass(frozen=True, slots=True)
class Autoscaling:
    """How a service is scaled by its load just now.

    `desired` pods are to be there, the closed ones among them, and `why` says so; it is 0 until the
    controller has looked.
    """

    policy: Autoscale
    desired: int
    why: str


def sized(
    replicas: object, target_uids: object, target_load: object, down_s: object
) -> tuple[int, Autoscale | None]:
    """Return how many pods are wanted at least, and how more are, if the service is autoscaled.

    `replicas` is a number, or a pair of them: then one target is needed. Raises
    `InvalidInputError`.
    """
    targets = {"target_uids": target_uids, "target_load": target_load}
    given = {name: target for name, target in targets.items() if target is not None}
    if not isinstance(replicas, (tuple, list)):
        for name, target in {**given, **({"down_s": down_s} if down_s is not None else {})}.items():
            raise _refused(name, target, "goes with replicas=(min, max) alone")
        return check_at_least_one("replicas", replicas), None
    if len(replicas) != _LIMITS:
        raise _refused("replicas", replicas, "must be a number, or (min, max)")
    least, most = (check_at_least_one("replicas", limit) for limit in replicas)
    if least > most:
        raise _refused("replicas", replicas, "must be (min, max), the smaller number first")
    if len(given) != 1:
        raise _refused("replicas", replicas, "needs target_uids or target_load, one of them")
    limits = {name: _positive(name, target) for name, target in given.items()}
    down = _positive("down_s", DOWN_S if down_s is None else down_s)
    uids, load = (limits.get(name) for name in targets)
    return least, Autoscale(least, most, uids, load, down)


def size_facts(
    replicas: int, autoscale: Autoscale | None, tolerance: float | None
) -> dict[str, str]:
    """Return what is compared where a service that is there is deployed again, as it is given."""
    even = {"rebalance": f"{tolerance:g}"} if tolerance else {}
    if autoscale is None:
        return {"replicas": str(replicas), **even}
    target = {f"target_{autoscale.unit}": f"{autoscale.target:g}"}
    limits = {"replicas": f"({autoscale.least}, {autoscale.most})"}
    return {**limits, **target, "down_s": f"{autoscale.down_s:g}", **even}


def check_at_least_one(argument: str, count: object) -> int:
    """Return an integer of at least 1; raise `InvalidInputError` for anything else."""
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise _refused(argument, count, "must be an integer of at least 1")
    return count


def check_tolerance(argument: str, tolerance: object) -> float | None:
    """Return a tolerance, or None; raise `InvalidInputError` unless it is positive and finite."""
    return None if tolerance is None else _positive(argument, tolerance)


def _positive(argument: str, value: object) -> float:
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    if not (number > 0 and math.isfinite(number)):
        raise _refused(argument, value, "must be a positive, finite number")
    return float(number)


def _refused(argument: str, value: object, reason: str) -> InvalidInputError:
    return InvalidInputError(argument=argument, value=value, reason=reason)
