"""While one master of a Redis Cluster is away, all that does not need it goes on; its shards wait.

What a router must have done in every shard is done in those when they are back, before anything is
read or written there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager

import pytest
from bare_router import CONFIG, SERVICE, Router, tell
from helpers import eventually, unique_name
from servers import ClusterServers
from test_resumption import Pod, close_all
from test_resumption import Router as Resuming

from ray_route.clock import now
from ray_route.errors import RouteError, StoreUnavailableError
from ray_route.model import Link
from ray_route.protocol.commands import Word
from ray_route.router.shards import SupersededError
from ray_route.store.connect import Store
from ray_route.store.embedded import EmbeddedServer
from ray_route.store.keys import Keys
from ray_route.store.pods import PodCalls
from ray_route.store.scripts import plain_call

WITHIN_S = 40


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterServers]:
    with ClusterServers("valkey", in_part=True) as running:
        yield running


@pytest.fixture
def store(cluster: ClusterServers) -> Iterator[Store]:
    with closing(Store(cluster.store_url())) as opened:
        yield opened


class Place:
    """A namespace of which some shards, and not its own keys, are on a master that can be away."""

    def __init__(self, cluster: ClusterServers, shards: int) -> None:
        self.cluster = cluster
        home: EmbeddedServer | None = None
        held: dict[int, EmbeddedServer] = {}
        while len({node.port for node in held.values()} - {home.port if home else 0}) < 1:
            self.keys = Keys(unique_name(), shards)
            home = cluster.owner(cluster.slot(self.keys.meta))
            counters = {s: cluster.slot(self.keys.counter(s)) for s in range(shards)}
            held = {shard: cluster.owner(slot) for shard, slot in counters.items()}
            here = {shard for shard, node in held.items() if node is home}
            if not here:
                held = {}
        self.other = next(node for node in held.values() if node is not home)
        self.away = {shard for shard, node in held.items() if node is self.other}
        self.there = self.uid("there", lambda shard: shard in self.away)
        self.here = self.uid("here", lambda shard: shard not in self.away)

    def uid(self, name: str, fits: Callable[[int], bool]) -> str:
        uids = (f"{name}{number}" for number in range(1000))
        return next(uid for uid in uids if fits(self.keys.shard(uid)))

    @contextmanager
    def master_away(self) -> Iterator[None]:
        self.cluster.freeze(self.other)
        try:
            yield
        finally:
            self.cluster.thaw(self.other)
            eventually(self.cluster._is_ready, "the master is back", within_s=20)


async def in_the_end(work: Callable[[], Awaitable[Link]]) -> Link:
    end = now() + WITHIN_S
    while True:
        try:
            return await work()
        except RouteError:
            assert now() < end
            await asyncio.sleep(0.05)


async def recovered(router: Router) -> None:
    async def whole() -> Link:
        await router.recovery.recover(range(CONFIG.shards))
        return Link(0, 0, 0, persistent=False, lease_s=0)

    await in_the_end(whole)


def test_a_router_begins_and_has_the_rest_when_it_is_back(
    cluster: ClusterServers, store: Store
) -> None:
    place = Place(cluster, CONFIG.shards)

    async def story(old: Router) -> None:
        there = await old.place(place.there)
        with place.master_away():
            young = await Router.begun(store, place.keys)
            assert (await young.place(place.here)).epoch
            with pytest.raises(StoreUnavailableError):
                await young.place(place.there)
        young.links.cache.drop(SERVICE, place.there)
        again = await in_the_end(lambda: young.place(place.there))
        assert (again.pod, again.epoch) == (there.pod, there.epoch)
        with pytest.raises(SupersededError):  # nor does the older one write there any more
            await old.shards.run(
                [place.there],
                lambda writer, shard, uids: old.shards._links.remove(writer, shard, SERVICE, uids),
            )

    tell(store, place.keys.namespace, story)


def test_after_an_outage_the_rest_is_placed_and_its_own_come_back_later(
    cluster: ClusterServers, store: Store
) -> None:
    place = Place(cluster, CONFIG.shards)

    async def story(router: Router) -> None:
        there = await router.place(place.there)
        router.run_out(place.there)
        router.outage()
        router.remembers(there, place.there, 30.0)
        with place.master_away():
            assert (await in_the_end(lambda: router.place(place.here))).epoch
        again = await in_the_end(lambda: router.place(place.there))
        assert (again.pod, again.epoch) == (there.pod, there.epoch)

    tell(store, place.keys.namespace, story)


def test_what_ran_out_while_it_was_away_for_long_comes_back(
    cluster: ClusterServers, store: Store
) -> None:
    """The router's own looks went on meanwhile, and its gate stood open."""
    place = Place(cluster, CONFIG.shards)

    async def story(router: Router) -> None:
        there = await router.place(place.there)
        router.shards.placed_at = [at - 60 for at in router.shards.placed_at]
        router.remembers(there, place.there, 1.0)
        with place.master_away():
            end = now() + CONFIG.pod_lease_s
            while now() < end:
                await router.gate.look()
                await router.recovery.compared()
        router.run_out(place.there)
        await recovered(router)
        again = await in_the_end(lambda: router.place(place.there))
        assert (again.pod, again.epoch) == (there.pod, there.epoch)

    tell(store, place.keys.namespace, story)


@pytest.mark.parametrize("same", [True, False])
def test_a_lapsed_life_goes_on_if_the_servers_that_answer_can_have_lost_no_end(
    cluster: ClusterServers, store: Store, monkeypatch: pytest.MonkeyPatch, *, same: bool
) -> None:
    async def story() -> None:
        place = Place(cluster, 16)
        router = Resuming.on(cluster.store_url(), place.keys)
        await router.begin()
        pod = Pod(store, PodCalls(place.keys))
        pod.claim()
        await router.membership.refresh_all()
        pod.renew()
        router.resumption._patience_s = 30.0  # a frozen master keeps each look waiting
        servers = router.store.servers

        async def others() -> dict[str, str]:
            return {name: f"{who}-again" for name, who in (await servers()).items()}

        with place.master_away():
            if not same:
                monkeypatch.setattr(router.store, "servers", others)
            asked = router.resumption.confirm(
                pod.address, pod.seq, router.incarnation, router.incarnation
            )
            if same:
                assert await asked is Word.SERVE
            else:
                with pytest.raises(StoreUnavailableError):
                    await asked
        assert store.one(plain_call("EXISTS", place.keys.meta)) == 1
        await close_all()

    asyncio.run(asyncio.wait_for(story(), 60))
