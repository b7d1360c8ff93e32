"""One master of a Cluster goes and comes back at any time: no uid that a pod holds moves.

Its servers are real, and its pods are played. It is away for the routers alone, whose commands to
it fail; what it loses by a failover meanwhile, and what runs out, is deleted.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pytest
from bare_router import CONFIG, SERVICE, Router, in_the_end, tell
from redis.exceptions import ConnectionError as NoConnectionError
from servers import ClusterServers
from test_masters_away import Place

from ray_route.clock import now
from ray_route.errors import RouteError
from ray_route.model import Link
from ray_route.protocol.commands import Memory
from ray_route.store import masters
from ray_route.store.connect import Store
from ray_route.store.scripts import plain_call

UIDS = [f"u{number}" for number in range(20)]
PASSED_S, AGO_S = 60.0, 30.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterServers]:
    with ClusterServers("valkey", in_part=True) as running:
        yield running


@dataclass
class World:
    """What pods hold, and since when the leases are over of those that have none."""

    store: Store
    place: Place
    router: Router
    choose: random.Random
    away: set[str]
    held: dict[str, Link] = field(default_factory=dict)
    ended_at: dict[str, float] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)

    def remember(self) -> None:
        """Have the pods say what they hold."""
        for pod in range(2):
            held = {u: (link.epoch, False) for u, link in self.held.items() if link.pod == pod}
            ago_s = {u: now() - self.ended_at[u] for u in held if u in self.ended_at}
            under, seen = self.router.shards.incarnation, list(self.counters())
            self.router.memories[pod] = Memory(seen, held, bool(ago_s), under, ago_s)

    def counters(self) -> Iterator[int]:
        """Yield the highest epoch in each shard of which pods know."""
        for shard in range(CONFIG.shards):
            there = [u for u in self.held if self.place.keys.shard(u) == shard]
            yield max((self.held[uid].epoch for uid in there), default=0)

    def of_away(self) -> list[str]:
        return [uid for uid in self.held if self.place.keys.shard(uid) in self.place.away]

    def end(self, uid: str) -> None:
        """Let a link run out, and its pod's lease on it before; no uid is kept for two of those."""
        self.router.run_out(uid)
        if uid in self.ended_at:
            del self.held[uid], self.ended_at[uid]
        else:
            self.ended_at[uid] = now() - AGO_S

    # What may happen.

    async def look_up(self) -> None:
        uid = self.choose.choice(UIDS)
        try:
            link = await self.router.place(uid)
        except RouteError:
            return
        self.check(uid, link)

    async def placed_after_beats(self, uid: str) -> Link:
        """Look, as each beat does, until a uid has its link."""

        async def placed() -> Link:
            await self.look()
            return await self.router.place(uid)

        return await in_the_end(placed)

    def check(self, uid: str, link: Link) -> None:
        known = self.held.setdefault(uid, link)
        assert (link.pod, link.epoch) == (known.pod, known.epoch), f"{uid} {self.told}"
        self.ended_at.pop(uid, None)

    async def go(self) -> None:
        name = self.router.shards._store.server_of(self.place.keys.counter(min(self.place.away)))
        self.away.update({name} if name else ())

    async def come_back(self) -> None:
        self.away.clear()
        self.router.shards._store._masters._circuits.clear()

    async def look(self) -> None:
        await self.router.gate.look()
        await self.router.recovery.compared()

    async def run_out_there(self) -> None:
        """It is away for so long that links run out there; the router looks on."""
        if not self.away:
            return
        await self.look()
        self.pass_time()
        await self.look()
        for uid in self.of_away():
            self.end(uid)

    def pass_time(self) -> None:
        shards = self.router.shards
        shards.placed_at = [at - PASSED_S for at in shards.placed_at]
        shards.counters.aside._looked_at = now() - PASSED_S
        since = shards.counters.aside._away_since
        shards.counters.aside._away_since = {shard: at - PASSED_S for shard, at in since.items()}
        self.ended_at = {uid: at - PASSED_S for uid, at in self.ended_at.items()}

    async def outage(self) -> None:
        """No server is there for so long that all links run out."""
        self.pass_time()
        self.router.gate._looked_at -= PASSED_S
        for uid in list(self.held):
            self.end(uid)

    async def lose(self) -> None:
        """While it is away it fails over to a replica that has nothing."""
        if not self.away:
            return
        keys = self.place.keys
        for uid in self.of_away():
            self.store.one(plain_call("DEL", keys.link(keys.shard(uid), SERVICE, uid)))
        for shard in self.place.away:
            self.store.one(plain_call("DEL", keys.counter(shard)))
        self.store.one(plain_call("HSET", keys.meta, "sealed", await self.identities()))

    async def identities(self) -> str:
        """Write who is there but that one, as a seal does that names it no more."""
        return ",".join(sorted((await self.router.shards._store.servers()).values()))

    async def begin_anew(self) -> None:
        """Another router begins, that knows of no uid which a pod keeps beyond its lease."""
        for uid in self.ended_at:
            del self.held[uid]
        self.ended_at.clear()
        self.remember()
        self.router = await Router.begun(self.store, self.place.keys, self.router.memories)
        await self.router.gate.look()


WHAT = {
    World.look_up: 10,
    World.go: 2,
    World.come_back: 2,
    World.look: 2,
    World.run_out_there: 2,
    World.outage: 1,
    World.lose: 1,
    World.begin_anew: 1,
}


@pytest.mark.parametrize("seed", range(20))
def test_no_uid_that_a_pod_holds_goes_elsewhere(
    cluster: ClusterServers, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    away: set[str] = set()
    run = masters._run

    async def cut_off(node: Any, commands: Any) -> None:
        if node.name in away:
            raise NoConnectionError("it is away")
        await run(node, commands)

    monkeypatch.setattr(masters, "_run", cut_off)
    monkeypatch.setattr(masters, "_PAUSE_S", 0.0)
    choose, place = random.Random(seed), Place(cluster, CONFIG.shards)

    async def story(router: Router) -> None:
        world = World(store, place, router, choose, away)
        for _ in range(40):
            (what,) = choose.choices(list(WHAT), list(WHAT.values()))
            world.remember()
            world.told.append(what.__name__)
            await what(world)
        await world.come_back()
        world.remember()
        for uid in list(world.held):
            world.check(uid, await world.placed_after_beats(uid))

    with closing(Store(cluster.store_url())) as store:
        tell(store, place.keys.namespace, story)
