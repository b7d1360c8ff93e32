"""The router: one Ray actor per namespace that owns its links.

Detached, named, restarted for ever. This file is the actor's surface and its watch over pods;
the decisions are made in `directory`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_route.announcer import BEAT, Announcer, Change, Position
from ray_route.clock import now
from ray_route.config import RouteConfig
from ray_route.directory import Answer, Directory
from ray_route.errors import RouteError, RouterUnavailableError, StoreUnavailableError
from ray_route.hosting import RAY_NAMESPACE
from ray_route.model import Explanation, Life, Link, Pod, PodRecord
from ray_route.podtable import SilenceWatch
from ray_route.processes import has_ended
from ray_route.shards import SupersededError
from ray_route.store.connect import AsyncStore
from ray_route.store.keys import Keys
from ray_route.store.url import StoreUrl

logger = logging.getLogger(__name__)

_CONCURRENCY = 10_000
_PROCESS_CHECK_S = 3.0
_PROCESS_POLL_S = 0.1
_RETRY_S = 0.2
_LEAVE_S = 5.0


@dataclass(frozen=True, slots=True)
class Welcome:
    """What a client learns at its first call: the router's word on everything shared."""

    config: RouteConfig
    position: Position
    tables: dict[str, list[PodRecord]]


@ray.remote(num_cpus=0, max_retries=0)
def _process_has_ended(process: str) -> bool:
    return has_ended(process)


