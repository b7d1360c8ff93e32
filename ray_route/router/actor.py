"""The router: one Ray actor per namespace that owns its links.

Detached, named, restarted for ever. This file is what clients and agents can ask. Decisions are
made in `directory`, moves in `moves`; dead pods are found in `failure_detector`; how a router
begins and ends is in `lifecycle`.
"""

from __future__ import annotations

import asyncio
import gc
import os
import pkgutil
from typing import TYPE_CHECKING, Any

import ray

from ray_route.config import RouteConfig
from ray_route.model import DrainProgress, Explanation, HotUid, Link, Pod, PodRecord, RoutingState
from ray_route.protocol.welcome import Vouched, Welcome
from ray_route.protocol.wire import pack_answers, unpack_question
from ray_route.store.url import StoreUrl

if TYPE_CHECKING:
    from ray_route.protocol.commands import (
        Address,
        Fetched,
        Given,
        Outcome,
        Refreshed,
        Settlement,
        Taken,
        Weighed,
        Word,
    )
    from ray_route.protocol.decided import Decided
    from ray_route.router.parts import Parts

_RETRY_S = 0.2
_PARTS = "ray_route.router.parts:Parts"


class Router:
    """The actor class; `runtime.namespace` makes its one instance per namespace."""

    def __init__(self, namespace: str, url: StoreUrl, config: RouteConfig) -> None:
        # What a router makes is mostly answers, which need no collector: with Python's own
        # thresholds it takes a sixth of bulk placement, and 40 ms at a time with 300,000 links.
        gc.set_threshold(20_000, 50, 100)
        self._namespace = namespace
        self._config = config
        # By name: whoever looks for its router loads this class, and needs none of its parts.
        parts: Parts = pkgutil.resolve_name(_PARTS)(namespace, url, config)
        self._shards = parts.shards
        self._changes = parts.changes
        self._mailboxes = parts.mailboxes
        self._membership = parts.membership
        self._links = parts.links
        self._directory = parts.directory
        self._moves = parts.moves
        self._drains = parts.drains
        self._shifts = parts.shifts
        self._failures = parts.failures
        self._recovery = parts.recovery
        self._resumption = parts.resumption
        self._life = parts.life
        self._life.begin()

    # Clients: links.

    async def hello(self) -> Welcome:
        """Return the configuration in force, the pod tables, and where the stream stood then."""
        await self._life.opened()
        position = self._changes.position
        table = self._membership.table
        tables = {name: list(table.pods(name).values()) for name in table.services()}
        return Welcome(self._config, position, tables, self._shards.counters.seen)

    async def vouch(self) -> Vouched:
        """Say which servers there are, by a comparison of counters that begins after this call.

        A shard that it finds lost is refused to whoever knows its counter, which this tells. Raises
        `StoreUnavailableError`.
        """
        await self._life.opened()
        found = await self._recovery.vouched()
        return Vouched(found.servers, list(self._shards.counters.seen))

    async def compute(self, question: bytes) -> bytes:
        """See `Directory.compute`; question and answers are packed (see `wire`)."""
        await self._life.opened()
        service, wanted, node = unpack_question(question)
        await self._moves.stand_still(service, wanted)
        return pack_answers(list((await self._directory.compute(service, wanted, node)).values()))

    async def find(self, question: bytes) -> bytes:
        """See `Directory.find`; question and answers are packed (see `wire`)."""
        await self._life.opened()
        service, wanted, _ = unpack_question(question)
        return pack_answers(list((await self._directory.find(service, wanted)).values()))

    async def set_if_absent(self, service: str, uid: str, pod: int, *, persistent: bool) -> Link:
        """See `LinkTable.set_if_absent`."""
        await self._life.opened()
        target = await self._membership.target(service, pod)
        return await self._links.set_if_absent(service, uid, target, persistent=persistent)

    async def set_link(
        self, service: str, uid: str, pod: int, *, persistent: bool | None, timeout_s: float
    ) -> Link:
        """See `Moves.set`."""
        await self._life.opened()
        return await self._moves.set(service, uid, pod, persistent=persistent, timeout_s=timeout_s)

    async def try_set_link(
        self, service: str, uid: str, pod: int, *, persistent: bool, steal: bool, timeout_s: float
    ) -> tuple[bool, Link]:
        """See `Moves.try_set`."""
        await self._life.opened()
        return await self._moves.try_set(
            service, uid, pod, persistent=persistent, steal=steal, timeout_s=timeout_s
        )

    async def remove_link(
        self, service: str, uid: str, pod: int | None, *, after_s: float, timeout_s: float
    ) -> bool:
        """See `Moves.remove`."""
        await self._life.opened()
        return await self._moves.remove(service, uid, pod, after_s=after_s, timeout_s=timeout_s)

    async def drop(self, service: str, uid: str) -> Link | None:
        """Forget a cached link; return it."""
        return self._links.cache.drop(service, uid)

    async def sweep(self, service: str) -> int:
        """See `Directory.sweep`."""
        await self._life.opened()
        return await self._directory.sweep(service)

    async def recover(self, seen: dict[int, int]) -> None:
        """Write back what Redis has lost in some shards, of which the caller was told so much."""
        await self._life.opened()
        self._shards.counters.remember(seen.items())
        await self._recovery.recover(seen)

    # Clients: pods.

    async def records(self, service: str) -> list[PodRecord]:
        """Read a service's pod table anew and return its records."""
        await self._life.opened()
        await self._membership.refresh(service)
        return list(self._membership.table.pods(service).values())

    async def pods(self, service: str) -> dict[int, Pod]:
        """See `Membership.pods`."""
        await self._life.opened()
        return await self._membership.pods(service)

    async def explain(self, service: str, uid: str) -> Explanation:
        """Say why a uid is where it is."""
        pods = await self.pods(service)
        found = await self._links.read(service, uid)
        # An epoch is at least Redis time in microseconds when it was given out.
        time_us = await self._membership.time_us()
        return Explanation(
            namespace=self._namespace,
            service=service,
            uid=uid,
            shard=self._links.keys.shard(uid),
            link=found,
            pod=pods.get(found.pod) if found else None,
            age_s=max(0, time_us - found.epoch) / 1e6 if found else None,
            decisions=self._links.decisions.about(service, uid),
        )

    async def decided(self, router: int, count: int, most: int) -> Decided:
        """Return what was decided since that router had made so many decisions, the last of it.

        Of another router's than this nothing is known: all are new.
        """
        from ray_route.protocol.decided import Decided  # noqa: PLC0415 - as the parts

        await self._life.opened()
        decisions, mine = self._links.decisions, self._life.incarnation
        new = decisions.after(count if router == mine else 0, most)
        return Decided(mine, decisions.count, new)

    async def report_failure(
        self, service: str, pod: int, incarnation: int, *, died: bool = False
    ) -> bool:
        """Look into a pod that a caller could not reach; say whether that life has ended.

        `died` tells that Ray called the actor dead, not only unavailable.
        """
        await self._life.opened()
        return await self._failures.look_into(service, pod, incarnation, died=died)

    async def drain(
        self,
        service: str,
        pod: int,
        deadline_s: float,
        *,
        go_on: bool,
        found: RoutingState | None = None,
    ) -> RoutingState:
        """Begin to drain a pod (see `drain_progress`), or take up the drain of an earlier router.

        One that is under way goes by this deadline from now on. Returns the state in which the pod
        was `found` before, which a drain that stops gives back.
        """
        await self._life.opened()
        record = await self._membership.known(service, pod)
        before = found or record.state
        if not record.routable:
            self._drains.forget(service, pod)
            return before
        again = found is not None  # who takes up its own drain does not overrule a later one
        return self._drains.start(
            service, record, before, deadline_s, go_on=go_on, only_sooner=again
        )

    async def drain_progress(self, service: str, pod: int) -> DrainProgress | None:
        """How far the drain of a pod has come; None if this router began none."""
        record = self._membership.table.get(service, pod)
        known = self._drains.progress(service, pod)
        if known is None and record is not None and not record.routable:
            return DrainProgress(pod, left=0, moved=0, running=0, done=True)
        return known

    async def weigh(self, service: str) -> dict[tuple[int, int], Weighed]:
        """See `Shifts.weigh`."""
        await self._life.opened()
        return await self._shifts.weigh(service)

    async def count(self, service: str) -> dict[int, int]:
        """See `Shifts.count`."""
        await self._life.opened()
        return await self._shifts.count(service)

    async def hottest(self, service: str, most: int) -> list[HotUid]:
        """See `Shifts.hottest`."""
        await self._life.opened()
        return await self._shifts.hottest(service, most)

    async def shift(
        self, service: str, moves: dict[str, tuple[int, int]], patience_s: float
    ) -> dict[str, str]:
        """See `Shifts.shift`."""
        await self._life.opened()
        return await self._shifts.shift(service, moves, patience_s)

    # Agents.

    async def fetch_commands(self, address: Address, wait_s: float, had: list[int]) -> Fetched:
        """Return commands for an agent, waiting for some, or for news of the servers.

        All but those that it says it `had`, by their numbers: an answer may have been lost.
        """
        from ray_route.protocol.commands import Fetched  # noqa: PLC0415 - as the parts

        service, pod, incarnation = address
        record = self._membership.table.get(service, pod)
        if record is None or record.incarnation < incarnation:
            await self._membership.refresh(service)
            record = self._membership.table.get(service, pod)
        mine = record is not None and record.incarnation == incarnation
        if mine:
            self._failures.hear(service, pod)
        commands = await self._mailboxes.fetch(address, wait_s, had) if mine else []
        record = self._membership.table.get(service, pod)
        state = record.state if record and mine else RoutingState.READY
        if not mine:
            await asyncio.sleep(_RETRY_S)
        servers = self._recovery.comparison.seen_last
        return Fetched(self._life.incarnation, state, commands, servers)

    async def confirm_life(
        self, address: Address, seq: int, under: int, heard: int
    ) -> tuple[Word, int]:
        """See `Resumption.confirm`; return the word, and which router gives it."""
        await self._life.opened()
        word = await self._resumption.confirm(address, seq, under, heard)
        return word, self._life.incarnation

    async def take_answer(self, address: Address, number: int, result: Any) -> None:
        """Take in an agent's answer."""
        self._mailboxes.answer(address, number, result)

    async def report_use(
        self, service: str, used: dict[str, int], *, ending: bool = False
    ) -> Refreshed:
        """See `LinkTable.refresh`."""
        await self._life.opened()
        return await self._links.refresh(service, used, ending=ending)

    async def take_outcomes(self, address: Address, outcomes: list[Outcome | Taken]) -> None:
        """Take in what became of uids that an agent was told to give up, or to fetch."""
        self._mailboxes.take_outcomes(address, outcomes)

    async def settle(self, address: Address, given: dict[str, Given]) -> dict[str, Settlement]:
        """See `Moves.settle`."""
        await self._life.opened()
        return await self._moves.settle(address, given)

    async def set_state(
        self, service: str, pod: int, incarnation: int, state: RoutingState
    ) -> None:
        """Set a pod's routing state; return when no placement made before is under way."""
        await self._life.opened()
        record = await self._membership.known(service, pod)
        if record.incarnation != incarnation:
            raise self._membership.unavailable(
                service, pod, f"incarnation {record.incarnation} is here"
            )
        await self._membership.set_state(service, record, state)
        await self._directory.quiet(service)

    async def look_for(self, service: str, pod: int) -> bool:
        """Look whether the process that holds a pod index has ended; free the index if so."""
        await self._life.opened()
        await self._membership.refresh(service)
        record = self._membership.table.get(service, pod)
        return record is not None and await self._failures.declare_dead_if_ended(service, record)

    async def whereabouts(self) -> tuple[int, str]:
        """Return the router's process id and Ray node, for operators and tests that end it."""
        return os.getpid(), ray.get_runtime_context().get_node_id()

    async def leave(self) -> None:
        """Exit for good, if a younger router has taken over."""
        if self._links.superseded.is_set():
            ray.actor.exit_actor()
