"""What a replica's agent is told, and when."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from ray_route.model import Link
from ray_route.serve.use_reports import UseReports

LINK = Link(0, 7, 100, persistent=False, lease_s=5.0)
LATER_S = 0.05


@dataclass
class Replica:
    told: asyncio.Queue[set[str]] = field(default_factory=asyncio.Queue)
    open: asyncio.Event = field(default_factory=asyncio.Event)
    broken: bool = False

    async def tell(self, links: dict[str, Link]) -> None:
        self.told.put_nowait(set(links))
        await self.open.wait()
        if self.broken:
            raise RuntimeError("the replica is gone")

    async def next(self) -> set[str]:
        return await asyncio.wait_for(self.told.get(), 5)


def test_new_sessions_are_told_at_once_and_together_while_a_message_is_under_way():
    async def scene() -> None:
        replica = Replica()
        use_reports = UseReports(replica.tell)
        use_reports.add("a", LINK, 0)
        assert await replica.next() == {"a"}
        for name in "bcd":
            use_reports.add(name, LINK, 0)
        replica.open.set()
        assert await replica.next() == {"b", "c", "d"}

    asyncio.run(scene())


def test_use_is_told_later_and_once():
    async def scene() -> None:
        replica = Replica()
        replica.open.set()
        use_reports = UseReports(replica.tell)
        for _ in range(10):
            use_reports.add("a", LINK, LATER_S)
        await asyncio.sleep(0)
        assert replica.told.empty()
        assert await replica.next() == {"a"}
        use_reports.add("a", LINK, LATER_S)
        assert await replica.next() == {"a"}

    asyncio.run(scene())


def test_a_replica_that_could_not_be_told_is_told_the_next_time():
    async def scene() -> None:
        replica = Replica(broken=True)
        replica.open.set()
        use_reports = UseReports(replica.tell)
        use_reports.add("a", LINK, 0)
        await replica.next()
        await asyncio.sleep(0)
        use_reports.add("b", LINK, 0)
        assert await replica.next() == {"b"}

    asyncio.run(scene())
