"""After an outage whoever may have lapsed in it is heard before anybody is placed anew."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial

import pytest
from bare_router import CONFIG, READY, SERVICE, Router, Story, tell
from shardbench import Shard

from ray_route.clock import now
from ray_route.errors import RouterUnavailableError, StoreUnavailableError
from ray_route.model import Link
from ray_route.protocol.commands import Memory, Refreshed, Word
from ray_route.router.resumption import Resumption
from ray_route.store.connect import Store
from ray_route.store.pods import Identity, PodCalls
from ray_route.store.scripts import plain_call

Run = Callable[[Story], None]


@pytest.fixture
def run(store: Store, namespace: str) -> Run:
    return partial(tell, store, namespace)


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
        router.recovery.credible.is_proven = False
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
        await router.gate.look()
        router.outage()
        looked = plain_call("HINCRBY", router.keys.meta, "looked", -20_000_000)
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
        await asyncio.sleep(0.02)  # polls, until the test ends


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
        store.one(plain_call("HINCRBY", router.keys.meta, "looked", -20_000_000))
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


@pytest.mark.parametrize("persistent", [False, True])
def test_of_links_in_use_those_are_told_that_do_not_live_on(run: Run, persistent: bool) -> None:
    """A pod that trusted one that ends would serve its uid beside its next owner."""

    async def story(router: Router) -> None:
        links, pod = {}, router.pod(0)
        for uid in ("stays", "ends", "removed"):
            links[uid] = await router.links.set(SERVICE, uid, pod, None, persistent=persistent)
        assert await router.links.remove(SERVICE, "ends", links["ends"], CONFIG.ttl_s / 2)
        assert await router.links.remove(SERVICE, "removed", links["removed"], 0)
        used = {uid: link.epoch for uid, link in links.items()}
        gone = {"removed": links["removed"].epoch}
        assert await router.links.refresh(SERVICE, used) == Refreshed(gone, {"ends"})

    run(story)
