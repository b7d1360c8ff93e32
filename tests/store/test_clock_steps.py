"""When Redis' clock steps forward: nobody is placed before what it ended has been written back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from bare_router import CONFIG, SERVICE, Router, Story, tell
from shardbench import Shard
from stepping import SteppingServer, stepping_server

from ray_route.config import RouteConfig
from ray_route.model import Link
from ray_route.protocol.commands import Memory, Refreshed
from ray_route.store.connect import Store
from ray_route.store.links import RememberedLink, Writer
from ray_route.store.scripts import plain_call
from ray_route.store.url import parse_url

HOUR_S = 3_600.0

Run = Callable[[Story], None]


@pytest.fixture(scope="module")
def stepping() -> Iterator[SteppingServer]:
    with stepping_server() as server:
        yield server


@pytest.fixture
def run(stepping: SteppingServer, namespace: str) -> Iterator[Run]:
    store = Store(parse_url(stepping.server.url))
    yield partial(tell, store, namespace)
    store.close()


def remember(router: Router, links: dict[str, Link], ago_s: dict[str, float] | None = None) -> None:
    """Let pods remember their links, as they do whose leases run on their own clocks."""
    for pod in (0, 1):
        held = {
            uid: (link.epoch, link.persistent) for uid, link in links.items() if link.pod == pod
        }
        own = {uid: ago for uid, ago in (ago_s or {}).items() if uid in held}
        under = router.shards.incarnation
        router.memories[pod] = Memory([0] * CONFIG.shards, held, False, under, own)


async def place_some(router: Router) -> dict[str, Link]:
    links = {f"u{number}": await router.place(f"u{number}") for number in range(30)}
    remember(router, links)
    return links


def stored(router: Router, uid: str) -> bytes | None:
    return router.store.one(
        plain_call("GET", router.keys.link(router.keys.shard(uid), SERVICE, uid))
    )


@pytest.mark.parametrize("forget", [True, False])
def test_a_step_forward_moves_nobody(run: Run, stepping: SteppingServer, forget: bool) -> None:
    async def story(router: Router) -> None:
        links = await place_some(router)
        stepping.step(HOUR_S)
        assert not any(stored(router, uid) for uid in links)
        if forget:  # what the router has in its own cache is written back, too
            router.links.cache.flush()
        else:
            router.memories.clear()
        await router.place("new")
        assert router.recalls == 2
        for uid, link in links.items():
            router.links.cache.drop(SERVICE, uid)
            again = await router.place(uid)
            assert (again.pod, again.epoch) == (link.pod, link.epoch)
        assert router.recalls == 2

    run(story)


def test_the_very_uid_that_is_asked_for_first_stays(run: Run, stepping: SteppingServer) -> None:
    async def story(router: Router) -> None:
        links = await place_some(router)
        for uid, link in links.items():
            router.links.cache.flush()
            stepping.step(HOUR_S)
            assert (await router.place(uid)).epoch == link.epoch

    run(story)


@pytest.mark.parametrize("verb", ["find", "refresh", "set", "set_if_absent", "give_away", "remove"])
def test_whoever_touches_a_link_first_finds_it(
    run: Run, stepping: SteppingServer, verb: str
) -> None:
    async def story(router: Router) -> None:
        links = await place_some(router)
        held = links["u0"]
        router.links.cache.flush()
        stepping.step(HOUR_S)
        if verb == "find":
            found = await router.find("u0")
            assert found.epoch == held.epoch
        elif verb == "refresh":
            found = await router.links.refresh(SERVICE, {"u0": held.epoch})
            assert found == Refreshed({}, set())
        elif verb == "set":
            other = router.pod(1 - held.pod)
            link = await router.links.set(SERVICE, "u0", other, held, persistent=False)
            assert link.pod == other.pod
            assert link.epoch > held.epoch
        elif verb == "set_if_absent":
            other = router.pod(1 - held.pod)
            link = await router.links.set_if_absent(SERVICE, "u0", other, persistent=False)
            assert link.epoch == held.epoch
        elif verb == "give_away":
            (link,) = (await router.directory.give_away(SERVICE, {"u0": held}, None)).values()
            assert isinstance(link, Link)
            assert link.pod == held.pod or link.epoch > held.epoch
        else:
            assert await router.links.remove(SERVICE, "u0", held, 0)
        assert router.recalls == 2

    run(story)


def test_a_step_is_noticed_by_comparing_counters(run: Run, stepping: SteppingServer) -> None:
    async def story(router: Router) -> None:
        links = await place_some(router)
        stepping.step(HOUR_S)
        await router.recovery.recover()
        assert all(stored(router, uid) for uid in links)

    run(story)


def test_a_step_back_and_the_way_forward_again_move_nobody(
    run: Run, stepping: SteppingServer
) -> None:
    async def story(router: Router) -> None:
        stepping.step(-HOUR_S)
        await router.recovery.recover()
        assert router.recalls == 0
        links = await place_some(router)
        stepping.step(HOUR_S)
        router.links.cache.flush()
        for uid, link in links.items():
            assert (await router.place(uid)).epoch == link.epoch

    run(story)


def test_a_router_that_begins_after_a_step_hears_the_pods_first(
    run: Run, stepping: SteppingServer
) -> None:
    async def story(router: Router) -> None:
        links = await place_some(router)
        await router.gate.look()
        stepping.step(HOUR_S)
        later = await Router.begun(router.store, router.keys, router.memories)
        assert later.recalls == 2
        for uid, link in links.items():
            assert (await later.place(uid)).epoch == link.epoch

    run(story)


def test_a_router_that_follows_another_closely_takes_no_step_for_granted(
    run: Run, stepping: SteppingServer
) -> None:
    async def story(router: Router) -> None:
        await router.gate.look()
        later = await Router.begun(router.store, router.keys)
        assert later.recalls == 0

    run(story)


def test_a_removal_that_is_scheduled_stays_scheduled(run: Run, stepping: SteppingServer) -> None:
    async def story(router: Router) -> None:
        links = await place_some(router)
        await router.links.remove(SERVICE, "u0", links["u0"], 100.0)
        stepping.step(HOUR_S)
        await router.place("new")
        value = stored(router, "u0")
        assert value is not None
        assert value.endswith(b":t")

    run(story)


def test_what_was_removed_before_a_step_stays_removed(run: Run, stepping: SteppingServer) -> None:
    async def story(router: Router) -> None:
        links = await place_some(router)
        await router.links.remove(SERVICE, "u0", links["u0"], 0)
        stepping.step(HOUR_S)
        await router.place("new")
        assert stored(router, "u0") is None

    run(story)


# The scripts.

LINK = Link(1, 7, 5, persistent=False, lease_s=0)
VERBS = {
    "set_if_absent": (["1:7"],),
    "relink": ([5], ["2:9"]),
    "regrant": ([5],),
    "set": (["1:7"],),
    "try_set": (["1:7"], [None]),
    "remove": (),
    "remove_if": (["1"],),
    "refresh": ([5],),
    "readmit": ([LINK],),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_script_that_finds_it_too_late_changes_nothing(shard: Shard, verb: str) -> None:
    shard.put("u", b"1:7:5", LINK)
    shard.set_counter(6)
    kind = {"persistent": False} if verb in {"set", "try_set", "set_if_absent"} else {}
    before = shard.dump()
    latest_us = shard.time_us() - 1
    late = Shard(shard.store, Writer(1, 0, latest_us), shard.calls)
    assert late.send(verb, ["u"], *VERBS[verb], **kind).status == "stepped"
    assert shard.dump() == before
    in_time = Shard(shard.store, Writer(1, 0, latest_us + 3_600_000_000), shard.calls)
    assert in_time.send(verb, ["u"], *VERBS[verb], **kind).status == "ok"


def test_a_reader_that_knows_the_time_is_told(shard: Shard) -> None:
    names = [(SERVICE, "u")]
    latest_us = shard.time_us() - 1
    reply = shard.calls.parse(shard.store.one(shard.calls.read(0, 0, names, latest_us)))
    assert reply.status == "stepped"
    assert shard.read("u").status == "ok"


def test_what_a_recovery_writes_back_is_written_at_any_time(shard: Shard) -> None:
    late = Shard(shard.store, Writer(1, 0, 1), shard.calls)
    assert late.send("restore", ["u"], [RememberedLink(LINK)]).status == "ok"
    assert shard.calls.parse(shard.store.one(shard.calls.take_over(Writer(1, 0, 1), 0)))


def test_links_are_placed_though_the_store_answers_late(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script that lay for half a margin is refused, and sent again."""

    async def story(router: Router) -> None:
        clock = router.shards.counters.clocks.of(0)
        latest = clock.latest_us
        answers = iter([1, 1])
        monkeypatch.setattr(clock, "latest_us", lambda: next(answers, latest()))
        assert (await router.place("u")).epoch
        assert router.recalls == 0

    run(story)


