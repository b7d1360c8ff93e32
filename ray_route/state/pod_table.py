"""What a process knows of pods: the last record of each, and which lives serve."""

from __future__ import annotations

from threading import Lock

from ray_route.model import Life, Link, PodRecord, RoutingState


class PodTable:
    """The last known record of every pod, by service. Knowledge never goes back.

    A record of an older incarnation or with a lower sequence number is ignored, and so is one
    that brings a dead incarnation back to life, or one that has shut down back into service:
    answers may overtake each other on the way here, and Redis may have lost what came last.
    """

    def __init__(self) -> None:
        self.serving: dict[str, dict[int, int]] = {}
        """Incarnations of routable pods, by service and index (not a copy: don't change it)."""
        self._services: dict[str, dict[int, PodRecord]] = {}
        self._available: dict[str, tuple[PodRecord, ...]] = {}
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

    def available(self, service: str) -> tuple[PodRecord, ...]:
        """Pods that take new uids, by index; one whose lease has lapsed only if all have.

        The same object as long as no record of the service has come.
        """
        pods = self._available.get(service)
        if pods is None:
            with self._lock:
                pods = self._available[service] = self._take_uids(service)
        return pods

    def _take_uids(self, service: str) -> tuple[PodRecord, ...]:
        pods = [pod for _, pod in sorted(self.pods(service).items()) if pod.available]
        return tuple([pod for pod in pods if not pod.lapsed] or pods)

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
        """Take in a record; say whether anything that routing depends on changed."""
        with self._lock:
            pods = self._services.setdefault(service, {})
            held = pods.get(record.pod)
            if held is not None and _goes_back(held, record):
                return False
            pods[record.pod] = record
            self._available.pop(service, None)
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
    if record.life is not Life.ALIVE:
        return False
    if held.state is RoutingState.SHUTDOWN and record.state is not RoutingState.SHUTDOWN:
        return True
    return record.seq < held.seq


def _routing(record: PodRecord) -> tuple[object, ...]:
    return record.incarnation, record.state, record.life, record.node, record.actor
