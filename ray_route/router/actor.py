"""The router: one Ray actor per namespace that owns its links.

Detached, named, restarted for ever. This file is what clients and agents can ask; decisions are
made in `directory`, moves in `moves`, and pods are watched in `vigil`.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from dataclasses import dataclass
from typing import Any

import ray

from ray_route import telemetry
from ray_route.config import RouteConfig
from ray_route.errors import RouteError, RouterUnavailableError
from ray_route.hosting import RAY_NAMESPACE
from ray_route.metrics import ROUTER_CACHE_LINKS, ROUTER_STARTS
from ray_route.model import DrainProgress, Explanation, Life, Link, Pod, PodRecord, RoutingState
from ray_route.router.announcer import BEAT, Announcer, Change, Position
from ray_route.router.census import Census
from ray_route.router.directory import Directory
from ray_route.router.drains import Drains
from ray_route.router.mailbox import Address, Mailboxes, Numbered
from ray_route.router.moves import Moves
from ray_route.router.replay import Replay
from ray_route.router.shards import Shards, SupersededError
from ray_route.router.vigil import Vigil
from ray_route.store.connect import AsyncStore
from ray_route.store.keys import Keys
from ray_route.store.links import LinkCalls
from ray_route.store.url import StoreUrl
from ray_route.wire import pack_answers, unpack_question

logger = logging.getLogger(__name__)

_CONCURRENCY = 10_000
_OPEN_S = 10.0
_RETRY_S = 0.2
_LEAVE_S = 30.0


@dataclass(frozen=True, slots=True)
class Welcome:
    """What a client learns at its first call: the router's word on everything shared."""

    config: RouteConfig
    position: Position
    tables: dict[str, list[PodRecord]]
    seen: list[int]


