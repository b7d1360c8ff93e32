"""What is measured of a pod for as long as its agent runs."""

from __future__ import annotations

from collections.abc import Callable

from ray_route.pod.holdings import Holdings
from ray_route.pod.uid_loads import UidLoads
from ray_route.runtime.metrics import POD_HOTTEST_UID, POD_RUNNING_CALLS, POD_UIDS, Meter, Metric


class AgentGauges:
    """The uids, running calls and hottest uid of one pod, under its service and index.

    Each is asked of the pod's present life when it is read: its index and what it holds change.
    """

    def __init__(
        self, meter: Meter, service: str, pod: Callable[[], int], held: Callable[[], Holdings]
    ) -> None:
        self._meter = meter
        self._service = service
        self._pod = pod
        self._held = held
        self._owner = (service, str(id(self)))

    def begin(self) -> None:
        """Show them, until `end`."""
        self._show(POD_UIDS, lambda: len(self._held()))
        self._show(POD_RUNNING_CALLS, lambda: self._held().running)
        self._show(POD_HOTTEST_UID, lambda: UidLoads(self._held()).most_of_the_time())

    def end(self) -> None:
        """Show them no longer."""
        self._meter.forget(POD_UIDS, POD_RUNNING_CALLS, POD_HOTTEST_UID, owner=self._owner)

    def _show(self, gauge: Metric, value: Callable[[], float]) -> None:
        self._meter.gauge(gauge, lambda: [(self._labels(), value())], self._owner)

    def _labels(self) -> tuple[str, str]:
        return self._service, str(self._pod())  # one that floats may get another index
