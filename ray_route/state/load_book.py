"""The load of each pod: what it reported, and what has been placed there since."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import isfinite

from ray_route.model import PodRecord
from ray_route.placement import Loads

# How long a new link may take to reach its pod, and to be counted there: its first call may have to
# wait, and a pod that is slow to take calls is the last that should get more of them.
_ARRIVAL_US = 10_000_000


@dataclass(slots=True)
class _Count:
    incarnation: int
    expected: float = 0.0
    heartbeat_us: int = 0
    proposed: int = 0
    placed: list[int] = field(default_factory=list)
    links: int = 0

    @property
    def load(self) -> float:
        """Load now."""
        return self.expected + len(self.placed) + self.proposed


@dataclass(frozen=True, slots=True)
class _Ranked:
    """Some pods' loads in order, and how to find those pods' counts."""

    pods: Sequence[PodRecord]
    loads: Loads
    records: dict[int, PodRecord]


class LoadBook:
    """Exact load per pod: what it reported, plus what was placed there since that report.

    "Since" is decided by Redis time on both sides: a new link's epoch is at least Redis `TIME`
    in microseconds, and so is the heartbeat that carried the report.

    A link may not have reached its pod by the next report, nor by the one after. It counts on for
    ten seconds, as long as the pod reports fewer than it should have: else placements would crowd,
    once a heartbeat, on the pod that has just reported, and on the one that is slowest.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[str, int], _Count] = {}
        self._ranked: dict[str, _Ranked] = {}

    def load(self, service: str, pods: Iterable[PodRecord]) -> dict[int, float]:
        """Load of each of the pods now."""
        return {pod.pod: self._of(service, pod).load for pod in pods}

    def ranked(self, service: str, pods: Sequence[PodRecord]) -> Loads:
        """Load of each of the available pods now, and the pods in order of it.

        As long as `pods` is the same object, only pods are looked at whose load has changed. What
        the caller writes there counts until the next time.
        """
        ranked = self._ranked.get(service)
        if ranked is None or ranked.pods is not pods:
            ranked = self._ranked[service] = self._rank(service, pods)
        loads = ranked.loads
        for index in list(loads.stale):
            load = self._of(service, ranked.records[index]).load
            if load != loads[index]:
                loads[index] = load
        loads.stale.clear()
        return loads

    def _rank(self, service: str, pods: Sequence[PodRecord]) -> _Ranked:
        nodes = {pod.pod: pod.node for pod in pods}
        loads = Loads(self.load(service, pods), nodes, service)
        return _Ranked(pods, loads, {pod.pod: pod for pod in pods})

    def links(self, service: str, pod: PodRecord) -> int:
        """Links of this incarnation: its load when this router first saw it, and all since."""
        return self._of(service, pod).links

    def report(self, service: str, pod: PodRecord) -> None:
        """Take in the load that came with a heartbeat."""
        count = self._of(service, pod)
        if not count.heartbeat_us and isfinite(pod.load):  # an earlier router placed those
            count.links = max(count.links, round(pod.load))
        count.placed.sort()  # shards count for themselves, so it is only almost sorted
        before = bisect_right(count.placed, pod.heartbeat_us)
        late = before - bisect_right(count.placed, pod.heartbeat_us - _ARRIVAL_US, hi=before)
        if pod.heartbeat_us > count.heartbeat_us:
            unreported = max(0, min(late, count.expected + before - pod.load))
            count.expected = pod.load
            del count.placed[: before - int(unreported)]
        count.heartbeat_us = pod.heartbeat_us
        self._changed(service, pod.pod)

    def propose(self, service: str, pod: PodRecord, links: int) -> None:
        """Count links that are being written, until `settle`."""
        self._of(service, pod).proposed += links
        self._changed(service, pod.pod)

    def settle(self, service: str, pod: PodRecord, links: int) -> None:
        """Stop counting proposals; those that were written are counted by `placed`."""
        count = self._counts.get((service, pod.pod))
        if count is not None and count.incarnation == pod.incarnation:
            count.proposed = max(0, count.proposed - links)
            self._changed(service, pod.pod)

    def placed(self, service: str, pod: PodRecord, epochs: Sequence[int]) -> None:
        """Count new links."""
        count = self._of(service, pod)
        count.links += len(epochs)
        count.placed.extend(epochs)
        self._changed(service, pod.pod)

    def left(self, service: str, pod: int, incarnation: int, epoch: int) -> None:
        """Count a link no more that its pod has given up, before the pod reports it."""
        count = self._counts.get((service, pod))
        if count is None or count.incarnation != incarnation:
            return
        count.links = max(0, count.links - 1)
        at = bisect_left(count.placed, epoch)
        if at < len(count.placed) and count.placed[at] == epoch:
            del count.placed[at]
        else:
            count.expected = max(0.0, count.expected - 1)
        self._changed(service, pod)

    def _changed(self, service: str, pod: int) -> None:
        ranked = self._ranked.get(service)
        if ranked is not None and pod in ranked.loads:
            ranked.loads.stale.add(pod)

    def _of(self, service: str, pod: PodRecord) -> _Count:
        count = self._counts.get((service, pod.pod))
        if count is None or count.incarnation != pod.incarnation:
            count = self._counts[service, pod.pod] = _Count(pod.incarnation)
            self._changed(service, pod.pod)
        return count