class Router:
    """The actor class; clients make it by `router_of`."""

    def __init__(self, namespace: str, url: StoreUrl, config: RouteConfig) -> None:
        # What a router makes is mostly answers, which need no collector: with Python's own
        # thresholds it takes a sixth of bulk placement, and 40 ms at a time with 300,000 links.
        gc.set_threshold(20_000, 50, 100)
        self._namespace = namespace
        self._logger = logging.LoggerAdapter(logger, {"namespace": namespace})
        self._config = config
        store = AsyncStore(url)
        keys = Keys(namespace, config.shards)
        self._shards = Shards(store, keys, LinkCalls(keys, config))
        self._announcer = Announcer(store, keys)
        self._mailboxes = Mailboxes()
        self._census = Census(store, keys, self._pod_changed)
        self._directory = Directory(config, keys, store, self._census, self._shards)
        self._moves = Moves(self._census, self._directory, self._mailboxes, self._links_stale)
        self._drains = Drains(self._census, self._directory, self._mailboxes, self._moves)
        self._vigil = Vigil(self._census, config)
        self._replay = Replay(
            config,
            store,
            self._census,
            self._shards,
            self._directory,
            self._mailboxes,
            self._vigil.begin_anew,
        )
        self._shards.recover = self._replay.recover
        cache = self._directory.cache
        self._census.meter.watch(ROUTER_CACHE_LINKS, lambda: [((), cache.held)])
        telemetry.start()
        self._open = asyncio.Event()
        self._problem = "it is starting"
        self._tasks = [
            asyncio.get_running_loop().create_task(work)
            for work in (self._serve(), self._exit_when_superseded())
        ]

    # Clients: links.

    async def hello(self) -> Welcome:
        """Return the configuration in force, the pod tables, and where the stream stood then."""
        await self._opened()
        position = self._announcer.position
        table = self._census.table
        tables = {name: list(table.pods(name).values()) for name in table.services()}
        return Welcome(self._config, position, tables, self._shards.seen)

    async def compute(self, question: bytes) -> bytes:
        """See `Directory.compute`; question and answers are packed (see `wire`)."""
        await self._opened()
        service, wanted, node = unpack_question(question)
        return pack_answers(list((await self._directory.compute(service, wanted, node)).values()))

    async def find(self, question: bytes) -> bytes:
        """See `Directory.find`; question and answers are packed (see `wire`)."""
        await self._opened()
        service, wanted, _ = unpack_question(question)
        return pack_answers(list((await self._directory.find(service, wanted)).values()))

    async def set_if_absent(self, service: str, uid: str, pod: int, *, persistent: bool) -> Link:
        """See `Directory.set_if_absent`."""
        await self._opened()
        target = await self._census.target(service, pod)
        return await self._directory.set_if_absent(service, uid, target, persistent=persistent)

    async def set_link(
        self, service: str, uid: str, pod: int, *, persistent: bool | None, timeout_s: float
    ) -> Link:
        """See `Moves.set`."""
        await self._opened()
        return await self._moves.set(service, uid, pod, persistent=persistent, timeout_s=timeout_s)

    async def try_set_link(
        self, service: str, uid: str, pod: int, *, persistent: bool, steal: bool, timeout_s: float
    ) -> tuple[bool, Link]:
        """See `Moves.try_set`."""
        await self._opened()
        return await self._moves.try_set(
            service, uid, pod, persistent=persistent, steal=steal, timeout_s=timeout_s
        )

    async def remove_link(
        self, service: str, uid: str, pod: int | None, *, after_s: float, timeout_s: float
    ) -> bool:
        """See `Moves.remove`."""
        await self._opened()
        return await self._moves.remove(service, uid, pod, after_s=after_s, timeout_s=timeout_s)

    async def drop(self, service: str, uid: str) -> Link | None:
        """Forget a cached link; return it."""
        return self._directory.cache.drop(service, uid)

    async def sweep(self, service: str) -> int:
        """See `Directory.sweep`."""
        await self._opened()
        return await self._directory.sweep(service)

    async def recover(self, seen: dict[int, int]) -> None:
        """Write back what Redis has lost in some shards, of which the caller was told so much."""
        await self._opened()
        self._shards.remember(seen.items())
        await self._replay.recover(seen)

    # Clients: pods.

    async def records(self, service: str) -> list[PodRecord]:
        """Read a service's pod table anew and return its records."""
        await self._opened()
        await self._census.refresh(service)
        return list(self._census.table.pods(service).values())

    async def pods(self, service: str) -> dict[int, Pod]:
        """See `Census.pods`."""
        await self._opened()
        return await self._census.pods(service)

    async def explain(self, service: str, uid: str) -> Explanation:
        """Say why a uid is where it is."""
        pods = await self.pods(service)
        found = (await self._directory.find(service, {uid: 0}))[uid]
        if isinstance(found, RouteError):
            raise found
        # An epoch is at least Redis time in microseconds when it was given out.
        time_us = await self._census.time_us()
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

    async def report_failure(
        self, service: str, pod: int, incarnation: int, *, died: bool = False
    ) -> bool:
        """Look into a pod that a caller could not reach; say whether that life has ended.

        `died` tells that Ray called the actor dead, not only unavailable.
        """
        await self._opened()
        return await self._vigil.look_into(service, pod, incarnation, died=died)

    async def drain(self, service: str, pod: int, deadline_s: float, *, go_on: bool) -> None:
        """Begin to drain a pod; see `drain_progress`."""
        await self._opened()
        record = await self._census.known(service, pod)
        if record.life is Life.ALIVE and record.state is not RoutingState.SHUTDOWN:
            self._drains.start(service, record, deadline_s, go_on=go_on)

    async def drain_progress(self, service: str, pod: int) -> DrainProgress | None:
        """How far the drain of a pod has come; None if this router began none."""
        record = self._census.table.get(service, pod)
        known = self._drains.progress(service, pod)
        if known is None and record is not None and not record.routable:
            return DrainProgress(pod, left=0, moved=0, running=0, done=True)
        return known

    # Agents.

    async def fetch_orders(
        self, address: Address, wait_s: float
    ) -> tuple[int, RoutingState, list[Numbered]]:
        """Return orders for an agent, waiting for some; which router speaks; the pod's state.

        A router that does not serve yet is number 0: it may only ask what the agent remembers.
        """
        service, pod, incarnation = address
        record = self._census.table.get(service, pod)
        if record is None or record.incarnation < incarnation:
            await self._census.refresh(service)
            record = self._census.table.get(service, pod)
        mine = record is not None and record.incarnation == incarnation
        orders = await self._mailboxes.fetch(address, wait_s) if mine else []
        record = self._census.table.get(service, pod)
        state = record.state if record and mine else RoutingState.READY
        if not mine:
            await asyncio.sleep(_RETRY_S)
        return self._shards.incarnation if self._open.is_set() else 0, state, orders

    async def take_answer(self, address: Address, number: int, result: Any) -> None:
        """Take in an agent's answer."""
        self._mailboxes.answer(address, number, result)

    async def report_use(self, service: str, used: dict[str, int]) -> dict[str, int]:
        """Lengthen the lives of links in use; return the uids whose link is another by now."""
        await self._opened()
        return await self._directory.refresh(service, used)

    async def take_back(self, address: Address, uids: dict[str, int]) -> None:
        """See `Moves.take_back`."""
        await self._opened()
        await self._moves.take_back(*address, uids)

    async def set_state(
        self, service: str, pod: int, incarnation: int, state: RoutingState
    ) -> None:
        """Set a pod's routing state; return when no placement made before is under way."""
        await self._opened()
        record = await self._census.known(service, pod)
        if record.incarnation != incarnation:
            raise self._census.unavailable(
                service, pod, f"incarnation {record.incarnation} is here"
            )
        await self._census.set_state(service, record, state)
        await self._directory.quiet(service)

    async def look_for(self, service: str, pod: int) -> bool:
        """Look whether the process that holds a pod index has ended; free the index if so."""
        await self._opened()
        await self._census.refresh(service)
        record = self._census.table.get(service, pod)
        return record is not None and await self._vigil.bury_if_ended(service, record)

    async def whereabouts(self) -> tuple[int, str]:
        """Return the router's process id and Ray node, for operators and tests that end it."""
        return os.getpid(), ray.get_runtime_context().get_node_id()

    async def leave(self) -> None:
        """Exit for good, if a younger router has taken over."""
        if self._directory.superseded.is_set():
            ray.actor.exit_actor()

    # What it does by itself.

    async def _opened(self) -> None:
        try:
            if not self._open.is_set():  # the wait alone takes 35 µs
                await asyncio.wait_for(self._open.wait(), _OPEN_S)
        except asyncio.TimeoutError:
            raise RouterUnavailableError(namespace=self._namespace, reason=self._problem) from None
        if self._directory.superseded.is_set():
            raise RouterUnavailableError(
                namespace=self._namespace, reason="a younger router has taken over"
            )

    async def _serve(self) -> None:
        try:
            # The vigil comes first: a dead pod will never tell what it remembers.
            await asyncio.gather(
                self._vigil.watch_tables(self._beat),
                self._vigil.watch_processes(),
                self._begin_and_go_on(),
            )
        except SupersededError:
            self._directory.superseded.set()
            self._open.set()
        except Exception:
            # A router that only looks alive is worse than none: Ray starts another.
            self._logger.exception("the router of %s can't go on", self._namespace)
            os._exit(1)

    async def _begin_and_go_on(self) -> None:
        await self._begin()
        await asyncio.gather(self._announcer.run(), self._replay.watch())

    async def _begin(self) -> None:
        pods_expected = await asyncio.to_thread(_has_pods, self._namespace)
        while True:
            try:
                await self._shards.claim()
                await self._census.refresh_all()
                self._problem = "it waits for its pods to say what they remember"
                await self._replay.begin(pods_expected=pods_expected)
                self._announcer.router = self._shards.incarnation
                await self._announcer.append(BEAT)
                break
            except RouteError as error:
                self._problem = str(error)
                self._logger.warning("the router of %s can't start yet: %s", self._namespace, error)
                await asyncio.sleep(_RETRY_S)
        self._logger.info("router %d of %s serves", self._shards.incarnation, self._namespace)
        self._census.meter.count(ROUTER_STARTS)
        self._open.set()

    def _beat(self) -> None:
        self._announcer.announce(BEAT)

    def _pod_changed(self, service: str, record: PodRecord) -> None:
        self._announcer.announce(Change("pod", service, pod=record))
        alive = record.life is Life.ALIVE
        ended = record.incarnation - 1 if alive else record.incarnation
        self._mailboxes.end(service, record.pod, ended)

    def _links_stale(self, service: str, epochs: dict[str, int]) -> None:
        for uid, epoch in epochs.items():
            self._directory.cache.drop(service, uid, epoch)
        if epochs:
            self._announcer.announce(Change("link", service, stale=epochs))

    async def _exit_when_superseded(self) -> None:
        await self._directory.superseded.wait()
        self._logger.warning("a younger router has taken over %s: this one exits", self._namespace)
        self._mailboxes.end_all()  # Ray lets calls end before it ends the actor
        await asyncio.sleep(_RETRY_S)  # let the answers out that say so
        # By way of Ray, so that it does not restart this one against the younger; unless Ray
        # has put the younger in this one's place already, and the call reaches that.
        ray.get_runtime_context().current_actor.leave.remote()
        await asyncio.sleep(_LEAVE_S)
        os._exit(0)


def _has_pods(namespace: str) -> bool:
    """True if there may be pods that Redis knows nothing of any more."""
    if ray.get_runtime_context().was_current_actor_reconstructed:
        return True
    ours, router = f"ray_route:{namespace}:", f"ray_route:{namespace}:router"
    named = ray.util.list_named_actors(all_namespaces=True)
    return any(a["name"].startswith(ours) and a["name"] != router for a in named)


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
            scheduling_strategy="DEFAULT",  # not in its maker's placement group, to end with that
        )
        .remote(namespace, url, config)
    )
