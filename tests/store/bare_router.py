"""A router's insides on a bare event loop, over a real server; its pods are played."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from helpers import WITHIN_S

from ray_route.clock import now
from ray_route.config import RouteConfig
from ray_route.errors import LostWritesError, RouteError
from ray_route.model import Link, PodRecord, RoutingState
from ray_route.protocol.commands import Memory, Recall
from ray_route.router.directory import Directory
from ray_route.router.link_table import LinkTable
from ray_route.router.mailbox import Mailboxes
from ray_route.router.membership import Membership
from ray_route.router.placing_gate import PlacingGate
from ray_route.router.recovery import Recovery
from ray_route.router.shards import Shards
from ray_route.store.connect import AsyncStore, Store
from ray_route.store.keys import Keys
from ray_route.store.links import LinkCalls
from ray_route.store.pods import Identity, PodCalls
from ray_route.store.scripts import plain_call

T = TypeVar("T")
SERVICE = "chat"
CONFIG = RouteConfig(shards=4, pod_lease_s=3.0, heartbeat_s=0.5, staleness_s=3.0)
READY = RoutingState.READY


_OPENED: list[AsyncStore] = []


async def in_the_end(work: Callable[[], Awaitable[T]]) -> T:
    """Try again what raises a `RouteError`, within a minute."""
    end = now() + WITHIN_S
    while True:
        try:
            return await work()
        except RouteError:
            assert now() < end
            await asyncio.sleep(0.05)  # polls, within a deadline


@dataclass
class Router:
    """A router's insides on a bare event loop. Its pods say what `memories` holds."""

    store: Store
    keys: Keys
    shards: Shards
    membership: Membership
    links: LinkTable
    directory: Directory
    recovery: Recovery
    gate: PlacingGate
    mailboxes: Mailboxes
    memories: dict[int, Memory] = field(default_factory=dict)
    recalls: int = 0
    answering: asyncio.Task[None] | None = None

    @classmethod
    async def begun(
        cls, store: Store, keys: Keys, memories: dict[int, Memory] | None = None
    ) -> Router:
        connection = AsyncStore(store.url)
        _OPENED.append(connection)
        shards = Shards(connection, keys, LinkCalls(keys, CONFIG))
        membership = Membership(connection, keys, lambda *_: None, shards)
        links = LinkTable(CONFIG, keys, membership, shards)
        directory = Directory(CONFIG, links, connection, membership)
        mailboxes = Mailboxes()
        parts = (CONFIG, connection, membership, shards, links, mailboxes)
        recovery = Recovery(*parts, lambda: None)
        gate = PlacingGate(keys.namespace, CONFIG, membership)
        gate.readmit = recovery.readmit
        shards.may_place, shards.recover = gate.passed, recovery.recover
        shards.look = recovery.compared
        rooms = (shards, membership, links, directory, recovery, gate, mailboxes)
        router = cls(store, keys, *rooms, memories=memories or {})
        router.answering = asyncio.create_task(router.answer())
        await in_the_end(router.begin)  # its server may wait for a busy machine: routers ask again
        return router

    async def begin(self) -> None:
        await self.recovery.look_for_proof()
        await self.shards.claim()
        await self.membership.refresh_all()
        await self.recovery.begin(pods_expected=False)

    async def answer(self) -> None:
        while True:
            for address, box in list(self.mailboxes._boxes.items()):
                for number, command in list(box.commands.items()):
                    assert isinstance(command, Recall)
                    self.recalls += 1
                    memory = self.memories.get(address[1], Memory([0] * CONFIG.shards, {}))
                    held = {u: of for u, of in memory.held.items() if self.is_in(u, command)}
                    self.mailboxes.answer(address, number, replace(memory, held=held))
            await asyncio.sleep(0.005)

    def is_in(self, uid: str, recall: Recall) -> bool:
        return self.keys.shard(uid) in recall.shards

    async def place(self, uid: str) -> Link:
        """Look a uid up as clients do, who have what was lost recovered and ask again."""
        return await self.asked(uid, lambda: self.directory.compute(SERVICE, {uid: 0}, None))

    async def find(self, uid: str) -> Link:
        return await self.asked(uid, lambda: self.directory.find(SERVICE, {uid: 0}))

    async def asked(self, uid: str, ask: Callable[[], Awaitable[Mapping[str, object]]]) -> Link:
        while isinstance(answer := (await ask())[uid], LostWritesError):
            await self.recovery.recover([self.keys.shard(uid)])
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, Link)
        return answer

    def run_out(self, uid: str) -> None:
        """Let a uid's link end, as in an outage that outlived it."""
        shard = self.keys.shard(uid)
        self.store.one(plain_call("DEL", self.keys.link(shard, SERVICE, uid)))
        self.links.cache.drop(SERVICE, uid)

    def outage(self, lasted_s: float = 60.0) -> None:
        """Let it be so long since the last look, and longer since anything was placed."""
        self.gate._looked_at -= lasted_s
        self.shards.placed_at = [at - 2 * lasted_s for at in self.shards.placed_at]

    def remembers(self, link: Link, uid: str, ago_s: float, *, lapsed: bool = True) -> None:
        """Let a uid's pod hold on to it, under a lease that ended so long ago."""
        held = {uid: (link.epoch, link.persistent)}
        under = self.shards.incarnation
        memory = Memory([0] * CONFIG.shards, held, lapsed, under, {uid: ago_s})
        self.memories[link.pod] = memory

    def pod(self, index: int) -> PodRecord:
        record = self.membership.table.get(SERVICE, index)
        assert record is not None
        return record


Story = Callable[[Router], Awaitable[None]]


def tell(store: Store, namespace: str, story: Story) -> None:
    """Run a story with two pods and a router that has looked, within 60 s."""

    async def prepared() -> Router:
        keys = Keys(namespace, CONFIG.shards)
        router = await Router.begun(store, keys)
        pods = PodCalls(keys)
        for pod in range(2):
            who = Identity(SERVICE, pod, f"process-{pod}", "node", "")
            store.one(pods.claim(who, READY))
        await router.membership.refresh_all()
        await router.gate.passed()
        router.recalls = 0
        return router

    async def main() -> None:
        try:
            await story(await prepared())
        finally:
            while _OPENED:
                await _OPENED.pop().close()

    asyncio.run(asyncio.wait_for(main(), 60))
