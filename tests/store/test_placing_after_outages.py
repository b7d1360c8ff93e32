"""After an outage whoever may have lapsed in it is heard before anybody is placed anew."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest
from shardbench import Shard

from ray_route.clock import now
from ray_route.config import RouteConfig
from ray_route.errors import RouterUnavailableError, StoreUnavailableError
from ray_route.model import Link, PodRecord, RoutingState
from ray_route.protocol.commands import Memory, Recall, Word
from ray_route.router.directory import Directory
from ray_route.router.link_table import LinkTable
from ray_route.router.mailbox import Mailboxes
from ray_route.router.membership import Membership
from ray_route.router.placing_gate import PlacingGate
from ray_route.router.recovery import Recovery
from ray_route.router.resumption import Resumption
from ray_route.router.shards import Shards
from ray_route.store.connect import AsyncStore, Store
from ray_route.store.keys import Keys
from ray_route.store.links import LinkCalls
from ray_route.store.pods import Identity, PodCalls
from ray_route.store.scripts import plain_call

SERVICE = "chat"
CONFIG = RouteConfig(shards=4, pod_lease_s=3.0, heartbeat_s=0.5, staleness_s=3.0)
READY = RoutingState.READY


_OPENED: list[AsyncStore] = []


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
    async def begun(cls, store: Store, keys: Keys) -> Router:
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
        rooms = (shards, membership, links, directory, recovery, gate, mailboxes)
        router = cls(store, keys, *rooms)
        router.answering = asyncio.create_task(router.answer())
        await recovery.look_for_proof()
        await shards.claim()
        await membership.refresh_all()
        await recovery.begin(pods_expected=False)
        return router

    async def answer(self) -> None:
        while True:
            for address, box in list(self.mailboxes._boxes.items()):
                for number, command in list(box.commands):
                    assert isinstance(command, Recall)
                    self.recalls += 1
                    memory = self.memories.get(address[1], Memory([0] * CONFIG.shards, {}))
                    self.mailboxes.answer(address, number, memory)
            await asyncio.sleep(0.005)

    async def place(self, uid: str) -> Link:
        answer = (await self.directory.compute(SERVICE, {uid: 0}, None))[uid]
        if isinstance(answer, Exception):
            raise answer
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


Run = Callable[[Callable[[Router], Awaitable[None]]], None]


@pytest.fixture
def run(store: Store, namespace: str) -> Run:
    """Run a story with two pods and a router that has looked, within 60 s."""

    async def main(work: Callable[[Router], Awaitable[None]]) -> None:
        keys = Keys(namespace, CONFIG.shards)
        router = await Router.begun(store, keys)
        pods = PodCalls(keys)
        for pod in range(2):
            who = Identity(SERVICE, pod, f"process-{pod}", "node", "")
            store.one(pods.claim(who, READY))
        await router.membership.refresh_all()
        await router.gate.passed()
        router.recalls = 0
        try:
            await work(router)
        finally:
            while _OPENED:
                await _OPENED.pop().close()

    return lambda work: asyncio.run(asyncio.wait_for(main(work), 60))


@pytest.mark.parametrize("lapsed", [True, False])
def test_a_uid_whose_link_ran_out_stays_with_the_pod_that_remembers_it(
    run: Run, lapsed: bool
) -> None:
    async def story(router: Router) -> None:
        for number in range(6):
            uid = f"u{number}"
            link = await router.place(uid)
            router.outage()
            router.run_out(uid)
            router.remembers(link, uid, 30.0, lapsed=lapsed)
            again = await router.place(uid)
            assert (again.pod, again.epoch) == (link.pod, link.epoch)

    run(story)


def test_nobody_is_asked_while_the_looks_follow_each_other(run: Run) -> None:
    async def story(router: Router) -> None:
        for number in range(20):
            await router.place(f"u{number}")
            await router.gate.look()
        assert router.recalls == 0

    run(story)


@pytest.mark.parametrize("verb", ["place", "set_if_absent", "set", "give_away"])
def test_every_way_to_place_a_uid_hears_the_pods_first(run: Run, verb: str) -> None:
    async def story(router: Router) -> None:
        link = await router.place("held")
        router.outage()
        if verb == "place":
            await router.place("new")
        elif verb == "set_if_absent":
            await router.links.set_if_absent(SERVICE, "new", router.pod(0), persistent=True)
        elif verb == "set":
            other = router.pod(1 - link.pod)
            await router.links.set(SERVICE, "held", other, link, persistent=False)
        else:
            await router.directory.give_away(SERVICE, {"held": link}, None)
        assert router.recalls == 2

    run(story)


def test_reads_refreshes_and_removals_wait_for_nobody(run: Run) -> None:
    async def story(router: Router) -> None:
        link = await router.place("held")
        router.outage()
        await router.directory.find(SERVICE, {"held": 0})
        await router.links.refresh(SERVICE, {"held": link.epoch})
        assert await router.links.remove(SERVICE, "held", link, 0)
        assert router.recalls == 0

    run(story)


def test_a_uid_is_not_brought_back_if_it_may_have_been_anothers(run: Run) -> None:
    """Something was placed in its shard since its lease ended: maybe it was that uid."""

    async def story(router: Router) -> None:
        link = await router.place("u")
        router.outage(60)
        router.run_out("u")
        router.shards.placed_at = [at + 100 for at in router.shards.placed_at]
        router.remembers(link, "u", 30.0)
        assert (await router.place("u")).epoch > link.epoch

    run(story)


def test_a_uid_that_was_removed_is_not_brought_back(run: Run) -> None:
    async def story(router: Router) -> None:
        link = await router.place("u")
        await router.links.remove(SERVICE, "u", link, 0)
        router.outage()
        router.remembers(link, "u", 30.0)
        assert (await router.place("u")).epoch > link.epoch

    run(story)


def test_a_persistent_link_that_is_gone_was_removed(run: Run) -> None:
    async def story(router: Router) -> None:
        link = await router.links.set_if_absent(SERVICE, "u", router.pod(0), persistent=True)
        router.outage()
        router.run_out("u")
        router.remembers(link, "u", 30.0)
        assert (await router.place("u")).epoch > link.epoch

    run(story)


@pytest.mark.parametrize("why", ["its router is not known", "its end is certain"])
def test_a_lapsed_life_that_may_have_ended_brings_nothing_back(run: Run, why: str) -> None:
    async def story(router: Router) -> None:
        link = await router.place("u")
        router.outage()
        router.run_out("u")
        router.remembers(link, "u", 30.0)
        router.recovery.is_proven = False
        if why == "its end is certain":
            router.membership.denied.deny((SERVICE, link.pod, link.incarnation), None)
        else:
            memory = router.memories[link.pod]
            held, ago_s = memory.held, memory.ago_s
            router.memories[link.pod] = Memory(memory.counters, held, True, 17, ago_s)
        assert (await router.place("u")).epoch > link.epoch

    run(story)


def test_a_router_that_follows_another_closely_asks_nobody(run: Run, store: Store) -> None:
    async def story(router: Router) -> None:
        await router.gate.look()
        later = await Router.begun(store, router.keys)
        await later.place("new")
        assert later.recalls == 0

    run(story)


def test_a_router_that_follows_one_which_had_not_heard_all_asks_them(
    run: Run, store: Store
) -> None:
    async def story(router: Router) -> None:
        router.outage()
        looked = plain_call("HINCRBY", router.keys.meta, "looked", -60_000_000)
        store.one(looked)  # it is that long ago in Redis, too
        await router.gate.look()
        assert not router.gate.is_open()
        later = await Router.begun(store, router.keys)
        await later.place("new")
        assert later.recalls == 2

    run(story)


def test_placements_fail_at_once_where_redis_takes_no_writes(run: Run, store: Store) -> None:
    async def story(router: Router) -> None:
        await router.place("held")
        router.outage()
        store._client.config_set("min-replicas-to-write", 1)
        try:
            with pytest.raises(StoreUnavailableError):
                await asyncio.wait_for(router.place("new"), 10)
            assert (await router.place("held")).pod in (0, 1)
        finally:
            store._client.config_set("min-replicas-to-write", 0)
        await placed_in_the_end(router, "new")
        assert router.recalls == 2

    run(story)


async def placed_in_the_end(router: Router, uid: str) -> Link:
    while True:
        with contextlib.suppress(StoreUnavailableError):
            return await router.place(uid)
        await asyncio.sleep(0.02)


def test_a_pod_that_does_not_answer_is_named_no_longer_than_patience(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_route.router.placing_gate._PATIENCE_S", 1.0)

    async def story(router: Router) -> None:
        assert router.answering is not None
        router.answering.cancel()
        router.outage()
        with pytest.raises(RouterUnavailableError, match="hear"):
            await router.place("new")

    run(story)


def test_a_link_comes_back_under_its_epoch_where_there_is_none(shard: Shard) -> None:
    links = {uid: shard.place(uid, "1:7") for uid in ("gone", "moved")}
    shard.remove("gone")
    moved = shard.place("moved", "2:9")
    reply = shard.do("readmit", ["gone", "moved"], list(links.values()))
    assert reply.written == [True, False]
    back, other = reply.links
    assert back is not None
    assert (back.pod, back.incarnation, back.epoch) == (1, 7, links["gone"].epoch)
    assert other is not None
    assert other.epoch == moved.epoch
    assert shard.place("new", "3:3").epoch > moved.epoch


def test_a_router_that_follows_another_after_a_while_asks_every_pod(run: Run, store: Store) -> None:
    async def story(router: Router) -> None:
        await router.gate.look()
        store.one(plain_call("HINCRBY", router.keys.meta, "looked", -60_000_000))
        later = await Router.begun(store, router.keys)
        await later.place("new")
        assert later.recalls == 2

    run(story)


def test_it_is_noted_where_something_was_placed_and_may_be_carried_out_late(
    run: Run, store: Store
) -> None:
    async def story(router: Router) -> None:
        shard = router.keys.shard("u")
        long_ago = now() - 1_000
        router.shards.placed_at = [long_ago] * CONFIG.shards
        await router.place("u")
        assert now() - 5 < router.shards.placed_at[shard] <= now()
        assert router.shards.placed_at.count(long_ago) == CONFIG.shards - 1
        await router.directory.find(SERVICE, {"u": 0})
        store._client.config_set("min-replicas-to-write", 1)
        try:
            with pytest.raises(StoreUnavailableError):
                await router.links.set_if_absent(SERVICE, "u", router.pod(0), persistent=False)
        finally:
            store._client.config_set("min-replicas-to-write", 0)
        assert router.shards.placed_at[shard] > now() + 1

    run(story)


def test_a_lapsed_life_has_its_links_back_before_it_goes_on(run: Run, store: Store) -> None:
    """Its uids are confirmed by their links right afterwards; nobody need have been placed."""

    async def story(router: Router) -> None:
        link = await router.place("u")
        pods = PodCalls(router.keys)
        record = router.pod(link.pod)
        who = Identity(SERVICE, link.pod, record.process, "node", "")
        _, seq, under, _ = store.one(
            pods.renew(who, link.incarnation, 0.0, READY, record.seq, lapsed=True)
        )
        router.outage()
        router.run_out("u")
        router.remembers(link, "u", 30.0)
        parts = (router.membership, router.shards, router.recovery)
        resumption = Resumption(CONFIG, *parts, lambda *_: None)
        address = (SERVICE, link.pod, link.incarnation)
        word = await resumption.confirm(address, int(seq), int(under), 0)
        assert word is Word.SERVE
        back = await router.links.read(SERVICE, "u")
        assert back is not None
        assert (back.pod, back.epoch) == (link.pod, link.epoch)
        assert router.recalls == 1, "nobody else is waited for"

    run(story)
