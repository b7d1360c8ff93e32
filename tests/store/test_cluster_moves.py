"""A Redis Cluster while slots move from master to master, and when a replica is promoted."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pytest
from helpers import eventually, unique_name
from redis.exceptions import TimeoutError as NoReplyError
from servers import ClusterServers

from ray_route.clock import Deadline
from ray_route.config import RouteConfig
from ray_route.errors import StoreUnavailableError
from ray_route.store import conversation
from ray_route.store import masters as masters_module
from ray_route.store.bulk import BulkReader, Owned
from ray_route.store.connect import AsyncStore, Store
from ray_route.store.embedded import EmbeddedServer
from ray_route.store.exchange import UnansweredError
from ray_route.store.keys import Keys
from ray_route.store.links import LinkCalls, Writer
from ray_route.store.owner_codes import FAILED
from ray_route.store.scripts import Call, plain_call

SERVICE = "chat"
SHARDS = 4
UIDS = [f"user-{number}" for number in range(400)]


@pytest.fixture(scope="module", params=["valkey", "redis"])
def cluster(request: pytest.FixtureRequest) -> Iterator[ClusterServers]:
    with ClusterServers(request.param, replicas=1) as running:
        yield running


@pytest.fixture
def store(cluster: ClusterServers) -> Iterator[Store]:
    opened = Store(cluster.store_url())
    yield opened
    opened.close()


@dataclass
class Moving:
    """A namespace whose shard 0 is on its way to another master."""

    cluster: ClusterServers
    store: Store
    keys: Keys = field(default_factory=lambda: Keys(unique_name(), SHARDS))

    def __post_init__(self) -> None:
        self.calls = LinkCalls(self.keys, RouteConfig(shards=SHARDS))
        self.uids = [uid for uid in UIDS if self.keys.shard(uid) == 0]
        self.slot = self.cluster.slot(self.keys.counter(0))

    def place(self, pod: int = 1) -> Call:
        owners = [f"{pod}:7"] * len(self.uids)
        return self.calls.set(Writer(1), 0, SERVICE, self.uids, owners, persistent=False)

    def begin(self) -> None:
        masters = self.cluster.nodes[: self.cluster.masters]
        self.target = next(node for node in masters if node is not self.cluster.owner(self.slot))
        self.source = self.cluster.begin_move(self.slot, self.target)

    def step(self, count: int = 20) -> int:
        return self.cluster.move_keys(self.slot, self.source, self.target, count)

    def end(self) -> None:
        while self.step(100):
            pass
        self.cluster.end_move(self.slot, self.target)

    def read(self) -> Owned:
        reader = BulkReader(self.store, self.keys, SERVICE, [0] * SHARDS)
        return reader.read([uid.encode() for uid in UIDS], Deadline.after(10))


@pytest.fixture
def moving(cluster: ClusterServers, store: Store) -> Moving:
    namespace = Moving(cluster, store)
    placed = namespace.calls.parse(store.one(namespace.place()))
    assert all(placed.written)
    return namespace


def in_thread(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:  # noqa: BLE001 - the test looks at it
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, results


@pytest.mark.slow
def test_a_script_waits_until_the_keys_of_its_slot_are_together_again(moving: Moving):
    moving.begin()
    assert moving.step() == 20
    thread, results = in_thread(lambda: moving.store.one(moving.place(pod=2)))
    thread.join(0.7)
    assert results == [], "half of the keys are elsewhere: TRYAGAIN"
    moving.end()
    thread.join(10)
    parsed = moving.calls.parse(results[0])
    assert {link.pod for link in parsed.links if link} == {2}
    assert len(parsed.links) == len(moving.uids)


def test_an_async_script_waits_too(moving: Moving):
    async def place() -> Any:
        store = AsyncStore(moving.store.url)
        try:
            return await store.one(moving.place(pod=3))
        finally:
            await store.close()

    moving.begin()
    assert moving.step() == 20
    thread, results = in_thread(lambda: asyncio.run(place()))
    thread.join(0.7)
    assert results == []
    moving.end()
    thread.join(10)
    assert {link.pod for link in moving.calls.parse(results[0]).links if link} == {3}


def test_what_is_sent_once_is_not_sent_on_twice(moving: Moving, monkeypatch: pytest.MonkeyPatch):
    """A master says that the slot has moved, and the answer of the one that has it is lost."""
    key = f"{moving.keys.counter(0)}:asked"
    assert moving.cluster.slot(key) == moving.slot
    moving.begin()
    moving.end()
    there = str(moving.target.port)
    run = masters_module._run

    async def loses_its_answer(node: Any, commands: Any) -> None:
        await run(node, commands)
        if node.name.endswith(there) and any(key in command.args for command in commands):
            raise NoReplyError("its answer is lost")

    async def ask() -> list[Any]:
        store = AsyncStore(moving.store.url)
        try:
            await store.servers()
            cache = store._masters._client.nodes_manager.slots_cache
            cache[moving.slot] = [store._masters._node(f"127.0.0.1:{moving.source.port}")]
            monkeypatch.setattr(masters_module, "_run", loses_its_answer)
            return await store.run([plain_call("INCR", key)], once=True)
        finally:
            await store.close()

    (reply,) = asyncio.run(ask())
    assert isinstance(reply, UnansweredError)
    assert moving.store.one(plain_call("GET", key)) == b"1"


def test_a_plain_command_follows_a_slot_that_has_moved(moving: Moving):
    """Its keys are not told apart by their place, as a script's are."""

    async def read_before_and_after() -> list[Any]:
        store, read = AsyncStore(moving.store.url), plain_call("GET", moving.keys.counter(0))
        try:
            before = await store.one(read)
            moving.begin()
            moving.end()
            return [before, await store.one(read)]
        finally:
            await store.close()

    before, after = asyncio.run(asyncio.wait_for(read_before_and_after(), 30))
    assert before is not None
    assert after == before


