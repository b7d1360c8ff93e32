"""How many pods a service needs: from loads and a clock alone, without I/O.

More are wanted at once. Fewer only after the highest load of a while, so that a load that falls
and rises again within that ends nobody; and only if what is left has some room.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from ray_route.clock import now
from ray_route.policies import Autoscale

# Pods that are left when one goes are to be filled no more than so.
_ROOM = 0.9
_EPSILON = 1e-9


@dataclass(frozen=True, slots=True)
class Seen:
    """What pods a service has: `loads` are those of the pods that take new uids, or are to come.

    `closed` counts the others, which are nobody's to judge; `leaving` is the load of a pod that is
    just being left for these. While pods are `stuck`, as they do not start, more would be, too.
    """

    loads: Mapping[int, float]
    closed: int = 0
    leaving: float = 0.0
    stuck: Collection[int] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """How many pods are `desired`; so many `more` are to be made, or `leave` is to go."""

    desired: int
    why: str
    more: int = 0
    leave: int | None = None


class Judge:
    """Judges one service's loads, as it is told them; remembers the highest of a while."""

    def __init__(self, clock: Callable[[], float] = now) -> None:
        self._clock = clock
        self._since = math.inf
        self._peaks: deque[tuple[float, float]] = deque()
        """Times and loads, each load higher than all later ones."""

    def forget(self) -> None:
        """Begin anew, where nothing is known of a while: that is no proof of little load."""
        self._since = math.inf
        self._peaks.clear()

    def judge(self, policy: Autoscale, seen: Seen) -> Verdict:
        """Say what is to be done about what was seen just now."""
        total, there = sum(seen.loads.values()) + seen.leaving, len(seen.loads)
        peak = self._highest(total, policy.down_s)
        most = max(0, policy.most - seen.closed)
        need = math.ceil(min(total / policy.target, 2.0 * policy.most + 1) - _EPSILON)
        desired = min(max(need, policy.least), most)
        why = _why(policy, seen, total, need, desired)
        if desired > there:
            return _grown(policy, seen, desired, why)
        if there > most or (there > policy.least and self._fits(policy, peak, there - 1)):
            return Verdict(desired + seen.closed, why, leave=_emptiest(seen.loads))
        waits = f"; fewer once {policy.down_s:g} s have needed no more" if there > desired else ""
        return Verdict(there + seen.closed, why + waits)

    def _highest(self, total: float, within_s: float) -> float:
        """Take in a load; return the highest within that time."""
        at = self._clock()
        self._since = min(self._since, at)
        while self._peaks and self._peaks[-1][1] <= total:
            self._peaks.pop()
        self._peaks.append((at, total))
        while len(self._peaks) > 1 and self._peaks[0][0] < at - within_s:
            self._peaks.popleft()
        return self._peaks[0][1]

    def _fits(self, policy: Autoscale, peak: float, pods: int) -> bool:
        """True if so many pods would have been enough, with some room, for long enough."""
        is_known = self._clock() - self._since >= policy.down_s
        return is_known and peak <= _ROOM * policy.target * pods + _EPSILON


def _grown(policy: Autoscale, seen: Seen, desired: int, why: str) -> Verdict:
    there = len(seen.loads)
    if seen.stuck:
        desired = max(there, min(desired, policy.least))
        why += f"; no more are made while pods {sorted(seen.stuck)} do not start"
    return Verdict(desired + seen.closed, why, more=desired - there)


def _emptiest(loads: Mapping[int, float]) -> int:
    return min(loads, key=lambda pod: (loads[pod], -pod))


def _why(policy: Autoscale, seen: Seen, total: float, need: int, desired: int) -> str:
    what = f"{total:.6g} of load needs" if policy.unit == "load" else f"{total:.0f} uids need"
    needed = f"{need} pods" if need <= policy.most else f"more than {policy.most} pods"
    limit = f", within {policy.least} to {policy.most}" if need != desired else ""
    closed = f"; {seen.closed} closed ones are left alone" if seen.closed else ""
    return f"{what} {needed} of {policy.target:g} each{limit}{closed}"
