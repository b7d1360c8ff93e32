"""Many uids over all shards, as a router sends them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest

from ray_route.config import RouteConfig
from ray_route.errors import DamagedKeyError, LostWritesError, StoreUnavailableError
from ray_route.model import Link
from ray_route.router.shards import Build, Outcome, Shards, SupersededError
from ray_route.store.connect import AsyncStore, Store
from ray_route.store.embedded import EmbeddedServer
from ray_route.store.keys import Keys
from ray_route.store.links import LinkCalls, Writer
from ray_route.store.scripts import Call, plain_call
from ray_route.store.url import parse_url

T = TypeVar("T")
SHARDS = 8
SERVICE = "chat"
UIDS = [f"user-{number}" for number in range(200)]


class Routers:
    """Routers of one namespace on one server; each runs on an event loop of its own."""

    def __init__(self, url: str, namespace: str) -> None:
        self.url = parse_url(url)
        self.keys = Keys(namespace, SHARDS)
        self.calls = LinkCalls(self.keys, RouteConfig(shards=SHARDS))

    def run(self, work: Callable[[Shards], Awaitable[T]]) -> T:
        """Let a new router take over and do some work."""

        async def begin() -> T:
            async with opened(self) as shards:
                await shards.claim()
                await shards.take_over()
                return await work(shards)

        return asyncio.run(begin())

    def place_on(self, owner: str) -> Build:
        def build(writer: Writer, shard: int, uids: list[str]) -> Call:
            return self.calls.set_if_absent(writer, shard, SERVICE, uids, [owner] * len(uids))

        return build

    def remove(self) -> Build:
        return lambda writer, shard, uids: self.calls.remove(writer, shard, SERVICE, uids)

    def a_uid_of(self, shard: int) -> str:
        return next(uid for uid in UIDS if self.keys.shard(uid) == shard)


@asynccontextmanager
async def opened(routers: Routers) -> AsyncIterator[Shards]:
    store = AsyncStore(routers.url)
    try:
        yield Shards(store, routers.keys, routers.calls)
    finally:
        await store.close()


@pytest.fixture
def routers(store: Store, server: EmbeddedServer, namespace: str) -> Routers:
    return Routers(server.url, namespace)


def script_calls(store: Store) -> int:
    stats = store._client.info("commandstats")
    return int(stats["cmdstat_evalsha"]["calls"])


def owners(outcomes: dict[str, Any]) -> set[tuple[int, int]]:
    assert all(isinstance(outcome, Outcome) for outcome in outcomes.values())
    return {(outcome.link.pod, outcome.link.incarnation) for outcome in outcomes.values()}


def test_every_uid_is_written_once_and_read_back(routers: Routers):
    async def work(shards: Shards) -> None:
        first = await shards.run(UIDS, routers.place_on("1:7"))
        again = await shards.run(UIDS, routers.place_on("2:8"))
        read = await shards.read(SERVICE, [*UIDS, "absent"])
        assert first.keys() == set(UIDS)
        assert owners(first) == {(1, 7)}
        assert all(outcome.written for outcome in first.values())
        assert read.pop("absent") == Outcome(None, written=False)
        assert again == read == {uid: Outcome(o.link, False) for uid, o in first.items()}

    routers.run(work)


def test_a_batch_is_one_script_call_per_shard(routers: Routers, store: Store):
    async def work(shards: Shards) -> None:
        await shards.run(UIDS, routers.place_on("1:7"))  # the server knows the script now
        await shards.read(SERVICE, UIDS)
        for batch in (
            lambda: shards.run(UIDS, routers.place_on("1:7")),
            lambda: shards.read(SERVICE, UIDS),
        ):
            before = script_calls(store)
            await batch()
            assert script_calls(store) - before == len({routers.keys.shard(uid) for uid in UIDS})

    routers.run(work)


def test_no_script_gets_more_than_500_uids(routers: Routers, store: Store):
    uids = [uid for uid in map(str, range(13_000)) if routers.keys.shard(uid) == 3][:1_001]
    sizes: list[int] = []

    def build(writer: Writer, shard: int, some: list[str]) -> Call:
        sizes.append(len(some))
        return routers.place_on("1:7")(writer, shard, some)

    outcomes = routers.run(lambda shards: shards.run(uids, build))
    assert len(uids) == len(outcomes) == 1_001
    assert sizes == [500, 500, 1]
    assert owners(outcomes) == {(1, 7)}


def test_more_uids_than_one_round_trip_takes_are_all_answered(routers: Routers):
    uids = [f"u{number}" for number in range(12_000)]
    outcomes = routers.run(lambda shards: shards.run(uids, routers.place_on("1:7")))
    assert outcomes.keys() == set(uids)
    assert owners(outcomes) == {(1, 7)}


def test_no_uids_are_no_work(routers: Routers):
    assert routers.run(lambda shards: shards.run([], routers.place_on("1:7"))) == {}


def test_taking_over_reaches_every_shard(routers: Routers, store: Store):
    async def work(shards: Shards) -> list[int]:
        stored = [store.one(plain_call("GET", routers.keys.counter(n))) for n in range(SHARDS)]
        counters = [int(entry.split(b":")[0]) for entry in stored]
        assert counters == shards.counters.seen
        assert {int(entry.split(b":")[1]) for entry in stored} == {shards.incarnation}
        return counters

    first, second = routers.run(work), routers.run(work)
    assert all(one < other for one, other in zip(first, second, strict=True))


def test_the_counters_in_memory_are_the_stored_ones(routers: Routers, store: Store):
    async def work(shards: Shards) -> None:
        before = list(shards.counters.seen)
        await shards.run([routers.a_uid_of(3)], routers.place_on("1:7"))
        assert [n for n in range(SHARDS) if shards.counters.seen[n] != before[n]] == [3]
        stored = store.one(plain_call("GET", routers.keys.counter(3)))
        assert stored == f"{shards.counters.seen[3]}:{shards.incarnation}".encode()

    routers.run(work)


def test_a_superseded_router_is_told_and_changes_nothing(routers: Routers, store: Store):
    async def work(old: Shards) -> None:
        await old.run(UIDS, routers.place_on("1:7"))
        async with opened(routers) as young:
            await young.claim()
            await young.take_over()
            assert young.incarnation > old.incarnation
            for build in (routers.place_on("2:8"), routers.remove()):
                with pytest.raises(SupersededError):
                    await old.run(UIDS, build)
            assert owners(await young.read(SERVICE, UIDS)) == {(1, 7)}

    routers.run(work)


def test_a_router_that_comes_too_late_can_not_take_over(routers: Routers):
    async def work(young: Shards) -> None:
        async with opened(routers) as late:
            late.incarnation = young.incarnation
            await late.claim()
            await late.take_over()
            assert late.incarnation > young.incarnation
            with pytest.raises(SupersededError):
                await young.run(UIDS, routers.place_on("1:7"))

    routers.run(work)


def test_one_damaged_link_costs_no_other_its_answer(routers: Routers, store: Store):
    broken = routers.a_uid_of(3)
    store.one(plain_call("RPUSH", routers.keys.link(3, SERVICE, broken), "no link"))
    outcomes = routers.run(lambda shards: shards.run(UIDS, routers.place_on("1:7")))
    assert outcomes.keys() == set(UIDS)
    failed = {uid for uid, outcome in outcomes.items() if not isinstance(outcome, Outcome)}
    assert failed == {broken}
    assert isinstance(outcomes[broken], DamagedKeyError)


@pytest.mark.parametrize("verb", ["write", "read"])
def test_a_shard_that_lost_its_writes_is_an_error_and_not_a_miss(
    routers: Routers, store: Store, verb: str
):
    async def work(shards: Shards) -> dict[str, Any]:
        await shards.run(UIDS, routers.place_on("1:7"))
        store.one(plain_call("DEL", routers.keys.counter(3)))
        store.one(plain_call("DEL", routers.keys.link(3, SERVICE, routers.a_uid_of(3))))
        if verb == "read":
            return await shards.read(SERVICE, UIDS)
        return await shards.run(UIDS, routers.place_on("2:8"))

    outcomes = routers.run(work)
    lost = {uid: error for uid, error in outcomes.items() if not isinstance(error, Outcome)}
    assert lost.keys() == {uid for uid in UIDS if routers.keys.shard(uid) == 3}
    error = lost[routers.a_uid_of(3)]
    assert isinstance(error, LostWritesError)
    assert error.namespace == routers.keys.namespace
    assert error.shards == [3]
    assert owners({uid: outcomes[uid] for uid in outcomes.keys() - lost.keys()}) == {(1, 7)}


def test_a_counter_of_a_lost_shard_is_not_forgotten(routers: Routers, store: Store):
    async def work(shards: Shards) -> None:
        uid = routers.a_uid_of(3)
        await shards.run([uid], routers.place_on("1:7"))
        seen = shards.counters.seen[3]
        store.one(plain_call("DEL", routers.keys.counter(3)))
        for _ in range(2):
            outcome = (await shards.read(SERVICE, [uid]))[uid]
            assert isinstance(outcome, StoreUnavailableError)
        assert shards.counters.seen[3] == seen

    routers.run(work)


@pytest.fixture
def mortal() -> Iterator[EmbeddedServer]:
    with EmbeddedServer() as server:
        yield server


def test_a_server_that_is_down_is_an_error_for_every_uid(mortal: EmbeddedServer, namespace: str):
    routers = Routers(mortal.url, namespace)

    async def work(shards: Shards) -> list[dict[str, Any]]:
        await shards.run(UIDS, routers.place_on("1:7"))
        mortal.stop()
        return [
            await shards.run(UIDS, routers.place_on("1:7")),
            await shards.read(SERVICE, UIDS),
        ]

    for outcomes in routers.run(work):
        assert outcomes.keys() == set(UIDS)
        assert {type(outcome) for outcome in outcomes.values()} == {StoreUnavailableError}
        assert f"127.0.0.1:{mortal.port}" in str(outcomes[UIDS[0]])


def test_a_restart_without_data_is_noticed_and_places_nobody_anew(
    mortal: EmbeddedServer, namespace: str
):
    routers = Routers(mortal.url, namespace)

    async def work(shards: Shards) -> dict[str, Any]:
        await shards.run(UIDS, routers.place_on("1:7"))
        mortal.stop()
        mortal.start()
        return await shards.run(UIDS, routers.place_on("2:8"))

    outcomes = routers.run(work)
    assert {type(outcome) for outcome in outcomes.values()} == {LostWritesError}
    assert "lost links" in str(outcomes[UIDS[0]])


def test_epochs_do_not_fall_over_a_restart_with_data(tmp_path: Any, namespace: str):
    with EmbeddedServer(folder=tmp_path) as server:
        with contextlib.closing(Store(parse_url(server.url))) as store:
            # Else it may put a write off for the disk, and what is killed then has lost it.
            store.one(Call("", ("CONFIG", "SET", "appendfsync", "always")))
        routers = Routers(server.url, namespace)

        async def work(shards: Shards) -> tuple[Link, Link]:
            placed = await shards.run(["u"], routers.place_on("1:7"))
            server.stop()
            server.start()
            for _ in range(3):  # as in a router, whose loop runs meanwhile and hears of the end
                await asyncio.sleep(0)
            found = await shards.run(["u"], routers.place_on("2:8"))
            await shards.run(["u"], routers.remove())
            later = await shards.run(["u"], routers.place_on("2:8"))
            assert found["u"].link == placed["u"].link
            return placed["u"].link, later["u"].link

        before, after = routers.run(work)
        assert after.epoch > before.epoch