def test_a_slot_that_never_arrives_is_an_error_in_bounded_time(
    moving: Moving, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(conversation, "MOVING_S", 0.3)
    moving.begin()
    assert moving.step() == 20
    begun = time.monotonic()
    with pytest.raises(StoreUnavailableError):
        moving.store.one(moving.place(pod=2))
    assert time.monotonic() - begun < 5
    moving.end()
    assert all(moving.calls.parse(moving.store.one(moving.place())).written)


def test_a_bulk_read_during_a_move_finds_every_link(moving: Moving):
    moving.begin()
    assert moving.step() == 20
    thread, results = in_thread(moving.read)
    thread.join(0.3)
    moving.end()
    thread.join(10)
    (owned,) = results
    assert owned.failed == {}
    found = [uid for uid, code in zip(UIDS, owned.codes, strict=True) if code > FAILED]
    assert found == moving.uids


def test_writes_that_go_on_while_a_slot_moves_lose_nothing(moving: Moving):
    stop = threading.Event()

    def write() -> list[int]:
        counters = []
        while not stop.is_set():
            reply = moving.calls.parse(moving.store.one(moving.place(pod=len(counters) % 5)))
            assert reply.status == "ok"
            counters.append(reply.counter)
        return counters

    thread, results = in_thread(write)
    for _ in range(2):
        moving.begin()
        moving.step()
        moving.end()
    stop.set()
    thread.join(15)
    (counters,) = results
    assert len(counters) > 2
    assert counters == sorted(set(counters)), "the counter went back or stood still"
    names = [(SERVICE, uid) for uid in moving.uids]
    last = moving.calls.parse(moving.store.one(moving.calls.read(counters[-1], 0, names)))
    assert last.status == "ok"
    assert {link.pod for link in last.links if link} == {(len(counters) - 1) % 5}


def test_a_call_without_a_key_reaches_every_master(store: Store, cluster: ClusterServers):
    keys = [f"{unique_name()}-{number}" for number in range(30)]
    store.run([plain_call("SET", key, "v") for key in keys])
    found = store.one(Call("", ("KEYS", "*")))
    assert {key.encode() for key in keys} <= set(found)
    store.one(Call("", ("FLUSHALL",)))
    for node in cluster.nodes:
        eventually(lambda node=node: cluster.command(node, "DBSIZE") == 0, "nothing is left")


def test_a_stream_is_read_at_the_master_that_holds_its_key(store: Store):
    key = Keys(unique_name(), SHARDS).log
    entry = store.one(plain_call("XADD", key, "*", "kind", "beat"))
    reply = store.one(Call(key, ("XREAD", "COUNT", 1, "BLOCK", 1000, "STREAMS", key, "0-0")))
    assert entry in repr(reply).encode()


def test_every_master_is_looked_at(store: Store):
    assert [info["role"] for info in store.infos()] == ["master"] * 3


def replace_master(cluster: ClusterServers) -> EmbeddedServer:
    """Kill the master that has a replica; return when the replica has its place."""
    first = cluster.nodes[0]
    first.stop()
    others = cluster.nodes[1:]

    def is_promoted() -> bool:
        slots = {cluster.info(node)["cluster_slots_ok"] for node in others}
        states = {cluster.info(node)["cluster_state"] for node in others}
        return slots == {"16384"} and states == {"ok"}

    eventually(is_promoted, "the replica is promoted")
    return cluster.nodes[-1]


@pytest.mark.slow
@pytest.mark.needs_valkey
def test_a_promoted_replica_takes_the_place_of_its_master():
    with ClusterServers("valkey", replicas=1) as cluster:
        store = Store(cluster.store_url())
        keys = [f"k{number}" for number in range(50)]
        store.run([plain_call("SET", key, "v") for key in keys])
        eventually(
            lambda: (
                cluster.command(cluster.nodes[-1], "DBSIZE")
                == cluster.command(cluster.nodes[0], "DBSIZE")
            ),
            "the replica has everything",
        )
        replace_master(cluster)

        def values() -> Any:
            return store.run([plain_call("GET", key) for key in keys])

        def answered() -> bool:
            try:
                return values() == [b"v"] * len(keys)
            except StoreUnavailableError:
                return False

        eventually(answered, "all keys are served again")

        async def ask() -> Any:
            asynchronous = AsyncStore(store.url)
            try:
                return await asynchronous.run([plain_call("GET", key) for key in keys])
            finally:
                await asynchronous.close()

        assert asyncio.run(ask()) == [b"v"] * len(keys)
        store.close()


def test_a_master_that_is_away_fails_its_own_calls_alone() -> None:
    """It opens no circuit to others, and a pipeline brings what they say."""
    with (
        ClusterServers("valkey", in_part=True) as cluster,
        closing(Store(cluster.store_url())) as store,
    ):
        keys = [f"key-{number}" for number in range(24)]
        slots = [cluster.slot(key) for key in keys]
        lost = cluster.owner(slots[0])
        away = {key for key, slot in zip(keys, slots, strict=True) if cluster.owner(slot) is lost}
        assert len(away) < len(keys)
        calls = [plain_call("SET", key, "here") for key in keys]
        assert not any(isinstance(reply, Exception) for reply in store.run(calls))
        lost.stop()
        for _ in range(2):  # at first it is tried, then it is known to be away
            replies = dict(zip(keys, store.run(calls), strict=True))
            failed = {key for key, it in replies.items() if isinstance(it, StoreUnavailableError)}
            assert failed == away
        with pytest.raises(StoreUnavailableError):
            store.one(plain_call("GET", keys[0]))
        with pytest.raises(StoreUnavailableError):
            store.pool(keys[0])
        other = next(key for key in keys if key not in away)
        assert store.one(plain_call("GET", other)) == b"here"
        assert store.pool(other)
