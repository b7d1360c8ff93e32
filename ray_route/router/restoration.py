"""One recovery: what Redis has lost is gathered from all who remember it, and written back."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from ray_route.clock import now
from ray_route.config import RouteConfig
from ray_route.errors import RouteError
from ray_route.model import Link
from ray_route.protocol.commands import Address, Memory, Recall
from ray_route.router.comparison import Comparison
from ray_route.router.credible import Credible
from ray_route.router.link_table import LinkTable
from ray_route.router.membership import Membership
from ray_route.router.memories import Memories
from ray_route.router.shards import Shards, SupersededError
from ray_route.runtime.metrics import LOST_SHARDS, RECOVERED_LINKS
from ray_route.store.connect import AsyncStore
from ray_route.store.links import MAX_UIDS, LinkCalls, RememberedLink
from ray_route.store.namespaces import restore_meta, seal
from ray_route.store.scripts import Call

# A router's records of its recoveries have one name, which its users filter by.
logger = logging.getLogger("ray_route.router.recovery")

_CALLS_PER_TRIP = 20
_TOKENS = 2**31

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


@dataclass
class Restoration:
    """Writes back what was lost. `interrupt` is called first, whenever links are lost."""

    config: RouteConfig
    store: AsyncStore
    membership: Membership
    shards: Shards
    table: LinkTable
    memories: Memories
    credible: Credible
    comparison: Comparison
    interrupt: Callable[[], None]

    def __post_init__(self) -> None:
        keys = self.table.keys
        self._links = LinkCalls(keys, self.config)
        self._logger = logging.LoggerAdapter(logger, {"namespace": keys.namespace})

    async def restore(
        self, lost: Collection[int], servers: str, steps: Sequence[float | None] = ()
    ) -> None:
        """Write back the pod tables and what is known of some shards, and seal the namespace.

        `servers` were there before the loss was looked for: the seal names no later ones, nor
        any with shards that are set aside. `steps`
        are those of clocks that were found then. Raises `RouteError` where Redis fails. What is
        lost meanwhile is lost again afterwards.
        """
        token = random.randrange(1, _TOKENS)  # noqa: S311 - no secret
        home = self.comparison.home  # before the pod tables are written there
        await self._restore_tables(token)
        if lost:
            await self._restore_links(lost, token)
        self.shards.counters.clocks.believe(steps)
        whole = self.comparison.without_aside(servers)
        await self.store.one(seal(self.table.keys, token, whole, home))

    async def _restore_links(self, lost: Collection[int], token: int) -> None:
        began = now()
        self.table.meter.count(LOST_SHARDS, by=len(lost))
        self._logger.error("Redis has lost links of %d shards: they are being recovered", len(lost))
        self.interrupt()
        aside = self.shards.counters.aside.times
        memories = await self.memories.recall(self.memories.living(), Recall(frozenset(lost)))
        names = self._union(lost, memories, began)
        await self._write(lost, names, token, aside)
        self.table.meter.count(RECOVERED_LINKS, by=len(names))
        took_s = now() - began
        self._logger.error(
            "%d links of %d shards recovered in %.2f s", len(names), len(lost), took_s
        )

    async def _restore_tables(self, token: int) -> None:
        """Write back meta and the pod tables."""
        keys, table = self.table.keys, self.membership.table
        meta = restore_meta(keys, self.config, self.shards.incarnation, token)
        if await self.store.one(meta) == b"deposed":
            raise self.shards.deposed()
        services = table.services()
        await self.membership.write_back(
            (service, pod) for service in services for pod in list(table.pods(service).values())
        )

    async def _run(self, calls: list[Call]) -> list[Any]:
        replies = []
        for start in range(0, len(calls), _CALLS_PER_TRIP):
            replies += await self.store.run(calls[start : start + _CALLS_PER_TRIP])
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
        for service, uid, kept in self.table.memory(shards):
            held = names.get((service, uid))
            if held is None or kept.link.epoch >= held.link.epoch:
                names[service, uid] = kept
        for address, memory in memories.items():
            service, pod, incarnation = address
            for uid, (epoch, persistent) in self.credible.links(address, memory, asked_at):
                held = names.get((service, uid))
                if held is None or epoch > held.link.epoch:
                    names[service, uid] = RememberedLink(
                        Link(pod, incarnation, epoch, persistent, 0)
                    )
        return names

    async def _write(self, lost: Collection[int], names: _Names, token: int, aside: int) -> None:
        parts = self._parts(lost, names)
        calls = [
            self._links.restore(
                self.shards.writer(part.shard),
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
        with self.comparison.restoring(lost):
            replies = await self._run(calls)
        for part, reply in zip(parts, replies, strict=True):
            parsed = self._links.parse(reply)
            if parsed.status == "superseded":
                raise SupersededError(self.table.keys.namespace)
            if parsed.status == "ok" and part.last:
                self.shards.counters.remember([(part.shard, parsed.counter)])
                self.shards.counters.aside.discard(part.shard, aside)

    def _parts(self, lost: Collection[int], names: _Names) -> list[_Part]:
        """Cut each shard's links into script calls, in order."""
        by_shard: dict[int, dict[str, list[str]]] = {shard: {} for shard in lost}
        for service, uid in names:
            by_shard[self.table.keys.shard(uid)].setdefault(service, []).append(uid)
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
