"""Failure detection: whose process has ended, and who has been silent for a whole lease.

Death is written before anyone acts on it, and only on proof: the process table of the pod's own
node, or a whole lease of silence under unbroken observation. Ray's word alone is none (see
`process_ids`), unless `fast_failover` takes it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_route.clock import now
from ray_route.config import RouteConfig
from ray_route.errors import RouteError
from ray_route.model import Life, PodRecord
from ray_route.router.membership import Membership
from ray_route.router.placing_gate import PlacingGate
from ray_route.runtime.metrics import POD_DEATHS
from ray_route.runtime.process_ids import POLL_S, has_ended

logger = logging.getLogger(__name__)

_CHECK_S = 3.0


class _Why(NamedTuple):
    """Why a pod is declared gone: as metrics have it, and in words."""

    reason: str
    words: str


_ENDED = _Why("ended", "its process has ended")
_SILENT = _Why("silent", "it was silent for its whole lease")
_CUT_OFF = _Why("cut off", "for a whole lease it has reached the store and not its router")
_AGAIN = _Why("again", "its end was certain before, and could not be written")


@ray.remote(num_cpus=0, max_retries=0)
def _process_has_ended(process: str) -> bool:
    return has_ended(process)


class HeartbeatMonitor:
    """Tells which pods have been silent for a whole lease under unbroken observation.

    A heartbeat's own age proves nothing: after an outage of Redis every heartbeat is old, and
    the pods are well. Only time during which the store answered and the record's sequence number
    still did not move counts, measured on the observer's clock. A router's own write of a record
    moves it too, which delays a death by one lease at most.
    """

    def __init__(self, lease_s: float, max_gap_s: float) -> None:
        self._lease_s = lease_s
        self._max_gap_s = max_gap_s
        self._last_look: float | None = None
        self._since: dict[tuple[str, int], tuple[int, int, float]] = {}
        self._lapsed_since: dict[tuple[str, int], float] = {}

    def interrupt(self) -> None:
        """Begin anew: the store did not answer, lost data, or failed over."""
        self._since.clear()
        self._lapsed_since.clear()
        self._last_look = None

    def begin_anew(self, service: str, pod: int) -> None:
        """Count one pod's silence from the next look on: it was vouched for."""
        self._since.pop((service, pod), None)
        self.hear(service, pod)

    def hear(self, service: str, pod: int) -> None:
        """Note that a pod's agent has reached the router: it is not cut off."""
        self._lapsed_since.pop((service, pod), None)

    def cut_off(self, pods: Iterable[tuple[str, PodRecord]]) -> list[tuple[str, PodRecord]]:
        """Return, after a look, who has renewed for a whole lease without being vouched for.

        Such a pod reaches Redis and not its router: it serves nobody, and would for ever.
        """
        lapsed = {(service, pod.pod): pod for service, pod in pods if _serves_nobody(pod)}
        at, since = self._last_look or 0.0, self._lapsed_since
        self._lapsed_since = {name: since.get(name, at) for name in lapsed}
        return [
            (name[0], lapsed[name])
            for name, began in self._lapsed_since.items()
            if at - began >= self._lease_s
        ]

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


def _serves_nobody(pod: PodRecord) -> bool:
    return pod.life is Life.ALIVE and pod.lapsed


def _beat(pod: PodRecord) -> tuple[int, int]:
    return pod.incarnation, pod.seq


