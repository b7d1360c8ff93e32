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
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from ray_route.clock import now
from ray_route.config import RouteConfig
from ray_route.errors import (
    DamagedKeyError,
    LostWritesError,
    StoreUnavailableError,
)
from ray_route.model import Link
from ray_route.protocol.commands import Address, Recall
from ray_route.router.comparison import Compared, Comparison
from ray_route.router.credible import Credible
from ray_route.router.link_table import LinkTable
from ray_route.router.mailbox import Mailboxes
from ray_route.router.membership import Membership
from ray_route.router.memories import Memories
from ray_route.router.restoration import Restoration
from ray_route.router.shards import Shards, SupersededError
from ray_route.router.shared_run import SharedRun
from ray_route.runtime.metrics import RECOVERED_LINKS
from ray_route.store.circuit import PROBE_S
from ray_route.store.connect import AsyncStore
from ray_route.store.namespaces import (
    parse_looked,
    read_looked,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

# How long whoever meets a loss waits for the recovery; a frozen pod has its lease to answer.
_PATIENCE_S = 20.0
_PAUSE_S = 0.05
# A pod that Redis has forgotten writes itself back within a heartbeat.
_BEATS = 2


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
        self._memories = Memories(membership, shards, mailboxes)
        self.credible = Credible(membership, shards, links.keys)
        self.comparison = Comparison(config, store, links.keys, shards)
        self.restoration = Restoration(
            *(config, store, membership, shards, links),
            *(self._memories, self.credible, self.comparison, interrupt),
        )
        self._looks = SharedRun(self._look)
        self._cures = SharedRun(self._cure)

    # While the router serves.

    async def recover(self, shards: Iterable[int] | None = None) -> None:
        """Return when nothing of these shards is lost any more; by default, nothing at all.

        Raises `LostWritesError` after 20 s, saying which pods were waited for, and
        `StoreUnavailableError`.
        """
        wanted = None if shards is None else frozenset(shards)
        await self._in_time(self._cured(wanted), wanted or ())

    async def vouched(self) -> Compared:
        """Return what a comparison has found that began after this call; waits for no recovery.

        Raises `StoreUnavailableError`.
        """
        return await self._in_time(self._compared_twice(), ())

    async def _in_time(self, work: Awaitable[T], shards: Iterable[int]) -> T:
        try:
            return await asyncio.wait_for(work, _PATIENCE_S)
        except asyncio.TimeoutError:
            silent = sorted(self._memories.silent)
            waiting = ", ".join(f"pod {pod} of {service}" for service, pod, _ in silent)
            raise LostWritesError(
                address=self._store.url.address,
                shards=sorted(shards),
                reason=f"the recovery waits for {waiting or 'Redis'}",
                namespace=self._table.keys.namespace,
            ) from None
        except SupersededError as error:
            raise self._table.taken_over() from error

    async def _cured(self, shards: frozenset[int] | None) -> None:
        while _is_missing(found := await self._compared_twice(), shards):
            await self._cures.begun_now()
        if shards and shards & found.unseen:
            raise self._shards.problems.unread(min(shards & found.unseen))

    async def _compared_twice(self) -> Compared:
        try:
            return await self.compared()
        except StoreUnavailableError:
            # Whoever asks may have had an answer from a Redis that has just come back.
            await asyncio.sleep(2 * PROBE_S)
            return await self.compared()

    async def compared(self) -> Compared:
        """Look, from now on; have what is found lost made up for in the background."""
        return await self._looks.begun_now()

    async def _look(self) -> Compared:
        found = await self.comparison.look()
        if not found.is_whole:
            self._cures.begin_if_idle()
        return found

    async def _cure(self) -> None:
        try:
            while not (found := await self.compared()).is_whole:
                await self.restoration.restore(found.lost, found.servers, found.steps)
        except SupersededError:
            self._table.superseded.set()
            raise

    # Links that have run out.

    async def readmit(self, agents: Iterable[Address] | None = None) -> None:
        """Write back links that ran out while their owner could not be reached, of all by default.

        Returns when each has answered or its life has ended; raises where Redis fails. In a Cluster
        shards whose master is away are set aside instead.
        """
        asked_at = now()
        everything = Recall(frozenset(range(self._table.keys.shards)))
        asked = self._memories.living() if agents is None else list(agents)
        memories = await self._memories.recall(asked, everything)
        for address, memory in memories.items():
            service, pod, incarnation = address
            links = {
                uid: Link(pod, incarnation, epoch, persistent=False, lease_s=0)
                for uid, (epoch, persistent) in self.credible.links(address, memory, asked_at)
                if uid in memory.ago_s
                and not persistent
                and not self._table.removals.cover(service, uid, epoch)
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
        servers = await self.comparison.servers()
        self.credible.is_proven = self.credible.is_proven and await self._is_proven()
        if not await self.comparison.is_sealed(servers):
            await self._recollect(_BEATS * self._config.heartbeat_s if pods_expected else 0)
        await self.restoration.restore(await self._shards.take_over(), servers)
        await self._cures.begun_now()

    async def look_for_proof(self) -> None:
        """Before the claim: note whether the namespace is whole as an earlier router left it.

        And what the server's clock showed then, so that a step of it meanwhile is noticed.
        """
        self.credible.is_proven = await self._is_proven()
        with contextlib.suppress(DamagedKeyError):  # it has been told, and is written anew
            looked_us = parse_looked(await self._store.one(read_looked(self._table.keys)))
            if looked_us is not None:
                self._shards.counters.clocks.showed(looked_us)

    async def _is_proven(self) -> bool:
        """True if the pod tables are as an earlier router left them.

        Of a Cluster's masters the namespace's own says so, whatever became of others: it has lost
        nothing since it was named in a seal, and the tables have been there since.
        """
        await self.comparison.servers()
        return await self.comparison.is_sealed(self.comparison.home, others_away=True)

    async def _recollect(self, patience_s: float) -> None:
        """Hear every living agent; wait for those that Redis has forgotten to show up."""
        began = now()
        heard: set[Address] = set()
        while True:
            await self._membership.refresh_all()
            agents = [agent for agent in self._memories.living() if agent not in heard]
            if not agents and now() - began >= patience_s:
                return
            await self._memories.recall(agents, Recall(frozenset()))
            heard.update(agents)
            await asyncio.sleep(_PAUSE_S)


def _is_missing(found: Compared, shards: frozenset[int] | None) -> bool:
    """True if a look found some of these shards lost; by default, if anything is."""
    return not found.is_whole if shards is None else bool(found.lost & shards)
