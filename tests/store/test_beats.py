"""What a router's beats say, and what is never said: that all is well where nobody has looked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from typing import Any

import pytest
from helpers import unique_name
from servers import ClusterServers
from test_resumption import CONFIG, Pod, Router, close_all

from ray_route.clock import now
from ray_route.errors import RouteError, StoreUnavailableError
from ray_route.model import Life
from ray_route.protocol.changes import Change
from ray_route.router import change_writer
from ray_route.router import counters as counters_module
from ray_route.router.beats import Beats
from ray_route.router.change_writer import ChangeWriter
from ray_route.runtime.cancelling import ended
from ray_route.store.connect import AsyncStore, Store
from ray_route.store.keys import Keys
from ray_route.store.pods import PodCalls
from ray_route.store.scripts import Call, plain_call
from ray_route.store.url import StoreUrl

S = "chat"
BEAT_S = 0.05
# Less than whoever waits for a frozen pod has to wait.
WITHIN_S = 15


@dataclass
class Beating:
    """A router that beats, and its stream as clients read it."""

    router: Router
    keys: Keys
    store: AsyncStore
    changes: ChangeWriter

    async def entries(self) -> list[Change]:
        reply = await self.store.one(plain_call("XRANGE", self.keys.log, "-", "+"))
        fields = [{k.decode(): v.decode() for k, v in said.items()} for _, said in reply]
        return [Change.decode(one["kind"], one["service"], one["payload"]) for one in fields]

    async def beats(self) -> list[Change]:
        return [entry for entry in await self.entries() if entry.kind == "beat"]

    async def eventually(self, condition: Any, within_s: float = 20) -> None:
        end = now() + within_s
        while not await condition():
            assert now() < end
            await asyncio.sleep(0.02)  # polls, within a deadline

    async def more_beats(self, count: int = 2) -> None:
        before = len(await self.beats())

        async def come() -> bool:
            return len(await self.beats()) >= before + count

        await self.eventually(come)

    async def link(self, uid: str) -> int:
        """Write something to a uid's shard; return the shard."""
        calls = self.router.shards._links
        await self.router.shards.run(
            [uid],
            lambda writer, shard, uids: calls.set(
                writer, shard, S, uids, ["0:7"], persistent=False
            ),
        )
        return self.keys.shard(uid)


@asynccontextmanager
async def beating(url: StoreUrl) -> AsyncIterator[Beating]:
    keys = Keys(unique_name(), CONFIG.shards)
    router = Router.on(url, keys)
    await router.begin()
    store = AsyncStore(url)
    changes = ChangeWriter(router.store, keys)
    changes.router = router.incarnation
    router.recovery.comparison.tell_lost = changes.lost
    beats = Beats(BEAT_S, router.recovery, router.shards, changes)
    tasks = [asyncio.create_task(work) for work in (changes.run(), beats.run())]
    try:
        yield Beating(router, keys, store, changes)
    finally:
        await ended(tasks)
        await store.close()
        await close_all()


async def named(world: Beating) -> str:
    return await world.router.recovery.comparison.servers()


def run(work: Any) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


def test_a_beat_tells_the_counters_that_changed_and_the_servers_once(store: Store) -> None:
    async def story() -> None:
        async with beating(store.url) as world:
            await world.more_beats()
            shard = await world.link("u")
            counter = world.router.shards.counters.seen[shard]
            await world.more_beats(3)
            beats = await world.beats()
            assert [beat.servers for beat in beats if beat.servers] == [await named(world)]
            told = [beat.counters for beat in beats if beat.counters]
            assert told[-1] == {shard: counter}
            assert beats[-1].counters == {}

    run(story())


