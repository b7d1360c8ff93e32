"""While one master of a Redis Cluster is away, all that does not need it goes on; its shards wait.

What a router must have done in every shard is done in those when they are back, before anything is
read or written there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager

import pytest
from bare_router import CONFIG, SERVICE, Router, in_the_end, tell
from helpers import eventually, unique_name
from servers import ClusterServers
from test_resumption import WHO, Pod, close_all
from test_resumption import Router as Resuming

from ray_route.clock import now
from ray_route.errors import StoreUnavailableError
from ray_route.protocol.commands import Fate, Memory, Word
from ray_route.router.moves import Moves
from ray_route.router.placer import Placer
from ray_route.router.recovery import Recovery
from ray_route.router.shards import Shards, SupersededError
from ray_route.store.connect import Store
from ray_route.store.embedded import EmbeddedServer
from ray_route.store.keys import Keys
from ray_route.store.pods import PodCalls
from ray_route.store.scripts import plain_call

pytestmark = pytest.mark.slow

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
            eventually(self.cluster._is_ready, "the master is back")


async def recovered(router: Router) -> None:
    await in_the_end(lambda: router.recovery.recover(range(CONFIG.shards)))


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


@pytest.mark.parametrize("fate", Fate)
def test_what_a_pod_gave_up_is_settled_but_for_what_is_with_the_master_that_is_away(
    cluster: ClusterServers, store: Store, fate: Fate
) -> None:
    place = Place(cluster, CONFIG.shards)

    async def story(router: Router) -> None:
        router.directory._placer = Placer(router.membership, lambda *_: 0, place.keys.namespace)
        links = {uid: await router.place(uid) for uid in (place.here, place.there)}
        given = {uid: (link.epoch, fate) for uid, link in links.items()}
        address = (SERVICE, 0, router.pod(0).incarnation)
        rooms = (router.membership, router.links, router.directory, router.mailboxes)
        moves = Moves(*rooms, lambda *_: None, grace_s=60)
        with place.master_away():
            settled = await moves.settle(address, given)
            assert settled.keys() == {place.here}
        left = {place.there: given[place.there]}
        end = now() + WITHIN_S
        while not (settled := await moves.settle(address, left)):
            assert now() < end
            await asyncio.sleep(0.05)  # polls, within a deadline
        assert settled.keys() == {place.there}

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


def test_who_waited_for_pods_to_be_heard_places_nothing_in_what_was_set_aside_meanwhile(
    cluster: ClusterServers, store: Store
) -> None:
    """The master comes back in the very moment in which all others have been heard."""
    place = Place(cluster, CONFIG.shards)

    async def story(router: Router) -> None:
        there = await router.place(place.there)
        router.run_out(place.there)
        router.outage()
        router.remembers(there, place.there, 30.0)
        readmit = router.gate.readmit
        with place.master_away():

            async def heard_and_back() -> None:
                await readmit()
                cluster.thaw(place.other)
                await asyncio.to_thread(eventually, cluster._is_ready, "it is back", 20)

            router.gate.readmit = heard_and_back
            again = await in_the_end(lambda: router.place(place.there))
        assert (again.pod, again.epoch) == (there.pod, there.epoch)

    tell(store, place.keys.namespace, story)


def test_a_router_that_ends_seals_no_server_that_it_could_not_take_over(
    cluster: ClusterServers, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a failover lost there, which pods have told of, is still to be found by the next."""
    place = Place(cluster, CONFIG.shards)

    async def story(router: Router) -> None:
        there = await router.place(place.there)
        seen, held = list(router.shards.counters.seen), {place.there: (there.epoch, False)}
        memories = {there.pod: Memory(seen, held)}
        for key in lose_the_writes(place):
            store.one(plain_call("DEL", key))
        store.one(plain_call("HSET", place.keys.meta, "sealed", "those before"))
        take_over = Shards.take_over

        async def without_them(shards: Shards) -> list[int]:
            with place.master_away():  # it has just been seen
                return await take_over(shards)

        with monkeypatch.context() as patch:
            patch.setattr(Shards, "take_over", without_them)
            patch.setattr(Recovery, "_cure", nothing)  # it ends before they are back
            await Router.begun(store, place.keys, memories)
        young = await Router.begun(store, place.keys, memories)
        again = await in_the_end(lambda: young.place(place.there))
        assert (again.pod, again.epoch) == (there.pod, there.epoch)

    tell(store, place.keys.namespace, story)


