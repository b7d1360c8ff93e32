"""Pods that joined late get their share of new uids, not all of them.

The least loaded pod is the one that has just come: each new uid of the service would go there until
it holds what the others hold, at the rate of the whole service, and to one whose caches are cold.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import dataclass

from ray_route.model import PodRecord

_SHARES = 2.0
"""How many equal shares of the new uids a pod gets at most while it ramps."""
_MOST_DUE = 2.0
_WHOLE = 1 - 1e-9
_TOGETHER_US = 2_000_000
"""Pods that began within so long of the first one have joined together."""


@dataclass(slots=True)
class _Late:
    """A pod that ramps: its limit, a share of all, and how much of that it has not had yet."""

    pod: int
    incarnation: int
    limit: float = 1.0
    due: float = 1.0
    load: float = 0.0
    held_back: bool = False

    def look(self, load: MutableMapping[int, float]) -> None:
        """Let the pod take its turn, or show it as full."""
        held_back = self.due < _WHOLE
        if held_back and not self.held_back:
            self.load, load[self.pod] = load[self.pod], math.inf
        elif self.held_back and not held_back:
            load[self.pod] = self.load
        self.held_back = held_back


class Ramp:
    """The pods of one service that ramp just now."""

    def __init__(self, late: Iterable[_Late]) -> None:
        self._late = list(late)

    def look(self, load: MutableMapping[int, float]) -> None:
        """Show each pod with its load, or as full, before the next uid is placed."""
        for late in self._late:
            late.look(load)

    def took(self, pod: int) -> None:
        """Count a uid that is placed on a pod."""
        for late in self._late:
            late.due = min(late.due + late.limit, _MOST_DUE)
            if late.pod == pod:
                late.due -= 1
                late.load += 1

    def end(self, load: MutableMapping[int, float]) -> None:
        """Show all with their loads again."""
        for late in self._late:
            if late.held_back:
                load[late.pod], late.held_back = late.load, False


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of a service's pods, as long as these are the same."""

    pods: Sequence[PodRecord]
    late: dict[int, _Late]
    ramp: Ramp | None


class Ramps:
    """Which pods ramp, by service. Ages are told by the server's clock alone.

    A life's number is the time of its beginning, and heartbeats tell what time it is. For `ramp_s`
    a pod that began later than the first gets twice an equal share at most, and in as much time
    again that limit is lifted, little by little. A router that is made anew counts anew.
    """

    def __init__(self, ramp_s: float) -> None:
        self._ramp_us = ramp_s * 1e6
        self._known: dict[str, _Known] = {}

    def of(self, service: str, pods: Sequence[PodRecord]) -> Ramp | None:
        """Return those of the available pods that ramp; None if none does.

        As long as `pods` is the same object, no pod is looked at.
        """
        known = self._known.get(service)
        if known is None or known.pods is not pods:
            late = self._late(known.late if known else {}, pods)
            ramp = Ramp(late.values()) if late else None
            known = self._known[service] = _Known(pods, late, ramp)
        return known.ramp

    def _late(self, known: dict[int, _Late], pods: Sequence[PodRecord]) -> dict[int, _Late]:
        first = min(pod.incarnation for pod in pods)
        now = max(pod.heartbeat_us for pod in pods)
        late: dict[int, _Late] = {}
        for pod in pods:
            limit = self._limit(now - pod.incarnation, len(pods))
            if pod.incarnation > first + _TOGETHER_US and limit < 1:
                held = known.get(pod.pod)
                if held is None or held.incarnation != pod.incarnation:
                    held = _Late(pod.pod, pod.incarnation)
                held.limit, late[pod.pod] = limit, held
        return late

    def _limit(self, age_us: int, pods: int) -> float:
        share = _SHARES / pods
        over = age_us / self._ramp_us - 1 if self._ramp_us else 1.0
        return min(1.0, share + (1 - share) * max(0.0, over))