def test_a_loss_is_told_before_it_is_made_up_for(store: Store) -> None:
    async def story() -> None:
        async with beating(store.url) as world:
            shard = await world.link("u")
            counter = world.router.shards.counters.seen[shard]
            await world.more_beats()
            restored = world.router.recovery.restoration.restore
            told: list[Any] = []
            told_by_then: list[Any] = []

            def noted_as_told(lost: Any) -> None:
                told.append(lost)
                world.changes.lost(lost)

            async def noted(*found: Any) -> None:
                told_by_then.extend(told)
                await restored(*found)

            world.router.recovery.comparison.tell_lost = noted_as_told

            world.router.recovery.restoration.restore = noted  # type: ignore[method-assign]
            await world.store.one(plain_call("DEL", world.keys.counter(shard)))

            async def written() -> bool:
                return any(entry.kind == "lost" for entry in await world.entries())

            await world.eventually(written)
            await world.router.recovery.recover()
            assert told_by_then == [{shard: counter}]
            await world.more_beats()

    run(story())


def test_a_recovery_that_waits_for_a_frozen_pod_silences_nobody(store: Store) -> None:
    """Its shards are told as lost, once; all others are vouched for meanwhile."""

    async def story() -> None:
        async with beating(store.url) as world:
            shard, router = await world.link("u"), world.router
            other = await world.link("v")
            assert shard != other
            Pod(store, PodCalls(world.keys)).claim()
            await router.membership.refresh_all()
            assert router.answering is not None
            router.answering.cancel()  # it is frozen
            await world.store.one(plain_call("DEL", world.keys.counter(shard)))
            waiting = asyncio.create_task(router.recovery.recover([shard]))

            async def waits() -> bool:
                return bool(router.recovery._memories.silent)

            await world.eventually(waits)
            await world.more_beats(3)
            vouched = await asyncio.wait_for(router.recovery.vouched(), WITHIN_S)
            assert vouched.servers == await named(world)
            await asyncio.wait_for(router.recovery.recover([other]), WITHIN_S)
            assert not waiting.done()
            lost = [entry for entry in await world.entries() if entry.kind == "lost"]
            assert [list(entry.counters or {}) for entry in lost] == [[shard]]
            router.answering = asyncio.create_task(router.answer_recalls())
            await waiting
            assert not any((await router.shards.counters.compare())[:2])

    run(story())


def test_a_shard_that_is_lost_again_is_told_again(store: Store, namespace: str) -> None:
    """Even if nobody looked while it was well."""

    async def story() -> None:
        router = Router.on(store.url, Keys(namespace, CONFIG.shards))
        await router.begin()
        told: list[Any] = []
        look = router.recovery.comparison.look
        router.recovery.comparison.tell_lost = told.append
        for times in (1, 2):
            await router.store.one(plain_call("DEL", Keys(namespace, CONFIG.shards).counter(3)))
            found = await look()
            assert found.lost == (await look()).lost == {3}
            assert len(told) == times
            await router.recovery.restoration.restore(found.lost, found.servers, found.steps)
        await close_all()

    run(story())


@pytest.mark.slow
@pytest.mark.parametrize("how", ["dead", "frozen"])
def test_a_master_that_is_away_costs_its_own_shards_alone(how: str) -> None:
    """The router vouches for all others, and reads them; this one's it names."""

    async def story(cluster: ClusterServers) -> None:
        async with beating(cluster.store_url()) as world:
            await world.more_beats()
            streams = cluster.owner(cluster.slot(world.keys.log))
            other = next(node for node in cluster.nodes if node is not streams)
            slots = {s: cluster.slot(world.keys.counter(s)) for s in range(CONFIG.shards)}
            lost = {s for s, slot in slots.items() if cluster.owner(slot) is other}
            before = set((await world.store.servers()).values())
            if how == "dead":
                other.stop()
            else:
                cluster.freeze(other)

            async def told() -> bool:
                return set((await world.beats())[-1].unseen) == lost

            await world.eventually(told)
            servers = (await world.beats())[-1].servers or world.changes._servers_told
            assert set(servers.split(",")) < before
            assert len(servers.split(",")) == len(cluster.nodes) - 1
            uids = [f"u{number}" for number in range(64)]
            for _ in range(2):  # at first it is tried, then it is known to be away
                read = await world.router.shards.read(S, uids)
                failed = {uid for uid, outcome in read.items() if isinstance(outcome, Exception)}
                assert failed == {uid for uid in uids if world.keys.shard(uid) in lost}
            await world.more_beats(2)
            if how == "frozen":
                cluster.thaw(other)

                async def seen() -> bool:
                    return not (await world.beats())[-1].unseen

                await world.eventually(seen)
                await world.router.recovery.recover()  # it was away for as long as a lease, maybe
                assert not any((await world.router.shards.counters.compare())[:2])

    with ClusterServers("valkey", in_part=True) as cluster:
        run(story(cluster))


