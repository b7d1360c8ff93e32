"""What is known of pods: the last table read, their load, and how long each has been silent."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from threading import Lock

from ray_route.model import Life, Link, PodRecord


class PodTable:
    """The last known record of every pod, by service. Knowledge never goes back.

    A record of an older incarnation, or one that brings a dead incarnation back to life, is
    ignored: answers may overtake each other on the way here.
    """

    def __init__(self) -> None:
        self.serving: dict[str, dict[int, int]] = {}
        """Incarnations of routable pods, by service and index (not a copy: don't change it)."""
        self._services: dict[str, dict[int, PodRecord]] = {}
        self._lock = Lock()

    def services(self) -> list[str]:
        """All services with at least one known pod."""
        return list(self._services)

    def pods(self, service: str) -> dict[int, PodRecord]:
        """The service's pods by index (not a copy: don't change it)."""
        return self._services.get(service, {})

    def get(self, service: str, pod: int) -> PodRecord | None:
        """The pod's record, if it is known."""
        return self.pods(service).get(pod)

    def available(self, service: str) -> list[PodRecord]:
        """Pods that take new uids, by index."""
        return [pod for _, pod in sorted(self.pods(service).items()) if pod.available]

    def routable(self, service: str, link: Link) -> bool:
        """True if the link's own incarnation is alive and serves its links."""
        return self.serving.get(service, {}).get(link.pod) == link.incarnation

    def is_dead(self, service: str, link: Link) -> bool:
        """True if the link's incarnation answers nobody any more: gone, resigned, or replaced."""
        pod = self.pods(service).get(link.pod)
        if pod is None or pod.incarnation < link.incarnation:
            return False
        return pod.incarnation > link.incarnation or pod.life is not Life.ALIVE

    def has_ended(self, service: str, link: Link) -> bool:
        """True if the link's incarnation can never serve again: gone, replaced, or shut down."""
        pod = self.pods(service).get(link.pod)
        if pod is None or pod.incarnation < link.incarnation:
            return False  # a table that lags behind, or that was lost, proves nothing
        return pod.incarnation > link.incarnation or not pod.routable

    def update(self, service: str, record: PodRecord) -> bool:
        """Take in a record; say whether anything but load and heartbeat changed."""
        with self._lock:
            pods = self._services.setdefault(service, {})
            held = pods.get(record.pod)
            if held is not None and _goes_back(held, record):
                return False
            pods[record.pod] = record
            serving = self.serving.setdefault(service, {})
            if record.routable:
                serving[record.pod] = record.incarnation
            else:
                serving.pop(record.pod, None)
        return held is None or _routing(held) != _routing(record)


def _goes_back(held: PodRecord, record: PodRecord) -> bool:
    if record.incarnation != held.incarnation:
        return record.incarnation < held.incarnation
    if held.life is not Life.ALIVE:
        return record.life is Life.ALIVE
    return record.life is Life.ALIVE and record.heartbeat_us < held.heartbeat_us


def _routing(record: PodRecord) -> tuple[object, ...]:
    return record.incarnation, record.state, record.life, record.node, record.actor


# How long a new link may take to reach its pod, and to be counted there.
_ARRIVAL_US = 500_000


@dataclass(slots=True)
class _Count:
    incarnation: int
    expected: float = 0.0
    heartbeat_us: int = 0
    proposed: int = 0
    placed: list[int] = field(default_factory=list)
    links: int = 0


class LoadBook:
    """Exact load per pod: what it reported, plus what was placed there since that report.

    "Since" is decided by Redis time on both sides: a new link's epoch is at least Redis `TIME`
    in microseconds, and so is the heartbeat that carried the report.

    A link that was placed just before a report may not have reached its pod by then. It counts
    on, unless the pod has lost as many meanwhile: else placements would crowd, once a heartbeat,
    on the pod that has just reported.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[str, int], _Count] = {}

    def load(self, service: str, pods: Iterable[PodRecord]) -> dict[int, float]:
        """Load of each of the pods now."""
        counts = ((pod.pod, self._of(service, pod)) for pod in pods)
        return {
            index: count.expected + len(count.placed) + count.proposed for index, count in counts
        }

    def links(self, service: str, pod: PodRecord) -> int:
        """Links placed on this incarnation by this router."""
        return self._of(service, pod).links

    def report(self, service: str, pod: PodRecord) -> None:
        """Take in the load that came with a heartbeat."""
        count = self._of(service, pod)
        count.placed.sort()  # shards count for themselves, so it is only almost sorted
        before = bisect_right(count.placed, pod.heartbeat_us)
        late = before - bisect_right(count.placed, pod.heartbeat_us - _ARRIVAL_US, hi=before)
        if pod.heartbeat_us > count.heartbeat_us:
            unreported = min(late, count.expected + before - pod.load)
            count.expected = pod.load + max(0, unreported)
        count.heartbeat_us = pod.heartbeat_us
        del count.placed[:before]

    def propose(self, service: str, pod: PodRecord, links: int) -> None:
        """Count links that are being written, until `settle`."""
        self._of(service, pod).proposed += links

    def settle(self, service: str, pod: PodRecord, links: int) -> None:
        """Stop counting proposals; those that were written are counted by `placed`."""
        count = self._counts.get((service, pod.pod))
        if count is not None and count.incarnation == pod.incarnation:
            count.proposed = max(0, count.proposed - links)

    def placed(self, service: str, pod: PodRecord, epochs: Sequence[int]) -> None:
        """Count new links."""
        count = self._of(service, pod)
        count.links += len(epochs)
        count.placed.extend(epochs)

    def _of(self, service: str, pod: PodRecord) -> _Count:
        count = self._counts.get((service, pod.pod))
        if count is None or count.incarnation != pod.incarnation:
            count = self._counts[service, pod.pod] = _Count(pod.incarnation)
        return count


class SilenceWatch:
    """Tells which pods have been silent for a whole lease under unbroken observation.

    A heartbeat's own age proves nothing: after an outage of Redis every heartbeat is old, and
    the pods are well. Only time during which the store answered and the heartbeat still did not
    move counts, measured on the observer's clock.
    """

    def __init__(self, lease_s: float, max_gap_s: float) -> None:
        self._lease_s = lease_s
        self._max_gap_s = max_gap_s
        self._last_look: float | None = None
        self._since: dict[tuple[str, int], tuple[int, int, float]] = {}

    def interrupt(self) -> None:
        """Begin anew: the store did not answer, lost data, or failed over."""
        self._since.clear()
        self._last_look = None

    def look(self, at: float, pods: Iterable[tuple[str, PodRecord]]) -> list[tuple[str, PodRecord]]:
        """Take in a whole table read that was asked for at `at`; return the silent pods."""
        if self._last_look is not None and at - self._last_look > self._max_gap_s:
            self.interrupt()  # the observer itself slept
        self._last_look = at
        present = list(pods)
        names = {(service, pod.pod) for service, pod in present}
        self._since = {name: seen for name, seen in self._since.items() if name in names}
        return [(service, pod) for service, pod in present if self._is_silent(at, service, pod)]

    def missed_beat(self, service: str, pod: PodRecord, at: float, heartbeat_s: float) -> bool:
        """True if the pod has been seen silent for more than one heartbeat."""
        seen = self._since.get((service, pod.pod))
        return seen is not None and seen[:2] == _beat(pod) and at - seen[2] > heartbeat_s

    def _is_silent(self, at: float, service: str, pod: PodRecord) -> bool:
        if pod.life is not Life.ALIVE:
            self._since.pop((service, pod.pod), None)
            return False
        seen = self._since.get((service, pod.pod))
        if seen is None or seen[:2] != _beat(pod):
            self._since[service, pod.pod] = (*_beat(pod), at)
            return False
        return at - seen[2] >= self._lease_s


def _beat(pod: PodRecord) -> tuple[int, int]:
    return pod.incarnation, pod.heartbeat_us
