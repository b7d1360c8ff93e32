"""A script whose answer is lost is sent again only when it is known whose the shard is now."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

import pytest
from bare_router import SERVICE, Router
from bare_router import tell as tell_router
from helpers import unique_name
from proxy import TcpProxy
from reader import CONFIG, S
from servers import SentinelServers, admin
from test_confirming_together import MINE
from test_replaced_primary import failed_over, replacing

from ray_route.clock import now
from ray_route.errors import RouteError, StoreUnavailableError
from ray_route.protocol.commands import Fate
from ray_route.router.carrier import Carrier
from ray_route.router.sendings import CARRIED_OUT_S, Sendings
from ray_route.router.shards import Build, Outcome, Shards
from ray_route.runtime.cancelling import ended
from ray_route.store.connect import AsyncStore, Store
from ray_route.store.embedded import EmbeddedServer
from ray_route.store.exchange import UnansweredError
from ray_route.store.keys import Keys
from ray_route.store.links import LinkCalls, Writer
from ray_route.store.scripts import Call
from ray_route.store.url import StoreUrl, parse_url

U = "whose-answer-is-lost"


@dataclass
class Sender:
    """One shard, and what was done about it: looks at its server, recoveries."""

    url: StoreUrl
    keys: Keys = field(default_factory=lambda: Keys(unique_name(), 1))
    looks: int = 0
    recovered: int = 0

    def __post_init__(self) -> None:
        self.store = AsyncStore(self.url)
        self.calls = LinkCalls(self.keys, CONFIG)
        self.shards = Shards(self.store, self.keys, self.calls)
        self.shards.recover, self.shards.look = self._recover, self._look

    async def _look(self) -> object:
        self.looks += 1
        return await self.shards.counters.compare()

    async def _recover(self, shards: Iterable[int]) -> None:
        counters = self.shards.counters
        assert set(shards) == {0} == counters.aside.shards
        self.recovered += 1
        call = self.calls.restore(
            *(self.shards.writer(0), 0, "", [], []), token=1, first=True, last=True
        )
        counters.remember([(0, self.calls.parse(await self.store.one(call)).counter)])
        counters.aside.discard(0, counters.aside.times)

    def linking(self) -> Build:
        def build(writer: Writer, shard: int, uids: list[str]) -> Call:
            owners = [MINE] * len(uids)
            return self.calls.set_if_absent(writer, shard, S, uids, owners, persistent=True)

        return build

    async def link(self, uid: str = U, *, waits: bool = True) -> Outcome | RouteError:
        return (await self.shards.run([uid], self.linking(), waits=waits))[uid]

    async def epoch(self, uid: str = U) -> int:
        outcome = (await self.shards.read(S, [uid]))[uid]
        assert isinstance(outcome, Outcome)
        return outcome.link.epoch if outcome.link else 0


def tell(url: StoreUrl, story: Callable[[Sender], Awaitable[None]]) -> None:
    async def whole() -> None:
        sender = Sender(url)
        try:
            await sender.shards.counters.compare()
            await sender.link("before")
            await story(sender)
        finally:
            await sender.store.close()

    asyncio.run(asyncio.wait_for(whole(), 60))


@contextmanager
def proxied(server: EmbeddedServer) -> Iterator[tuple[TcpProxy, StoreUrl]]:
    with TcpProxy(server.port) as proxy:
        yield proxy, parse_url(server.url.replace(f":{server.port}/", f":{proxy.port}/"))


@pytest.mark.parametrize("waits", [True, False])
def test_the_same_server_is_looked_at_and_asked_again(server: EmbeddedServer, waits: bool) -> None:
    with proxied(server) as (proxy, url):

        async def story(sender: Sender) -> None:
            proxy.lose(U.encode())
            outcome = await sender.link(waits=waits)
            assert isinstance(outcome, Outcome)
            assert not outcome.written, "it had been carried out"
            assert (sender.looks, sender.recovered) == (1, 0)
            assert outcome.link is not None
            assert outcome.link.epoch == await sender.epoch()

        tell(url, story)


def test_what_another_server_may_have_done_is_recovered_before_anything_is_written(
    server: EmbeddedServer,
) -> None:
    with proxied(server) as (proxy, url):

        async def story(sender: Sender) -> None:
            with replacing(server) as new:
                proxy.lose(U.encode(), lambda: proxy.retarget(new.port))
                outcome = await sender.link()
            assert isinstance(outcome, Outcome)
            assert outcome.written, "there was nothing of it"
            assert (sender.looks, sender.recovered) == (1, 1)

        tell(url, story)


def test_what_a_look_has_found_done_is_missed_if_the_next_server_lacks_it(
    server: EmbeddedServer,
) -> None:
    with proxied(server) as (proxy, url):

        async def story(sender: Sender) -> None:
            counters = sender.shards.counters
            with replacing(server) as new:
                await nobody_hears_of_a_link(sender, proxy)
                assert not (await counters.compare()).lost
                assert not counters.shut(0)
                counters.sendings = Sendings()  # it was long ago
                proxy.retarget(new.port)
                assert (await counters.compare()).lost == {0}

        tell(url, story)


async def nobody_hears_of_a_link(sender: Sender, proxy: TcpProxy) -> None:
    """Have a link written whose answer is lost, and whose asker is gone before anybody looks."""
    noticed = asyncio.Event()

    async def look() -> None:
        noticed.set()
        await asyncio.Event().wait()

    sender.shards.look = look
    proxy.lose(U.encode())
    running = asyncio.create_task(sender.link())
    await noticed.wait()
    await ended([running])


def test_no_script_of_another_server_reaches_across_a_counter_that_was_read(
    server: EmbeddedServer,
) -> None:
    """What was sent before the look may be answered after it, by who lacks what the look found."""
    with proxied(server) as (proxy, url):

        async def story(sender: Sender) -> None:
            counters = sender.shards.counters
            known = counters.seen[0]
            await nobody_hears_of_a_link(sender, proxy)
            assert not (await counters.compare()).lost
            assert counters.seen[0] > known
            assert not counters.take(0, known, counters.seen[0] + 1), "it was written elsewhere"
            assert 0 in counters.aside

        tell(url, story)


@pytest.mark.parametrize("answers", [1, 2], ids=["who it is", "its counters"])
def test_a_look_is_at_one_server_also_while_another_takes_its_place(
    server: EmbeddedServer, answers: int
) -> None:
    """Who it is, and its counters: those of the next one would pass for what the first one did."""
    with proxied(server) as (proxy, url):

        async def story(sender: Sender) -> None:
            counters = sender.shards.counters
            with replacing(server) as new:
                await counters.compare()  # with its first replica a server counts as another
                await nobody_hears_of_a_link(sender, proxy)
                replaced = asyncio.Event()
                loop = asyncio.get_running_loop()

                def replace() -> None:
                    proxy.retarget(new.port)
                    loop.call_soon_threadsafe(replaced.set)

                # Who is there it asks first, and again with the counters.
                proxy.after(answers, b"\r\nINFO\r\n", replace)
                found = (await counters.compare()).lost
                await asyncio.wait_for(replaced.wait(), 10)
                counters.sendings = Sendings()  # it was long ago
                assert found | (await counters.compare()).lost == {0}

        tell(url, story)


def test_what_was_cut_off_while_it_gave_a_uid_away_may_give_it_away_late(
    server: EmbeddedServer,
) -> None:
    with proxied(server) as (proxy, url):

        async def story(sender: Sender) -> None:
            shards = sender.shards
            proxy.stall()
            placing = shards.run([U], sender.linking(), placing=True)
            running = asyncio.create_task(placing)
            for _ in range(5):  # Python 3.11 loses a cancel that comes as the sending ends
                await asyncio.sleep(0)
            assert shards.counters.sendings._sent[0], "it is on its way"
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            assert shards.placed_at[0] > now() + CARRIED_OUT_S / 2

        tell(url, story)


def test_what_is_cut_off_is_looked_at_before_anything_else_is_sent(server: EmbeddedServer) -> None:
    with proxied(server) as (proxy, url):

        async def story(sender: Sender) -> None:
            proxy.stall()
            running = asyncio.create_task(sender.link())
            for _ in range(5):  # Python 3.11 loses a cancel that comes as the sending ends
                await asyncio.sleep(0)
            assert sender.shards.counters.sendings._sent[0], "it is on its way"
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            proxy.heal()
            assert sender.shards.counters.shut(0)
            assert isinstance(await sender.link("other"), Outcome)
            assert (sender.looks, sender.recovered) == (1, 0)

        tell(url, story)


def test_a_lost_answer_to_a_read_is_no_doubt(server: EmbeddedServer) -> None:
    with proxied(server) as (proxy, url):

        async def story(sender: Sender) -> None:
            proxy.lose(U.encode())
            assert await sender.epoch() == 0
            assert not sender.shards.counters.shut(0)
            assert sender.looks == 0

        tell(url, story)


def test_what_never_left_is_no_doubt(server: EmbeddedServer) -> None:
    with proxied(server) as (proxy, url):

        async def story(sender: Sender) -> None:
            closed = parse_url(url.address.join(("redis://", "/")))
            sender.store = sender.shards._store = AsyncStore(closed)
            proxy.close()
            outcome = await sender.link()
            assert isinstance(outcome, StoreUnavailableError)
            assert not isinstance(outcome, UnansweredError)
            assert not sender.shards.counters.shut(0)
            assert sender.looks == 0

        tell(url, story)


def test_a_primary_that_sentinels_name_anew_is_looked_at_before_it_is_written_to() -> None:
    with SentinelServers("valkey") as servers:

        async def story(sender: Sender) -> None:
            await asyncio.to_thread(failed_over, servers)
            await sender.store._client.connection_pool.get_master_address()
            assert isinstance(await sender.link(), Outcome)
            assert (sender.looks, sender.recovered) == (1, 0)
            assert isinstance(await sender.link("later"), Outcome)
            assert sender.looks == 1

        tell(servers.store_url(), story)


def test_what_a_pod_was_told_of_a_uid_is_remembered_by_who_told_it(server: EmbeddedServer) -> None:
    """It drops the state that it kept; should Redis lose the link, nobody else would know."""
    with closing(Store(parse_url(server.url))) as store:

        async def story(router: Router) -> None:
            link = await router.place("u")
            router.links.cache.drop(SERVICE, "u")
            carrier = Carrier(router.membership, router.links, router.mailboxes, lambda *_: None)
            told = await carrier.settle(
                (SERVICE, link.pod + 1, 1), {"u": (link.epoch - 1, Fate.STAYS)}
            )
            assert told == {"u": (link.epoch - 1, 0)}
            with closing(admin(server)) as client:
                client.flushall()
            found = await router.find("u")
            assert (found.pod, found.epoch) == (link.pod, link.epoch)

        tell_router(store, unique_name(), story)