@pytest.mark.slow
def test_what_a_pod_table_lost_is_written_back_and_told_though_another_master_is_away() -> None:
    """A replica that lagged has taken over the namespace's own master."""

    async def story(cluster: ClusterServers) -> None:
        async with beating(cluster.store_url()) as world:
            await world.more_beats()
            membership = world.router.membership
            membership._on_change = lambda service, record: world.changes.write(
                Change("pod", service, pod=record)
            )
            other = next(
                node
                for node in cluster.nodes
                if node is not cluster.owner(cluster.slot(world.keys.log))
            )
            with closing(Store(cluster.store_url())) as store:
                Pod(store, PodCalls(world.keys)).claim()
            await membership.refresh_all()
            table = world.keys.pods(S)
            before = await world.store.one(plain_call("DUMP", table))
            record = membership.table.get(S, 0)
            assert record is not None
            assert await membership.declare_gone(S, record, silent=False)
            cluster.freeze(other)

            async def told_unseen() -> bool:
                return bool((await world.beats())[-1].unseen)

            async def ends_told(count: int) -> bool:
                told = [entry.pod for entry in await world.entries() if entry.pod]
                return sum(pod.life is Life.GONE for pod in told) >= count

            await world.eventually(told_unseen)
            await world.eventually(lambda: ends_told(1))
            await world.store.one(plain_call("RESTORE", table, 0, before, "REPLACE"))
            await world.store.one(plain_call("HSET", world.keys.meta, "sealed", "others"))

            async def is_written_back() -> bool:
                return b"gone" in await world.store.one(plain_call("HVALS", table))

            await world.eventually(is_written_back)
            await world.eventually(lambda: ends_told(2))
            assert (await world.router.recovery.compared()).is_whole

    with ClusterServers("valkey", in_part=True) as cluster:
        run(story(cluster))