def test_the_margin_is_what_may_be_lost(run: Run, stepping: SteppingServer) -> None:
    """A step that every lease allows for asks nobody."""

    async def story(router: Router) -> None:
        links = await place_some(router)
        stepping.step(0.4 * RouteConfig().margin_s)
        router.links.cache.flush()
        for uid, link in links.items():
            assert (await router.place(uid)).epoch == link.epoch
        assert router.recalls == 0

    run(story)


def test_who_is_told_of_a_step_reads_nothing_as_missing_until_it_is_made_up_for(
    run: Run, stepping: SteppingServer
) -> None:
    """A server whose clock has stepped has lost no writes: its counters alone would say so."""

    async def story(router: Router) -> None:
        links = await place_some(router)
        shard = router.keys.shard("u0")
        assert router.answering is not None
        router.answering.cancel()  # the pods are frozen: it is not made up for yet
        stepping.step(HOUR_S)
        told: dict[int, int] = {}
        router.recovery.comparison.tell_lost = told.update
        assert shard in (await router.recovery.compared()).lost
        vouched = list(router.shards.counters.seen)
        assert (await router.recovery.compared()).lost, "it is still lost"
        for seen in (told[shard], vouched[shard], router.shards.counters.seen[shard]):
            reply = router.store.one(router.shards._links.read(seen, shard, [(SERVICE, "u0")]))
            assert reply[0] == b"lost"
        assert router.shards.counters.seen == vouched, "the same again"
        router.answering = asyncio.create_task(router.answer())
        await router.recovery.recover()
        assert (await router.place("u0")).epoch == links["u0"].epoch

    run(story)
