"""A primary that was replaced answers until it is demoted: nothing is lost by that."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import pytest
from helpers import eventually, unique_name
from reader import CONFIG, Process, S
from servers import SERVICE, SentinelServers, admin, is_in_step
from test_confirming_together import MINE, Pod

from ray_route.errors import FencedError, LostWritesError
from ray_route.pod.release import Releases
from ray_route.pod.states import State
from ray_route.router.shards import Outcome, Shards
from ray_route.store.connect import AsyncStore, Store
from ray_route.store.embedded import EmbeddedServer
from ray_route.store.keys import Keys
from ray_route.store.links import LinkCalls, Writer
from ray_route.store.scripts import Call, plain_call
from ray_route.store.url import parse_url

ANOTHERS = "1:8"


@contextmanager
def replacing(server: EmbeddedServer) -> Iterator[EmbeddedServer]:
    """Yield a replica that becomes a primary, with all that the other has had; that one stays."""
    settings = (f"masterauth {server.password}", f"replicaof 127.0.0.1 {server.port}")
    with closing(admin(server)) as client:
        client.config_set("repl-diskless-sync-delay", 0)  # else it waits for others, 5 s long
    with EmbeddedServer(password=server.password, settings=settings) as new:
        eventually(lambda: is_in_step(new), "in step")
        with closing(admin(new)) as client:
            client.execute_command("REPLICAOF", "NO", "ONE")
        yield new


def failed_over(servers: SentinelServers) -> EmbeddedServer:
    """Have the other server made the primary, and return it; nobody stops the one that was."""
    before = servers.primary()
    (other,) = (it for it in servers.servers if it is not before)
    eventually(lambda: is_in_step(other), "in step")
    servers.ask("SENTINEL", "FAILOVER", SERVICE)
    # As redis-py asks for it: other answers name the next one earlier.
    port = str(other.port)
    eventually(lambda: str(servers.ask("SENTINEL MASTER", SERVICE)["port"]) == port, "promoted")
    return other


# What a pod reads.


def test_a_state_outlives_a_read_of_a_primary_that_was_replaced(server: EmbeddedServer) -> None:
    process = Process(parse_url(server.url), Keys(unique_name(), CONFIG.shards))
    process.believe()
    pod = Pod(process)
    first = process.link("u", ANOTHERS)
    with replacing(server) as new, closing(process), closing(Store(parse_url(new.url))) as store:
        held, releases = pod.gate.held, Releases(pod.gate.held)
        with held.lock:
            assert held.take_in("u", first, State("precious", arrived=True))
        shard = process.keys.shard("u")  # the router, on the new one, changes the link:
        writer = Writer(1, process.routers[shard])
        call = process.calls.hand_over(writer, shard, S, ["u"], [first], [MINE])
        (link,) = process.calls.parse(store.one(call)).links
        assert link is not None
        releases.settled({"u": (first, link.epoch)})
        (work,) = releases.to_acquire()
        with pytest.raises(FencedError, match="was replaced"):
            pod.gate.acquire(work.uid, work.epoch)
        assert held.entries["u"].state is not None
        assert releases.to_acquire() == [work], "it is tried again"


# What a router's connections lead to.


def test_no_connection_to_a_primary_that_was_replaced_is_used_again() -> None:
    async def talk(servers: SentinelServers) -> None:
        store = AsyncStore(servers.store_url())
        pool: Any = store._client.connection_pool
        busy, idle = await pool.get_connection(), await pool.get_connection()
        await pool.release(idle)
        other = await asyncio.to_thread(failed_over, servers)
        who = await store.servers()
        await store._give_back(busy)  # what it was for has ended by now
        for number in range(3):
            await store.one(plain_call("SET", "k", number))
            assert pool._available_connections[-1].port == other.port
        assert await store.servers() == who, "one and the same"
        await store.close()

    with SentinelServers("valkey") as servers:
        asyncio.run(talk(servers))


def test_a_process_opens_lanes_to_no_primary_that_was_replaced() -> None:
    with SentinelServers("valkey") as servers, closing(Store(servers.store_url())) as store:
        store.one(plain_call("SET", "k", 1))
        other = failed_over(servers)
        ((_, pool),) = store.primaries()
        connection = pool.get_connection()
        assert connection.port == other.port
        pool.release(connection)


# What a router writes.


class Between:
    """A store that sends the scripts of some uids to the primary that was replaced."""

    def __init__(self, old: AsyncStore, new: AsyncStore, keys: Iterable[str]) -> None:
        self.url, self.is_cluster = new.url, False
        self._old, self._new, self._keys = old, new, frozenset(keys)

    async def run(self, calls: Sequence[Call]) -> list[Any]:
        to_old = any(self._keys.intersection(call.keys) for call in calls)
        return await (self._old if to_old else self._new).run(calls)


@pytest.mark.parametrize("old_first", [True, False])
def test_of_two_servers_that_take_writes_one_is_noticed(
    server: EmbeddedServer,
    old_first: bool,
) -> None:
    keys = Keys(unique_name(), 1)
    calls = LinkCalls(keys, CONFIG)

    async def story(new: EmbeddedServer) -> None:
        stores = [AsyncStore(parse_url(it.url)) for it in (server, new)]
        between: Any = Between(*stores, keys=[keys.link(0, S, "old")])
        shards = Shards(between, keys, calls)

        def build(writer: Writer, shard: int, uids: list[str]) -> Call:
            return calls.set(writer, shard, S, uids, [MINE] * len(uids), persistent=True)

        # Both are built before either is answered.
        names = ["old", "new"] if old_first else ["new", "old"]
        both = [shards.run([name], build, waits=False) for name in names]
        outcomes = {uid: it for some in await asyncio.gather(*both) for uid, it in some.items()}
        kinds = {type(outcome) for outcome in outcomes.values()}
        assert kinds == {Outcome, LostWritesError}, "one of the two has lost the other's"
        for store in stores:
            shards._store = store
            assert (await shards.read(S, ["old"], waits=False))["old"].__class__ is LostWritesError
            await store.close()

    with replacing(server) as new:
        asyncio.run(story(new))


def test_scripts_of_one_server_are_no_loss(server: EmbeddedServer) -> None:
    keys = Keys(unique_name(), 1)
    calls = LinkCalls(keys, CONFIG)

    async def story() -> None:
        store = AsyncStore(parse_url(server.url))
        shards = Shards(store, keys, calls)

        def build(writer: Writer, shard: int, uids: list[str]) -> Call:
            return calls.set(writer, shard, S, uids, [MINE] * len(uids), persistent=True)

        for _ in range(5):
            running = [shards.run([f"u{number}"], build, waits=False) for number in range(50)]
            found = [it for some in await asyncio.gather(*running) for it in some.values()]
            assert {type(outcome) for outcome in found} == {Outcome}
        await store.close()

    asyncio.run(story())
