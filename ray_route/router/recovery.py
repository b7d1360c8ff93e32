"""Recovery of what Redis has lost: from what this router remembers, and what the living pods hold.

Redis may be restarted without its data, or a replica promoted that lacks the last writes. Every
write advances its shard's counter, so the first script call afterwards notices. Its clock may step
forward, which ends links whose holders still serve; scripts that find it later than it can be
notice (`server_clock`). The pod tables come back first, then links, and each shard's counter last:
until then all others are refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ray_route.clock import now
from ray_route.config import RouteConfig
from ray_route.errors import (
    DamagedKeyError,
    LostWritesError,
    RouteError,
    StoreUnavailableError,
)
from ray_route.model import Life, Link, PodRecord
from ray_route.protocol.commands import Address, Memory, Recall
from ray_route.router.link_table import LinkTable
from ray_route.router.mailbox import Mailboxes, NoAnswerError
from ray_route.router.membership import Membership
from ray_route.router.shards import Shards, SupersededError
from ray_route.router.shared_run import SharedRun
from ray_route.runtime.metrics import LOST_SHARDS, RECOVERED_LINKS
from ray_route.store.circuit import PROBE_S
from ray_route.store.connect import AsyncStore
from ray_route.store.damage import tell
from ray_route.store.links import MAX_UIDS, LinkCalls, RememberedLink
from ray_route.store.namespaces import (
    is_whole,
    parse_looked,
    read_looked,
    read_whole,
    restore_meta,
    seal,
)
from ray_route.store.scripts import Call

logger = logging.getLogger(__name__)

# How long whoever meets a loss waits for the recovery; a frozen pod has its lease to answer.
_PATIENCE_S = 20.0
_ANSWER_S = 1.0
_PAUSE_S = 0.05
_CALLS_PER_TRIP = 20
_TOKENS = 2**31
# A pod that Redis has forgotten writes itself back within a heartbeat.
_BEATS = 2
# Another machine's clock may go that much faster.
_CLOCKS_APART = 1.01

_Names = dict[tuple[str, str], RememberedLink]


@dataclass(frozen=True, slots=True)
class _Part:
    """Some links of one shard and service, for one script call."""

    shard: int
    service: str
    uids: list[str]
    kept: list[RememberedLink]
    first: bool
    last: bool


class Recovery:
    """Notices losses and makes up for them. Belongs to one event loop.

    `interrupt` is called at each loss: whoever counts a pod's silence must begin anew.
    """

    def __init__(
        self,
        config: RouteConfig,
        store: AsyncStore,
        membership: Membership,
        shards: Shards,
        links: LinkTable,
        mailboxes: Mailboxes,
        interrupt: Callable[[], None],
    ) -> None:
        self._config = config
        self._store = store
        self._membership = membership
        self._shards = shards
        self._table = links
        self._mailboxes = mailboxes
        self._interrupt = interrupt
        self._links = LinkCalls(links.keys, config)
        self._logger = logging.LoggerAdapter(logger, {"namespace": links.keys.namespace})
        self.is_proven = False
        """True if nothing was lost since an earlier router's last seal: its pod tables are ours."""
        self.tell_lost: Callable[[Collection[int]], None] = _tell_nobody
        self._runs = SharedRun(self._compare)
        self._silent: set[Address] = set()

    # While the router serves.

    async def recover(self, shards: Iterable[int]) -> None:
        """Return when nothing of these shards is lost any more.

        Raises `LostWritesError` after 20 s, saying which pods were waited for, and
        `StoreUnavailableError`.
        """
        await self.vouched(shards)

    async def vouched(self, shards: Iterable[int] = ()) -> str:
        """Name the servers, of which a comparison found that they have lost nothing.

        It has begun after this call, and what it found lost is restored. Raises what `recover`
        does; its error names `shards`.
        """
        try:
            return await asyncio.wait_for(self._compared_twice(), _PATIENCE_S)
        except asyncio.TimeoutError:
            waiting = ", ".join(f"pod {pod} of {service}" for service, pod, _ in self._silent)
            raise LostWritesError(
                address=self._store.url.address,
                shards=sorted(shards),
                reason=f"the recovery waits for {waiting or 'Redis'}",
                namespace=self._table.keys.namespace,
            ) from None
        except SupersededError as error:
            raise self._table.taken_over() from error

    async def _compared_twice(self) -> str:
        try:
            return await self.compared()
        except StoreUnavailableError:
            # Whoever asks may have had an answer from a Redis that has just come back.
            await asyncio.sleep(2 * PROBE_S)
            return await self.compared()

    async def compared(self) -> str:
        """Do the same for as long as it takes; `SupersededError` is let through."""
        return await self._runs.begun_now()

    async def _compare(self) -> str:
        try:
            return await self._compare_and_restore()
        except SupersededError:
            self._table.superseded.set()
            raise

    async def _compare_and_restore(self) -> str:
        while True:
            servers = await self._store.servers()
            lost = await self._shards.lost()
            if not lost and await self._is_sealed(servers):
                return servers
            if lost:
                self.tell_lost(lost)  # before anything is made up for
            await self.restore(lost, servers)

    async def _is_sealed(self, servers: str) -> bool:
        """True if the namespace was whole on these servers; others come after a failover.

        Not where its own key is damaged either: a recovery writes that anew.
        """
        keys = self._table.keys
        try:
            reply = await self._store.one(read_whole(keys))
        except DamagedKeyError as error:
            tell(error)
            return False
        return is_whole(keys, reply, self._config, servers)

    # One recovery.

    async def restore(self, lost: Collection[int], servers: str) -> None:
        """Write back the pod tables and what is known of some shards, and seal the namespace.

        `servers` were there before the loss was looked for: the seal names no later ones. Raises
        `RouteError` where Redis fails. What is lost meanwhile is lost again afterwards.
        """
        token = random.randrange(1, _TOKENS)  # noqa: S311 - no secret
        await self._restore_tables(token)
        if lost:
            await self._restore_links(lost, token)
        self._shards.clocks.believe()
        await self._store.one(seal(self._table.keys, token, servers))

    async def _restore_links(self, lost: Collection[int], token: int) -> None:
        began = now()
        self._table.meter.count(LOST_SHARDS, by=len(lost))
        self._logger.error("Redis has lost links of %d shards: they are being recovered", len(lost))
        self._interrupt()
        memories = await self._recall(self._living(), Recall(frozenset(lost)))
        names = self._union(lost, memories, began)
        await self._write(lost, names, token)
        self._table.meter.count(RECOVERED_LINKS, by=len(names))
        took_s = now() - began
        self._logger.error(
            "%d links of %d shards recovered in %.2f s", len(names), len(lost), took_s
        )

    async def _restore_tables(self, token: int) -> None:
        """Write back meta and the pod tables."""
        keys, table = self._table.keys, self._membership.table
        meta = restore_meta(keys, self._config, self._shards.incarnation, token)
        if await self._store.one(meta) == b"deposed":
            raise self._shards.deposed()
        services = table.services()
        await self._membership.write_back(
            (service, pod) for service in services for pod in list(table.pods(service).values())
        )

    async def _run(self, calls: list[Call]) -> list[Any]:
        replies = []
        for start in range(0, len(calls), _CALLS_PER_TRIP):
            replies += await self._store.run(calls[start : start + _CALLS_PER_TRIP])
        for reply in replies:
            if isinstance(reply, RouteError):
                raise reply
        return replies

    def _union(
        self, lost: Collection[int], memories: dict[Address, Memory], asked_at: float
    ) -> _Names:
        """Gather what everybody remembers; the highest epoch wins, then our own word."""
        names: _Names = {}
        shards = frozenset(lost)
        for service, uid, kept in self._table.memory(shards):
            held = names.get((service, uid))
            if held is None or kept.link.epoch >= held.link.epoch:
                names[service, uid] = kept
        for address, memory in memories.items():
            service, pod, incarnation = address
            for uid, (epoch, persistent) in self._credible(address, memory, asked_at):
                held = names.get((service, uid))
                if held is None or epoch > held.link.epoch:
                    names[service, uid] = RememberedLink(
                        Link(pod, incarnation, epoch, persistent, 0)
                    )
        return names

    async def _write(self, lost: Collection[int], names: _Names, token: int) -> None:
        parts = self._parts(lost, names)
        calls = [
            self._links.restore(
                self._shards.writer(part.shard),
                part.shard,
                part.service,
                part.uids,
                part.kept,
                token=token,
                first=part.first,
                last=part.last,
            )
            for part in parts
        ]
        for part, reply in zip(parts, await self._run(calls), strict=True):
            parsed = self._links.parse(reply)
            if parsed.status == "superseded":
                raise SupersededError(self._table.keys.namespace)
            if parsed.status == "ok" and part.last:
                self._shards.remember([(part.shard, parsed.counter)])

    def _parts(self, lost: Collection[int], names: _Names) -> list[_Part]:
        """Cut each shard's links into script calls, in order."""
        by_shard: dict[int, dict[str, list[str]]] = {shard: {} for shard in lost}
        for service, uid in names:
            by_shard[self._table.keys.shard(uid)].setdefault(service, []).append(uid)
        parts = []
        for shard, services in by_shard.items():
            some = [
                (service, uids[start : start + MAX_UIDS])
                for service, uids in services.items()
                for start in range(0, len(uids), MAX_UIDS)
            ] or [("", [])]
            for number, (service, uids) in enumerate(some):
                kept = [names[service, uid] for uid in uids]
                first, last = number == 0, number == len(some) - 1
                parts.append(_Part(shard, service, uids, kept, first, last))
        return parts

    # What agents remember.

    def _living(self) -> list[Address]:
        table = self._membership.table
        return [
            (service, pod.pod, pod.incarnation)
            for service in table.services()
            for pod in table.pods(service).values()
            if pod.life is Life.ALIVE
        ]

    async def _recall(self, agents: list[Address], command: Recall) -> dict[Address, Memory]:
        """Ask living agents, each until it has answered or its life has ended."""
        self._silent = set(agents)
        memories = await asyncio.gather(*(self._ask(agent, command) for agent in agents))
        pairs = zip(agents, memories, strict=True)
        return {agent: memory for agent, memory in pairs if memory is not None}

    async def _ask(self, agent: Address, command: Recall) -> Memory | None:
        while self._is_alive(agent):
            try:
                memory: Memory = await self._mailboxes.ask(agent, command, _ANSWER_S)
            except NoAnswerError:
                await asyncio.sleep(_PAUSE_S)
            else:
                self._silent.discard(agent)
                self._shards.remember(enumerate(memory.counters))
                return memory
        self._silent.discard(agent)
        return None

    def _is_alive(self, agent: Address) -> bool:
        service, pod, incarnation = agent
        record: PodRecord | None = self._membership.table.get(service, pod)
        alive = record is not None and record.life is Life.ALIVE
        return alive and record is not None and record.incarnation == incarnation

    def spans(self, under: int) -> bool:
        """True if this router knows of every end of a life since a renewal under that router.

        If that was itself, each later end was written by itself: older routers' ends fail. Else it
        knows the ends that stood in the pod tables when it began, and those were whole.
        """
        return under == self._shards.incarnation or self.is_proven

    def _credible(
        self, address: Address, memory: Memory, asked_at: float
    ) -> Iterator[tuple[str, tuple[int, bool]]]:
        """Yield what may be written back of what a pod holds.

        Nothing of a lapsed life that may have been ended. A uid whose own lease had ended may have
        been another's since: only if nothing was placed in its shard.
        """
        final = self._membership.denied.is_final(address)
        if memory.lapsed and (final or not self.spans(memory.under)):
            return
        for uid, (epoch, persistent) in memory.held.items():
            ago_s = max(0.0, memory.ago_s.get(uid, 0.0))
            if persistent or not ago_s or self._stood_still(uid, asked_at, ago_s):
                yield uid, (epoch, persistent)

    def _stood_still(self, uid: str, asked_at: float, ago_s: float) -> bool:
        """True if nothing was placed in the uid's shard since its lease ended, `ago_s` ago."""
        placed_at = self._shards.placed_at[self._table.keys.shard(uid)]
        return placed_at <= asked_at - _CLOCKS_APART * ago_s

    # Links that have run out.

    async def readmit(self, agents: Iterable[Address] | None = None) -> None:
        """Write back links that ran out while their owner could not be reached, of all by default.

        Returns when each has answered or its life has ended; raises where Redis fails.
        """
        asked_at = now()
        everything = Recall(frozenset(range(self._table.keys.shards)))
        asked = self._living() if agents is None else list(agents)
        memories = await self._recall(asked, everything)
        for address, memory in memories.items():
            service, pod, incarnation = address
            links = {
                uid: Link(pod, incarnation, epoch, persistent=False, lease_s=0)
                for uid, (epoch, persistent) in self._credible(address, memory, asked_at)
                if uid in memory.ago_s
                and not persistent
                and not self._table.was_removed(service, uid, epoch)
            }
            if links:
                written = await self._table.readmit(service, links)
                self._table.meter.count(RECOVERED_LINKS, by=written)

    # At a router's start.

    async def begin(self, *, pods_expected: bool) -> None:
        """Become the only writer, knowing at least what the living agents know.

        Where the servers are the very processes that the last router saw, nothing is lost and
        nobody need be asked. `pods_expected`: there are pods, even if Redis knows none.
        """
        # Again, now that the pod tables have been read: nothing may have been lost in between.
        servers = await self._store.servers()
        is_whole = await self._is_sealed(servers)
        self.is_proven = self.is_proven and is_whole
        if not is_whole:
            await self._recollect(_BEATS * self._config.heartbeat_s if pods_expected else 0)
        await self.restore(await self._shards.take_over(), servers)
        await self._compare_and_restore()

    async def look_for_proof(self) -> None:
        """Before the claim: note whether the namespace is whole as an earlier router left it.

        And what the server's clock showed then, so that a step of it meanwhile is noticed.
        """
        self.is_proven = await self._is_sealed(await self._store.servers())
        with contextlib.suppress(DamagedKeyError):  # it has been told, and is written anew
            looked_us = parse_looked(await self._store.one(read_looked(self._table.keys)))
            if looked_us is not None:
                self._shards.clocks.showed(looked_us)

    async def _recollect(self, patience_s: float) -> None:
        """Hear every living agent; wait for those that Redis has forgotten to show up."""
        began = now()
        heard: set[Address] = set()
        while True:
            await self._membership.refresh_all()
            agents = [agent for agent in self._living() if agent not in heard]
            if not agents and now() - began >= patience_s:
                return
            await self._recall(agents, Recall(frozenset()))
            heard.update(agents)
            await asyncio.sleep(_PAUSE_S)


def _tell_nobody(_: Collection[int]) -> None:
    """Keep a loss to oneself."""
