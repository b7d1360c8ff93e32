"""A process that reads links straight from a real server, and the router that it asks."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from ray_route.config import RouteConfig
from ray_route.protocol.welcome import Vouched
from ray_route.router.comparison import named
from ray_route.runtime.belief import Belief
from ray_route.runtime.link_reads import LinkReads, Part, Reading
from ray_route.runtime.worker import Worker
from ray_route.store.connect import AsyncStore, Store
from ray_route.store.keys import Keys
from ray_route.store.lanes import Lane
from ray_route.store.links import LinkCalls, Writer
from ray_route.store.url import StoreUrl

S = "chat"
CONFIG = RouteConfig(shards=8)
WAIT_S = 20


@dataclass
class Process:
    """What a process needs to read links, and a router that it asks: its counters, its compare."""

    url: StoreUrl
    keys: Keys
    seen: list[int] = field(default_factory=lambda: [0] * CONFIG.shards)
    routers: list[int] = field(default_factory=lambda: [0] * CONFIG.shards)
    asked: int = 0
    vouched_url: StoreUrl | None = None
    """Whom its router has, if that is another."""

    def __post_init__(self) -> None:
        self.store = Store(self.url)
        self.calls = LinkCalls(self.keys, CONFIG)
        self.worker = Worker("worker")
        self.belief = Belief(self.store, self.vouch)
        self.reads = LinkReads(
            self.worker, self.belief, self.calls, self.seen.__getitem__, self.saw_all
        )

    def saw_all(self, pairs: Any) -> None:
        for shard, counter in pairs:
            self.seen[shard] = max(counter, self.seen[shard])

    def vouch(self) -> Vouched:
        """Name the servers, and tell the counters that the router knows, as it does."""
        self.asked += 1
        vouched = asyncio.run(self._compared())
        self.saw_all(enumerate(vouched.seen))
        return vouched

    async def _compared(self) -> Vouched:
        store = AsyncStore(self.vouched_url or self.url)
        try:
            return Vouched(named((await store.servers()).values()), list(self.routers))
        finally:
            await store.close()

    # The router writes.

    def link(self, uid: str, owner: str) -> int:
        """Give a uid to an owner, whoever has it; return the epoch."""
        shard = self.keys.shard(uid)
        writer = Writer(1, self.routers[shard])
        call = self.calls.set(writer, shard, S, [uid], [owner], persistent=False)
        reply = self.calls.parse(self.store.one(call))
        assert reply.status == "ok"
        self.routers[shard] = reply.counter
        (link,) = reply.links
        assert link is not None
        return link.epoch

    # The process reads.

    def part(self, uid: str) -> Part:
        return Part(self.keys.shard(uid), [(S, uid)])

    def read(self, uid: str) -> Reading | Exception | None:
        (reading,) = self.reads.ask([self.part(uid)]).result(WAIT_S)
        return reading

    def pod_of(self, uid: str) -> int | None:
        reading = self.read(uid)
        if not isinstance(reading, Reading) or reading.reply.status != "ok":
            return None
        (link,) = reading.reply.links
        return link.pod if link else None

    def believe(self) -> None:
        self.belief.renewed().result(WAIT_S)

    def lane(self) -> Lane:
        """Take the believed lane, to be given back."""
        taken = self.belief.take("", 0)
        assert taken is not None
        return taken

    def close(self) -> None:
        self.worker.stop(10)
        self.belief.close()
        self.store.close()