class FailureDetector:
    """Finds out which pods are dead, and has it written. Belongs to one event loop.

    `node` is the Ray node of this process, which can look at the processes there by itself.
    """

    def __init__(
        self, membership: Membership, gate: PlacingGate, config: RouteConfig, node: str
    ) -> None:
        self._gate = gate
        self._membership = membership
        self._config = config
        self._heartbeats = HeartbeatMonitor(config.pod_lease_s, max_gap_s=3 * config.heartbeat_s)
        self._checks: dict[tuple[str, int, int], asyncio.Task[bool]] = {}
        self._node = node

    async def watch_heartbeats(self) -> None:
        """Read the pod tables for ever, once per heartbeat."""
        while True:
            await asyncio.sleep(self._config.heartbeat_s)
            try:
                await self._look()
            except RouteError as error:
                logger.warning("the router can't see its pods: %s", error)
                self._heartbeats.interrupt()
            except Exception:
                # Whatever it was: to look again is right, and nobody counts as silent meanwhile.
                logger.exception("the router can't see its pods")
                self._heartbeats.interrupt()

    def begin_anew(self) -> None:
        """Count no pod's silence from before now: Redis has lost writes."""
        self._heartbeats.interrupt()

    def begin_anew_with(self, service: str, pod: int) -> None:
        """Count one pod's silence from now on: its life was vouched for."""
        self._heartbeats.begin_anew(service, pod)

    def hear(self, service: str, pod: int) -> None:
        """Note that a pod's agent has reached the router. That alone is no sign of life."""
        self._heartbeats.hear(service, pod)

    async def watch_processes(self) -> None:
        """Notice the end of a pod's process on this node at once, before anyone calls it."""
        while True:
            await asyncio.sleep(POLL_S)
            for service in self._membership.table.services():
                for pod in list(self._membership.table.pods(service).values()):
                    if pod.life is Life.ALIVE and self._has_ended_here(pod):
                        self._check(service, pod)

    def _has_ended_here(self, pod: PodRecord) -> bool:
        return pod.node == self._node and has_ended(pod.process)

    async def _look(self) -> None:
        # Written first: where Redis refuses this it refuses renewals, and nobody is silent.
        await self._gate.look()
        pods = await self._membership.refresh_all()
        seen_at = now()
        await self._repeat_ends(pods)
        for service, record in self._heartbeats.look(seen_at, pods):
            await self._declare_dead(service, record, _SILENT)
        for service, record in self._heartbeats.cut_off(pods):
            await self._declare_dead(service, record, _CUT_OFF)
        for service, record in pods:
            if self._heartbeats.missed_beat(service, record, seen_at, self._config.heartbeat_s):
                self._check(service, record)

    async def _repeat_ends(self, pods: Iterable[tuple[str, PodRecord]]) -> None:
        """Write again each end that was decided and does not stand in Redis."""
        table = self._membership.table
        alive = {(service, pod.pod): pod for service, pod in pods if pod.life is Life.ALIVE}
        for service, pod, incarnation in self._membership.denied.final():
            record = alive.get((service, pod))
            if record is not None and record.incarnation == incarnation:
                await self._declare_dead(service, record, _AGAIN)
        lost = [
            (service, known)
            for (service, pod), record in alive.items()
            if (known := table.get(service, pod)) is not None
            and known.incarnation == record.incarnation
            and not known.routable
            and record.routable
        ]
        await self._membership.write_back(lost)

    async def look_into(self, service: str, pod: int, incarnation: int, *, died: bool) -> bool:
        """Look into a pod that a caller could not reach; say whether that life has ended."""
        record = self._membership.table.get(service, pod)
        if record is None or record.incarnation < incarnation:
            await self._membership.refresh(service)
            record = self._membership.table.get(service, pod)
        if record is None:
            return False
        if record.incarnation > incarnation or not record.routable:
            return True
        if died and self._config.fast_failover:
            return await self._declare_dead(service, record, _ENDED)
        return await self.declare_dead_if_ended(service, record)

    async def declare_dead_if_ended(self, service: str, pod: PodRecord) -> bool:
        """Declare a pod gone if its process has ended; say whether it is gone."""
        return await asyncio.shield(self._check(service, pod))

    def _check(self, service: str, pod: PodRecord) -> asyncio.Task[bool]:
        """Start to look whether a pod's process has ended, once for all who ask meanwhile."""
        key = (service, pod.pod, pod.incarnation)
        task = self._checks.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._check_process(service, pod))
            self._checks[key] = task
            task.add_done_callback(lambda _: self._checks.pop(key, None))
        return task

    async def _check_process(self, service: str, pod: PodRecord) -> bool:
        try:
            if not await self._process_has_ended(pod):
                return False
            return await self._declare_dead(service, pod, _ENDED)
        except RouteError as error:
            logger.warning(
                "pod %d of %s could not be declared gone: %s",
                pod.pod,
                service,
                error,
                extra={"service": service, "pod": pod.pod},
            )
            return False

    async def _process_has_ended(self, pod: PodRecord) -> bool:
        if pod.node == self._node:
            return has_ended(pod.process)
        there = NodeAffinitySchedulingStrategy(node_id=pod.node, soft=False)
        try:
            asked = _process_has_ended.options(scheduling_strategy=there).remote(pod.process)
            return bool(await asyncio.wait_for(asked, _CHECK_S))
        except (ray.exceptions.RayError, asyncio.TimeoutError, ValueError):
            # A node that doesn't answer proves nothing, nor does a name that is no node's: the
            # lease decides.
            return False

    async def _declare_dead(self, service: str, pod: PodRecord, why: _Why) -> bool:
        dead = await self._membership.declare_gone(service, pod, silent=why is _SILENT)
        if dead:
            facts = {"service": service, "pod": pod.pod, "incarnation": pod.incarnation}
            logger.warning("pod %d of %s is gone: %s", pod.pod, service, why.words, extra=facts)
            self._membership.meter.count(POD_DEATHS, service, why.reason)
        return dead
