"""A server that has reached its maxmemory: who is there goes on, and new links are refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest
from shardbench import Shard

from ray_route.config import RouteConfig
from ray_route.errors import StoreUnavailableError
from ray_route.model import Life, PodRecord, RoutingState
from ray_route.protocol.changes import BEAT
from ray_route.router.change_writer import ChangeWriter
from ray_route.router.link_table import LinkTable
from ray_route.router.membership import Membership
from ray_route.router.outcomes import linked
from ray_route.router.placer import Proposal, owner_of
from ray_route.router.shards import Shards
from ray_route.store.connect import AsyncStore, Store
from ray_route.store.embedded import EmbeddedServer
from ray_route.store.keys import Keys
from ray_route.store.links import LinkCalls, RememberedLink
from ray_route.store.namespaces import open_namespace, read_seal, restore_meta, seal
from ray_route.store.pods import Identity, PodCalls, parse_table
from ray_route.store.scripts import Call, plain_call, script_call
from ray_route.store.url import parse_url

READY, DENY_NEW = RoutingState.READY, RoutingState.DENY_NEW
WHO = Identity("chat", 0, "process", "node", "actor")
ROUTER = 5
FULL = r"maxmemory|OOM"

Fill = Callable[[], None]


@pytest.fixture(scope="module", params=["valkey", "redis"])
def server(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    """Servers of our own: nobody else must meet a full one."""
    with EmbeddedServer(request.param) as running:
        yield running


@pytest.fixture
def store(server: EmbeddedServer) -> Iterator[Store]:
    opened = Store(parse_url(server.url))
    opened._client.config_set("maxmemory", 0)
    opened._client.flushall()
    yield opened
    opened._client.config_set("maxmemory", 0)
    opened.close()


@pytest.fixture
def fill(store: Store) -> Fill:
    """Let the server be full from now on."""

    def full() -> None:
        store._client.config_set("maxmemory", store._client.info("memory")["used_memory"] // 2)
        with pytest.raises(StoreUnavailableError, match=FULL):
            store.one(plain_call("SET", "another", "key"))

    return full


@pytest.fixture
def shard(store: Store) -> Shard:
    return Shard(store)


@pytest.fixture
def keys(namespace: str) -> Keys:
    return Keys(namespace, 4)


def claimed(store: Store, keys: Keys) -> tuple[PodCalls, PodRecord]:
    calls = PodCalls(keys)
    store.one(plain_call("HSET", keys.meta, "sealed", "this-server"))
    store.one(calls.claim(WHO, READY))
    (record,) = parse_table(store.one(calls.table("chat")))
    return calls, record


def test_renewals_go_on_and_use_no_more_memory(store: Store, keys: Keys, fill: Fill):
    calls, pod = claimed(store, keys)
    fill()
    seq = pod.seq
    for _ in range(20):
        renew = calls.renew(WHO, pod.incarnation, 1.5, READY, seq, lapsed=False)
        status, told, _, behind = store.one(renew)
        assert (status, int(told), behind) == (b"ok", seq + 1, b"0")
        seq += 1
    (renewed,) = parse_table(store.one(calls.table("chat")))
    assert (renewed.seq, renewed.load) == (seq, 1.5)
    assert renewed.heartbeat_us > pod.heartbeat_us


def test_routers_decide_on_over_pods(store: Store, keys: Keys, fill: Fill):
    calls, pod = claimed(store, keys)
    fill()
    assert store.one(calls.set_state("chat", pod, DENY_NEW, ROUTER)) == b"ok"
    assert store.one(calls.restore("chat", pod, ROUTER)) == b"written"
    assert store.one(calls.declare_gone("chat", pod, ROUTER, silent=False)) == b"ok"
    (ended,) = parse_table(store.one(calls.table("chat")))
    assert (ended.life, ended.state) == (Life.GONE, READY)


def test_a_pod_that_was_restarted_comes_back(store: Store, keys: Keys, fill: Fill):
    calls, pod = claimed(store, keys)
    fill()
    store.one(calls.resign(WHO, pod.incarnation))
    status, incarnation, *_ = store.one(calls.claim(WHO, READY))
    assert status == b"ok"
    assert int(incarnation) > pod.incarnation


def test_a_router_starts_and_recovers(store: Store, keys: Keys, fill: Fill):
    options = open_namespace(store, keys.namespace, {"shards": 4}).durable()
    fill()
    assert open_namespace(store, keys.namespace, {}).durable() == options
    config = RouteConfig(shards=4)
    router = int(store.one(script_call("claim_router", [keys.meta], [0])))
    store.one(restore_meta(keys, config, router, token=7))
    assert store.one(seal(keys, 7, "this-server", "this-server")) == b"ok"
    assert store.one(read_seal(keys)) == b"this-server"


def test_a_new_namespace_is_refused_and_leaves_nothing(store: Store, keys: Keys, fill: Fill):
    fill()
    with pytest.raises(StoreUnavailableError, match=FULL):
        open_namespace(store, keys.namespace, {})
    assert store.one(plain_call("EXISTS", keys.meta)) == 0


def test_links_in_use_are_kept_alive(shard: Shard, fill: Fill):
    link = shard.place("u", "1:7")
    shard.expire("u", 5_000)
    fill()
    reply = shard.do("refresh", ["u"], [link.epoch])
    assert (reply.status, reply.written) == ("ok", [True])
    assert shard.pttl("u") > 5_000


def test_links_are_moved_removed_and_recovered(shard: Shard, fill: Fill):
    uids = ["moved", "set", "tried", "removed", "later", "lost"]
    links = {uid: shard.place(uid, "1:7") for uid in uids}
    fill()
    for uid, verb, args in [
        ("moved", "relink", ([links["moved"].epoch], ["2:9"])),
        ("set", "set", (["2:9"], [links["set"].epoch])),
        ("tried", "try_set", (["2:9"], [links["tried"].epoch])),
    ]:
        options = {} if verb == "relink" else {"persistent": False}
        reply = shard.do(verb, [uid], *args, **options)
        assert [(link.pod, link.incarnation) for link in reply.links] == [(2, 9)]
    assert shard.do("refresh", ["lost"], [0]).written == [False], "nothing to write"
    assert shard.do("remove_if", ["lost"], ["9:9"]).written == [False]
    assert shard.do("remove_if", ["tried"], ["2:9"], after_s=5).written == [True]
    assert shard.remove("removed") == (None, True)
    assert shard.remove("later", after_s=5)[1]
    assert shard.do("remove_if", ["later"], ["1:7"]).written == [True]
    assert shard.do("restore", ["lost"], [RememberedLink(links["lost"])]).status == "ok"
    assert shard.calls.parse(shard.store.one(shard.calls.take_over(shard.writer, 0))).status == "ok"


@pytest.mark.parametrize("verb", ["set", "try_set"])
def test_a_link_that_nobody_had_is_refused(shard: Shard, fill: Fill, verb: str):
    shard.place("present", "1:7")
    fill()
    before = shard.dump()
    args = [["1:7"], [None]]
    with pytest.raises(StoreUnavailableError, match=FULL):
        shard.send(verb, ["new"], *args, persistent=True)
    assert shard.dump() == before


@pytest.mark.parametrize("persistent", [False, True])
def test_a_batch_finds_what_is_there_and_is_refused_what_is_new(
    shard: Shard, fill: Fill, persistent: bool
):
    held = [shard.place(uid, "1:7", persistent=persistent) for uid in ("a", "b")]
    fill()
    reply = shard.do("set_if_absent", ["new", "a", "newer", "b"], ["2:9"] * 4)
    found = [link and link.epoch for link in reply.links]
    assert found == [None, held[0].epoch, None, held[1].epoch]
    assert reply.written == [False] * 4
    assert [shard.raw(uid) for uid in ("new", "newer")] == [None, None]


def test_a_batch_of_new_ones_alone_is_refused(shard: Shard, fill: Fill):
    shard.place("present", "1:7")
    fill()
    reply = shard.do("set_if_absent", ["x", "y"], ["2:9"] * 2, persistent=True)
    assert (reply.links, reply.written) == ([None, None], [False, False])
    shard.store._client.config_set("maxmemory", 0)
    reply = shard.do("set_if_absent", ["x", "y"], ["2:9"] * 2, persistent=True)
    assert reply.written == [True, True]


def test_the_router_answers_the_ones_and_refuses_the_others(store: Store, keys: Keys, fill: Fill):
    async def work() -> None:
        config = RouteConfig(shards=4)
        connection = AsyncStore(store.url)
        try:
            shards = Shards(connection, keys, LinkCalls(keys, config))
            membership = Membership(connection, keys, lambda *_: None, shards)
            links = LinkTable(config, keys, membership, shards)
            await shards.claim()
            await shards.take_over()
            await membership.refresh("chat")
            pod = membership.table.available("chat")[0]
            old = await links.set_if_absent("chat", "old", pod, persistent=False)
            fill()
            chosen = dict.fromkeys(("old", "new"), pod.pod)
            proposal = Proposal({pod.pod: pod}, {pod.pod: owner_of(pod)}, chosen)
            outcomes = await links.place("chat", proposal)
            found = linked(outcomes["old"])
            assert found is not None
            assert found.epoch == old.epoch
            assert isinstance(outcomes["new"], StoreUnavailableError)
            assert "full" in str(outcomes["new"])
            with pytest.raises(StoreUnavailableError, match="full"):
                await links.set_if_absent("chat", "newer", pod, persistent=True)
            assert await links.read("chat", "new") is None
        finally:
            await connection.close()

    claimed(store, keys)
    asyncio.run(asyncio.wait_for(work(), 30))


def test_beats_of_the_change_stream_go_on(store: Store, keys: Keys, fill: Fill):
    async def work() -> None:
        connection = AsyncStore(store.url)
        try:
            changes = ChangeWriter(connection, keys)
            await changes.append(BEAT)
            fill()
            for _ in range(5):
                await asyncio.wait_for(changes.append(BEAT), 5)
        finally:
            await connection.close()

    asyncio.run(work())
    assert store.one(Call(keys.log, ("XLEN", keys.log))) == 6