def lose_the_writes(place: Place) -> list[str]:
    """Name the keys that hold what was written to a uid's shard."""
    shard = place.keys.shard(place.there)
    return [place.keys.counter(shard), place.keys.link(shard, SERVICE, place.there)]


async def nothing(_: Recovery) -> None:
    """Make up for nothing."""


class Owning:
    """A pod of a namespace whose own keys can move to another master of the cluster."""

    def __init__(self, cluster: ClusterServers, store: Store) -> None:
        self.cluster, self.store, self.url = cluster, store, cluster.store_url()
        self.keys = Keys(unique_name(), 16)
        self.pod = Pod(store, PodCalls(self.keys))

    async def router(self) -> Resuming:
        router = Resuming.on(self.url, self.keys)
        await router.begin()
        return router

    def move(self) -> None:
        """Move the pod tables, and what else lies with them, to another master."""
        slot = self.cluster.slot(self.keys.meta)
        source = self.cluster.owner(slot)
        to = next(node for node in self.cluster.nodes if node is not source)
        self.cluster.begin_move(slot, to)
        while self.cluster.move_keys(slot, source, to, 100):
            pass
        self.cluster.end_move(slot, to)
        eventually(lambda: self.cluster.owner(slot) is to, "it has arrived")

    async def ask(self, router: Resuming) -> Word:
        self.pod.renew()
        return await router.resumption.confirm(self.pod.address, self.pod.seq, self.pod.under, 0)


def in_the_cluster(cluster: ClusterServers, story: Callable[[Owning], Awaitable[None]]) -> None:
    async def main(store: Store) -> None:
        try:
            await story(Owning(cluster, store))
        finally:
            await close_all()

    with closing(Store(cluster.store_url())) as store:
        asyncio.run(asyncio.wait_for(main(store), 60))


def test_pod_tables_that_were_lost_and_then_moved_to_a_server_of_the_seal_are_no_proof(
    cluster: ClusterServers,
) -> None:
    """Each master has lost nothing; but what came to this one had, on its way."""

    async def story(place: Owning) -> None:
        await place.router()
        place.pod.claim()
        before = place.pod.copy()
        place.store.one(place.pod.calls.resign(WHO, place.pod.incarnation))
        place.pod.put_back(before)  # a replica that lagged has taken over
        place.move()  # and is emptied, to be taken away
        later = await place.router()
        assert not later.recovery.credible.is_proven
        assert await place.ask(later) is Word.ENDED

    in_the_cluster(cluster, story)


def test_pod_tables_that_have_moved_are_sealed_where_they_are(cluster: ClusterServers) -> None:
    async def story(place: Owning) -> None:
        router = await place.router()
        place.pod.claim()
        place.move()
        found = await router.recovery.comparison.look()
        assert not found.is_whole
        assert not found.lost
        await router.recovery.recover()
        assert (await router.recovery.comparison.look()).is_whole
        later = await place.router()
        assert later.recovery.credible.is_proven
        assert await place.ask(later) is Word.SERVE

    in_the_cluster(cluster, story)


Servers = dict[str, str]


def as_they_are(servers: Servers, _: str | None) -> Servers:
    return servers


def restarted(servers: Servers, _: str | None) -> Servers:
    return {name: f"{who}-again" for name, who in servers.items()}


def just_being_replaced(servers: Servers, home: str | None) -> Servers:
    """As seen before its successor is there, which is then written to."""
    return {name: who for name, who in servers.items() if name != home}


@pytest.mark.parametrize("now_seen", [as_they_are, restarted, just_being_replaced])
def test_a_lapsed_life_goes_on_if_the_servers_that_answer_can_have_lost_no_end(
    cluster: ClusterServers,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    now_seen: Callable[[Servers, str | None], Servers],
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

        async def others() -> Servers:
            return now_seen(await servers(), router.store.server_of(place.keys.meta))

        with place.master_away():
            monkeypatch.setattr(router.store, "servers", others)
            asked = router.resumption.confirm(
                pod.address, pod.seq, router.incarnation, router.incarnation
            )
            if now_seen is as_they_are:
                assert await asked is Word.SERVE
            else:
                with pytest.raises(StoreUnavailableError):
                    await asked
        assert store.one(plain_call("EXISTS", place.keys.meta)) == 1
        await close_all()

    asyncio.run(asyncio.wait_for(story(), 60))