def test_a_beat_is_as_old_as_its_look_at_the_counters(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was lost while the rest of the look went on it has not seen."""

    async def story() -> None:
        async with beating(store.url) as world:
            await world.more_beats()
            comparison = world.router.recovery.comparison
            goes_on, slow = asyncio.Event(), asyncio.Event()
            is_sealed = comparison.is_sealed

            async def slowly(*asked: Any, **how: Any) -> bool:
                slow.set()
                await goes_on.wait()
                return await is_sealed(*asked, **how)

            monkeypatch.setattr(comparison, "is_sealed", slowly)
            await slow.wait()
            later = now() + 2 * change_writer._FRESH_S
            for module in (change_writer, counters_module):
                monkeypatch.setattr(module, "now", lambda: later)
            beat, slow_one_beats = world.changes.beat, asyncio.Event()

            def once(*said: Any) -> None:
                if not slow_one_beats.is_set():
                    slow_one_beats.set()
                    beat(*said)

            async def write(uid: str) -> None:
                async def written() -> bool:
                    return any(uid in (entry.stale or {}) for entry in await world.entries())

                world.changes.write(Change("link", S, stale={uid: 1}))
                await world.eventually(written)

            await write("after all beats that were on their way")
            before = len(await world.beats())
            monkeypatch.setattr(world.changes, "beat", once)
            goes_on.set()
            await slow_one_beats.wait()
            await write("before its beat is judged, it may be")
            await write("after that")
            assert len(await world.beats()) == before

    run(story())


def test_a_loss_right_after_a_shard_is_back_is_news_also_if_the_rest_of_the_recovery_fails(
    store: Store,
) -> None:
    """Whoever has read the shard in between keeps what is lost now."""

    async def story() -> None:
        async with beating(store.url) as world:
            shard, router = await world.link("u"), world.router
            counter, comparison = world.keys.counter(shard), router.recovery.comparison
            told: list[Any] = []
            send = router.recovery.restoration._run

            async def fails_afterwards(calls: Any) -> Any:
                await send(calls)
                assert await world.store.one(plain_call("GET", counter))
                await world.store.one(plain_call("DEL", counter))
                router.recovery.restoration._run = send  # type: ignore[method-assign]
                await comparison.look()
                raise StoreUnavailableError(address="", reason="it is gone again")

            comparison.tell_lost = told.append
            router.recovery.restoration._run = fails_afterwards  # type: ignore[method-assign]
            await world.store.one(plain_call("DEL", counter))
            await world.eventually(lambda: recovered(router))
            assert sum(shard in news for news in told) >= 2

    run(story())


async def recovered(router: Router) -> bool:
    try:
        await router.recovery.recover()
    except RouteError:
        return False
    return True


def test_agents_hear_at_once_that_the_servers_are_others(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with beating(store.url) as world:
            mailboxes, comparison = world.router.mailboxes, world.router.recovery.comparison
            comparison.tell_servers = mailboxes.wake_all
            await world.more_beats()
            before = comparison.seen_last
            assert before == await named(world)
            agent = asyncio.create_task(mailboxes.fetch((S, 0, 7), 600.0))
            await world.more_beats()
            assert not agent.done()

            ask = world.router.store.ask

            async def another(server: str, calls: Sequence[Call]) -> tuple[str, list[Any]]:
                _, replies = await ask(server, calls)
                return "another", replies

            monkeypatch.setattr(world.router.store, "ask", another)
            assert await asyncio.wait_for(agent, WITHIN_S) == []
            assert comparison.seen_last == "another"

    run(story())


def test_a_beat_comes_after_the_loss_that_it_knows_of(store: Store) -> None:
    """Also if the loss was found while an earlier change was on its way."""

    async def story() -> None:
        async with beating(store.url) as world:
            changes, began, goes_on = world.changes, asyncio.Event(), asyncio.Event()
            append = changes._append

            async def held_up(entry: Any) -> str:
                began.set()
                await goes_on.wait()
                return await append(entry)

            changes._append = held_up  # type: ignore[method-assign]
            changes.write(Change("link", S, stale={"u": 1}))
            await began.wait()
            changes.lost({3: 100})
            changes.beat(now(), world.router.shards.counters.seen, "servers that have lost")
            goes_on.set()

            async def told() -> bool:
                return any(beat.servers == "servers that have lost" for beat in await world.beats())

            await world.eventually(told)
            kinds = [
                "lost" if entry.kind == "lost" else entry.servers for entry in await world.entries()
            ]
            assert kinds.index("lost") < kinds.index("servers that have lost")

    run(story())


def test_a_beat_that_could_not_be_told_in_time_is_not_told_at_all(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with beating(store.url) as world:
            await world.more_beats()
            moment = now() + 2 * change_writer._FRESH_S
            world.changes.beat(now(), world.router.shards.counters.seen, "others")
            monkeypatch.setattr(change_writer, "now", lambda: moment)
            world.changes.write(Change("link", S, stale={"u": 1}))

            async def written() -> bool:
                judged = world.changes._beat is None or world.changes._beat.servers != "others"
                return judged and any(entry.stale for entry in await world.entries())

            await world.eventually(written)
            monkeypatch.setattr(change_writer, "now", now)
            await world.more_beats()
            assert "others" not in [beat.servers for beat in await world.beats()]

    run(story())