class Router:
    """The actor class; clients make it by `router_of`."""

    def __init__(self, namespace: str, url: StoreUrl, config: RouteConfig) -> None:
        self._namespace = namespace
        self._config = config
        self._store = AsyncStore(url)
        self._directory = Directory(config, self._store, Keys(namespace, config.shards))
        self._silence = SilenceWatch(config.pod_lease_s, max_gap_s=3 * config.heartbeat_s)
        self._checks: dict[tuple[str, int, int], asyncio.Task[bool]] = {}
        self._node = ray.get_runtime_context().get_node_id()
        self._announcer: Announcer | None = None
        self._open = asyncio.Event()
        self._tasks = [
            asyncio.get_running_loop().create_task(work)
            for work in (self._serve(), self._exit_when_superseded())
        ]

    # What clients ask.

    async def hello(self) -> Welcome:
        """Return the configuration in force, the pod tables, and where the stream stood then."""
        await self._opened()
        assert self._announcer is not None
        position = self._announcer.position
        table = self._directory.table
        tables = {name: list(table.pods(name).values()) for name in table.services()}
        return Welcome(self._config, position, tables)

    async def compute(
        self, service: str, wanted: dict[str, int], node: str | None
    ) -> dict[str, Answer]:
        """See `Directory.compute`."""
        await self._opened()
        return await self._directory.compute(service, wanted, node)

    async def find(self, service: str, wanted: dict[str, int]) -> dict[str, Answer | None]:
        """See `Directory.find`."""
        await self._opened()
        return await self._directory.find(service, wanted)

    async def set_if_absent(self, service: str, uid: str, pod: int, *, persistent: bool) -> Link:
        """See `Directory.set_if_absent`."""
        await self._opened()
        return await self._directory.set_if_absent(service, uid, pod, persistent=persistent)

    async def pid(self) -> int:
        """Return the router's process id, for operators and tests that end it."""
        return os.getpid()

    async def drop(self, service: str, uid: str) -> Link | None:
        """Forget a cached link; return it."""
        return self._directory.cache.drop(service, uid)

    async def records(self, service: str) -> list[PodRecord]:
        """Read a service's pod table anew and return its records."""
        await self._opened()
        self._announce(service, await self._directory.refresh(service))
        return list(self._directory.table.pods(service).values())

    async def pods(self, service: str) -> dict[int, Pod]:
        """Read a service's pod table anew and return it as operators see it."""
        await self._opened()
        self._announce(service, await self._directory.refresh(service))
        return self._directory.pods(service, await self._directory.redis_time_us())

    async def services(self) -> list[str]:
        """Name all services of the namespace."""
        await self._opened()
        return sorted(await self._directory.tables())

    async def explain(self, service: str, uid: str) -> Explanation:
        """Say why a uid is where it is."""
        pods = await self.pods(service)
        found = (await self._directory.find(service, {uid: 0}))[uid]
        if isinstance(found, RouteError):
            raise found
        # An epoch is at least Redis time in microseconds when it was given out.
        time_us = await self._directory.redis_time_us()
        return Explanation(
            namespace=self._namespace,
            service=service,
            uid=uid,
            shard=self._directory.keys.shard(uid),
            link=found,
            pod=pods.get(found.pod) if found else None,
            age_s=max(0, time_us - found.epoch) / 1e6 if found else None,
            decisions=self._directory.decisions(service, uid),
        )

    async def report_failure(self, service: str, pod: int, incarnation: int) -> bool:
        """Look into a pod that a caller could not reach; say whether that life has ended."""
        await self._opened()
        record = self._directory.table.get(service, pod)
        if record is None or record.incarnation < incarnation:
            self._announce(service, await self._directory.refresh(service))
            record = self._directory.table.get(service, pod)
        if record is None:
            return False
        if record.incarnation > incarnation or not record.routable:
            return True
        return await self._bury_if_ended(service, record)

    async def look_for(self, service: str, pod: int) -> bool:
        """Look whether the process that holds a pod index has ended; free the index if so."""
        await self._opened()
        self._announce(service, await self._directory.refresh(service))
        record = self._directory.table.get(service, pod)
        return record is not None and await self._bury_if_ended(service, record)

    # What it does by itself.

    async def _opened(self) -> None:
        await self._open.wait()
        if self._directory.superseded.is_set():
            raise RouterUnavailableError(
                namespace=self._namespace, reason="a younger router has taken over"
            )

    async def _serve(self) -> None:
        await self._until_store_answers(self._directory.shards.take_over)
        incarnation = self._directory.shards.incarnation
        self._announcer = Announcer(self._store, self._directory.keys, incarnation)
        await self._until_store_answers(self._look_at_pods)
        await self._announcer.append(BEAT)
        self._open.set()
        logger.info("router %d of namespace %s serves", incarnation, self._namespace)
        await asyncio.gather(self._announcer.run(), self._watch_pods(), self._watch_processes())

    async def _until_store_answers(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            try:
                return await work()
            except StoreUnavailableError as error:
                logger.warning("the router waits for its store: %s", error)
                await asyncio.sleep(_RETRY_S)
            except SupersededError:
                self._directory.superseded.set()
                self._open.set()
                return None

    async def _watch_pods(self) -> None:
        while True:
            await asyncio.sleep(self._config.heartbeat_s)
            try:
                await self._look_at_pods()
            except RouteError as error:
                logger.warning("the router can't see its pods: %s", error)
                self._silence.interrupt()
            assert self._announcer is not None
            self._announcer.announce(BEAT)

    async def _watch_processes(self) -> None:
        """Notice the end of a pod's process on this node at once, before anyone calls it."""
        while True:
            await asyncio.sleep(_PROCESS_POLL_S)
            for service in self._directory.table.services():
                for pod in self._directory.table.pods(service).values():
                    if pod.life is Life.ALIVE and pod.node == self._node and has_ended(pod.process):
                        self._check(service, pod)

    async def _look_at_pods(self) -> None:
        tables = await self._directory.tables()
        seen_at = now()
        for service, records in tables.items():
            self._announce(service, self._directory.take_in(service, records))
        pods = [(service, record) for service, records in tables.items() for record in records]
        for service, record in self._silence.look(seen_at, pods):
            await self._bury(service, record, silent=True)
        for service, record in pods:
            if self._silence.missed_beat(service, record, seen_at, self._config.heartbeat_s):
                self._check(service, record)

    async def _bury_if_ended(self, service: str, pod: PodRecord) -> bool:
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
            return await self._bury(service, pod, silent=False)
        except RouteError as error:
            logger.warning("pod %d of %s could not be declared gone: %s", pod.pod, service, error)
            return False

    async def _process_has_ended(self, pod: PodRecord) -> bool:
        if pod.node == self._node:
            return has_ended(pod.process)
        there = NodeAffinitySchedulingStrategy(node_id=pod.node, soft=False)
        asked = _process_has_ended.options(scheduling_strategy=there).remote(pod.process)
        try:
            return bool(await asyncio.wait_for(asked, _PROCESS_CHECK_S))
        except (ray.exceptions.RayError, asyncio.TimeoutError):
            return False  # a node that doesn't answer proves nothing: the lease decides

    async def _bury(self, service: str, pod: PodRecord, *, silent: bool) -> bool:
        dead = await self._directory.declare_gone(service, pod, silent=silent)
        self._announce(service, await self._directory.refresh(service))
        if dead:
            why = "it was silent for its whole lease" if silent else "its process has ended"
            logger.warning("pod %d of %s is gone: %s", pod.pod, service, why)
        return dead

    def _announce(self, service: str, changed: list[PodRecord]) -> None:
        assert self._announcer is not None
        for record in changed:
            self._announcer.announce(Change("pod", service, pod=record))

    async def _exit_when_superseded(self) -> None:
        await self._directory.superseded.wait()
        logger.warning("a younger router has taken over %s: this one exits", self._namespace)
        # By way of Ray, so that it does not restart this one against the younger; unless Ray
        # has put the younger in this one's place already, and the call reaches that.
        ray.get_runtime_context().current_actor.leave.remote()
        await asyncio.sleep(_LEAVE_S)
        os._exit(0)

    async def leave(self) -> None:
        """Exit for good, if a younger router has taken over."""
        if self._directory.superseded.is_set():
            ray.actor.exit_actor()


def router_of(namespace: str, url: StoreUrl, config: RouteConfig) -> Any:
    """Return the namespace's router, making it if there is none."""
    return (
        ray.remote(Router)
        .options(
            name=f"ray_route:{namespace}:router",
            namespace=RAY_NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_concurrency=_CONCURRENCY,
        )
        .remote(namespace, url, config)
    )
