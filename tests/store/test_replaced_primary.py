"""A primary that was replaced answers until it is demoted: nothing is lost by that."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from queue import SimpleQueue
from typing import Any

import pytest
from bare_router import SERVICE, Router, tell
from helpers import eventually, soon, unique_name
from reader import CONFIG, Process, S
from servers import SERVICE as PRIMARY
from servers import SentinelServers, admin, is_in_step
from test_confirming_together import MINE, Pod

from ray_route.clock import now
from ray_route.errors import FencedError, LostWritesError, StoreUnavailableError
from ray_route.model import Link
from ray_route.pod.closing import leave_all
from ray_route.pod.gate import Gate
from ray_route.pod.incoming import take_in
from ray_route.pod.next_work import NextWork, Work
from ray_route.pod.release import Releases
from ray_route.pod.states import State
from ray_route.router.shards import Build, Outcome, Shards
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
    servers.ask("SENTINEL", "FAILOVER", PRIMARY)
    # As redis-py asks for it: other answers name the next one earlier.
    port = str(other.port)
    eventually(lambda: str(servers.ask("SENTINEL MASTER", PRIMARY)["port"]) == port, "promoted")
    return other


# What a pod reads.


def acquired(gate: Gate, work: Work) -> BaseException | None:
    """Have a uid that has arrived acquired; return what stands in the way."""
    told: SimpleQueue[BaseException | None] = SimpleQueue()
    with ThreadPoolExecutor(1) as threads:
        gate.acquire_all({work.uid: work.epoch}, lambda _, why: told.put(why), threads.submit)
        return told.get(timeout=30)


def test_a_state_outlives_a_read_of_a_primary_that_was_replaced(server: EmbeddedServer) -> None:
    process = Process(parse_url(server.url), Keys(unique_name(), CONFIG.shards))
    process.believe()
    pod = Pod(process)
    first = process.link("u", ANOTHERS)
    with replacing(server) as new, closing(process), closing(Store(parse_url(new.url))) as store:
        held, to_do = pod.gate.held, NextWork(pod.gate.held)
        with held.lock:
            assert take_in(held, "u", first, State("precious", arrived=True))
        shard = process.keys.shard("u")  # the router, on the new one, changes the link:
        writer = Writer(1, process.routers[shard])
        call = process.calls.hand_over(writer, shard, S, ["u"], [first], [MINE])
        (link,) = process.calls.parse(store.one(call)).links
        assert link is not None
        Releases(held).settled({"u": (first, link.epoch)})
        (work,) = to_do.to_acquire()
        # A router vouches for the new one alone.
        process.vouched_url = store.url
        with pytest.raises(StoreUnavailableError, match="others than a router has just seen"):
            raise acquired(pod.gate, work)
        assert held.entries["u"].state is not None
        assert to_do.to_acquire() == [work], "it is tried again"


def test_what_is_truly_anothers_is_dropped_though_its_epoch_is_lower(
    server: EmbeddedServer,
) -> None:
    """As where Redis came back from an old dump, and nobody else remembered the later link."""
    process = Process(parse_url(server.url), Keys(unique_name(), CONFIG.shards))
    pod = Pod(process)
    older = process.link("u", ANOTHERS)
    (other,) = same_shard(process.keys, process.keys.shard("u"), 1)
    process.link(other, ANOTHERS)  # so the shard's counter is beyond either epoch
    process.believe()
    with closing(process):
        held = pod.gate.held
        mine = Link(0, 7, older + 1, persistent=False, lease_s=60.0)
        pod.gate.admission.confirmed("u", mine.epoch, mine, now(), held.term)
        pod.gate.admission.acquired("u", mine.epoch)
        with held.lock:
            held.entries["u"].until = 0.0
        leave_all(held)
        (work,) = NextWork(held).to_confirm()
        asked = process.asked
        with pytest.raises(FencedError):
            pod.gate._confirming.confirm(work.uid, work.epoch)
        assert held.entries["u"].lost
        assert process.asked == asked + 1, "a router vouches for it anew, once"


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
    """A store that sends the scripts of one uid to the primary that was replaced, others later."""

    def __init__(self, old: AsyncStore, new: AsyncStore, key: str, late_s: float) -> None:
        self.url, self.is_cluster = new.url, False
        self._old, self._new, self._key, self._late_s = old, new, key, late_s

    async def run(self, calls: Sequence[Call], *, once: bool) -> list[Any]:
        if any(self._key in call.keys for call in calls):
            return await self._old.run(calls, once=once)
        await asyncio.sleep(self._late_s)  # so that it is answered after those sent before
        self._late_s *= 2
        return await self._new.run(calls, once=once)


def linking(calls: LinkCalls) -> Build:
    def build(writer: Writer, shard: int, uids: list[str]) -> Call:
        return calls.set(writer, shard, S, uids, [MINE] * len(uids), persistent=True)

    return build


@pytest.mark.slow
@pytest.mark.parametrize(
    "groups",
    [[["old"], ["new"]], [["old"], ["one"], ["two"]], [["old"], [f"u{n}" for n in range(600)]]],
    ids=["one each", "one more on its way", "two scripts in one trip"],
)
def test_of_two_servers_that_take_writes_none_is_believed(
    server: EmbeddedServer, groups: list[list[str]]
) -> None:
    keys = Keys(unique_name(), 1)
    calls = LinkCalls(keys, CONFIG)

    async def story(new: EmbeddedServer) -> None:
        stores = [AsyncStore(parse_url(it.url)) for it in (server, new)]
        between: Any = Between(*stores, keys.link(0, S, "old"), 0.1)
        shards = Shards(between, keys, calls)
        # All are built before any is answered.
        running = [shards.run(names, linking(calls), waits=False) for names in groups]
        outcomes = {uid: it for some in await asyncio.gather(*running) for uid, it in some.items()}
        assert isinstance(outcomes["old"], Outcome), "it was acknowledged"
        shards._store = shards.counters._store = stores[1]  # the one that stays, which lacks it
        assert (await shards.counters.compare()).lost == {0}
        for uid in ("old", groups[1][0]):
            after = (await shards.read(S, [uid], waits=False))[uid]
            assert isinstance(after, LostWritesError)
        for store in stores:
            await store.close()

    with replacing(server) as new:
        asyncio.run(story(new))


@pytest.mark.parametrize("mine", ["valkey", "redis"])
def test_what_a_replaced_primary_has_acknowledged_is_written_to_the_other(mine: str) -> None:
    with EmbeddedServer(flavor=mine) as old, closing(Store(parse_url(old.url))) as store:
        name = unique_name()

        async def divided(router: Router) -> None:
            connection: Any = router.shards._store
            kept = await router.place("kept")
            with replacing(old) as new:
                other = AsyncStore(parse_url(new.url))
                shard = router.keys.shard("kept")
                one, two = (uid for uid in same_shard(router.keys, shard, 2))
                to_old, waiting, sending = connection.run, asyncio.Event(), list[str]()

                async def run(calls: Sequence[Call], *, once: bool = False) -> list[Any]:
                    keys = {key for call in calls if call.script for key in call.keys}
                    if router.keys.link(shard, SERVICE, one) in keys and not waiting.is_set():
                        return await to_old(calls)
                    if router.keys.link(shard, SERVICE, two) in keys and not waiting.is_set():
                        sending.append(two)
                        await waiting.wait()  # built before, and sent after the other's answer
                    return await other.run(calls)

                connection.run, connection.servers, connection.ask = run, other.servers, other.ask

                async def linked(uid: str) -> Link:
                    pod = router.pod(0)
                    return await router.links.set_if_absent(SERVICE, uid, pod, persistent=True)

                later = asyncio.create_task(linked(two))
                await soon(lambda: sending, "it has been built")
                first = await linked(one)
                waiting.set()
                second = await later
                names = [(SERVICE, uid) for uid in ("kept", one, two)]
                read = router.shards._links.read(0, shard, names)
                there = router.shards._links.parse(await other.one(read)).links
                wanted = [link.epoch for link in (kept, first, second)]
                assert [it and it.epoch for it in there] == wanted
                await other.close()

        tell(store, name, divided)


def same_shard(keys: Keys, shard: int, count: int) -> Iterator[str]:
    """Yield uids of a shard."""
    some = (f"uid-{number}" for number in itertools.count())
    return itertools.islice((uid for uid in some if keys.shard(uid) == shard), count)


def test_scripts_of_one_server_are_no_loss(server: EmbeddedServer) -> None:
    keys = Keys(unique_name(), 1)
    calls = LinkCalls(keys, CONFIG)

    async def story() -> None:
        store = AsyncStore(parse_url(server.url))
        shards = Shards(store, keys, calls)

        for _ in range(5):
            names = ([f"u{number}"] for number in range(50))
            running = [shards.run(some, linking(calls), waits=False) for some in names]
            found = [it for some in await asyncio.gather(*running) for it in some.values()]
            assert {type(outcome) for outcome in found} == {Outcome}
        await store.close()

    asyncio.run(story())
