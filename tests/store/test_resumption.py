"""Lives whose lease has lapsed: which of them a router lets go on, over every order of events."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import pytest
from helpers import soon
from proxy import TcpProxy

from ray_route.config import RouteConfig
from ray_route.errors import RouterUnavailableError, StoreUnavailableError
from ray_route.model import Life, PodRecord, RoutingState
from ray_route.protocol.commands import Address, Memory, Recall, Word
from ray_route.router import failure_detector
from ray_route.router.failure_detector import FailureDetector
from ray_route.router.link_table import LinkTable
from ray_route.router.mailbox import Mailboxes
from ray_route.router.membership import Membership
from ray_route.router.placing_gate import PlacingGate
from ray_route.router.recovery import Recovery
from ray_route.router.resumption import Resumption
from ray_route.router.shards import Shards
from ray_route.router.shared_run import SharedRun
from ray_route.runtime.metrics import POD_DEATHS
from ray_route.store.connect import AsyncStore, Store
from ray_route.store.embedded import EmbeddedServer
from ray_route.store.keys import Keys
from ray_route.store.links import LinkCalls
from ray_route.store.namespaces import read_seal
from ray_route.store.pods import Identity, PodCalls, parse_table
from ray_route.store.scripts import Call, plain_call
from ray_route.store.url import StoreUrl, parse_url

pytestmark = pytest.mark.slow

SERVICE = "chat"
CONFIG = RouteConfig(shards=16, pod_lease_s=3.0, heartbeat_s=0.5, staleness_s=3.0)
WHO = Identity(SERVICE, 0, "process-1", "another-node", "actor")
READY, SHUTDOWN = RoutingState.READY, RoutingState.SHUTDOWN


_OPENED: list[Router] = []


async def close_all() -> None:
    """Close every router of this loop."""
    while _OPENED:
        router = _OPENED.pop()
        if router.answering is not None:
            router.answering.cancel()
        await router.store.close()


@dataclass
class Router:
    """A router's insides on a bare event loop."""

    store: AsyncStore
    shards: Shards
    membership: Membership
    mailboxes: Mailboxes
    recovery: Recovery
    failures: FailureDetector
    resumption: Resumption
    anew: list[tuple[str, int]]
    answering: asyncio.Task[None] | None = None

    @classmethod
    def on(cls, url: StoreUrl, keys: Keys) -> Router:
        store = AsyncStore(url)
        shards = Shards(store, keys, LinkCalls(keys, CONFIG))
        membership = Membership(store, keys, lambda *_: None, shards)
        links = LinkTable(CONFIG, keys, membership, shards)
        mailboxes = Mailboxes()
        gate = PlacingGate(keys.namespace, CONFIG, membership)
        failures = FailureDetector(membership, gate, CONFIG, "this-node")
        recovery = Recovery(
            CONFIG, store, membership, shards, links, mailboxes, failures.begin_anew
        )
        shards.recover, shards.look = recovery.recover, recovery.compared
        anew: list[tuple[str, int]] = []

        def begin_anew(service: str, pod: int) -> None:
            anew.append((service, pod))
            failures.begin_anew_with(service, pod)

        resumption = Resumption(CONFIG, membership, shards, recovery, begin_anew)
        router = cls(store, shards, membership, mailboxes, recovery, failures, resumption, anew)
        router.answering = asyncio.create_task(router.answer_recalls())
        _OPENED.append(router)
        return router

    async def answer_recalls(self) -> None:
        """Let every agent hold nothing."""
        while True:
            for address, box in list(self.mailboxes._boxes.items()):
                for number, command in list(box.commands.items()):
                    assert isinstance(command, Recall)
                    self.mailboxes.answer(address, number, Memory([0] * CONFIG.shards, {}))
            await asyncio.sleep(0.005)  # polls for commands

    async def begin(self) -> None:
        """Take over as `Lifecycle` does; no pod is asked for what it remembers."""
        await self.recovery.look_for_proof()
        await self.begin_after_its_look()

    async def begin_after_its_look(self) -> None:
        await self.shards.claim()
        await self.membership.refresh_all()
        await self.recovery.begin(pods_expected=False)

    @property
    def incarnation(self) -> int:
        return self.shards.incarnation


@dataclass
class Pod:
    """A pod as Redis knows it, driven by hand. What it was told last is kept."""

    store: Store
    calls: PodCalls
    incarnation: int = 0
    seq: int = 0
    under: int = 0

    @property
    def address(self) -> Address:
        return SERVICE, WHO.pod, self.incarnation

    def claim(self) -> None:
        status, incarnation, seq, under = self.store.one(self.calls.claim(WHO, READY))
        assert status == b"ok"
        self.incarnation, self.seq, self.under = int(incarnation), int(seq), int(under)

    def renew(self, *, lapsed: bool = True) -> bytes:
        call = self.calls.renew(WHO, self.incarnation, 0.0, READY, self.seq, lapsed=lapsed)
        status, *told = self.store.one(call)
        if told:
            self.seq = int(told[0])
        if told and not lapsed:
            self.under = int(told[1])
        return status

    def record(self) -> PodRecord:
        (record,) = parse_table(self.store.one(self.calls.table(SERVICE)))
        return record

    def copy(self) -> list[Any]:
        held = self.store.one(plain_call("HGETALL", self.calls.keys.pods(SERVICE)))
        return [part for pair in held.items() for part in pair]

    def put_back(self, copy: list[Any]) -> None:
        """Bring the table back as it was: what a replica that lagged would hold."""
        table = self.calls.keys.pods(SERVICE)
        self.store.run([plain_call("DEL", table), plain_call("HSET", table, *copy)])


@dataclass
class World:
    """One pod that has been claimed under the first router."""

    url: StoreUrl
    store: Store
    keys: Keys
    router: Router
    pod: Pod

    async def ask(self, router: Router | None = None, **changes: int) -> Word:
        facts = {"seq": self.pod.seq, "under": self.pod.under, "heard": 0, **changes}
        return await (router or self.router).resumption.confirm(self.pod.address, **facts)

    async def another_router(self) -> Router:
        router = Router.on(self.url, self.keys)
        await router.begin()
        return router


Run = Callable[[Callable[[World], Awaitable[None]]], None]


@pytest.fixture
def run(store: Store, server: EmbeddedServer, namespace: str) -> Run:
    """Run a story in a fresh world, within 60 s."""

    async def main(work: Callable[[World], Awaitable[None]]) -> None:
        keys = Keys(namespace, CONFIG.shards)
        router = Router.on(store.url, keys)
        await router.begin()
        pod = Pod(store, PodCalls(keys))
        pod.claim()
        await router.membership.refresh_all()
        try:
            await work(World(store.url, store, keys, router, pod))
        finally:
            await close_all()

    return lambda work: asyncio.run(asyncio.wait_for(main(work), 60))


def test_a_life_that_nobody_has_ended_goes_on(run: Run) -> None:
    async def story(world: World) -> None:
        world.pod.renew()
        assert world.pod.record().lapsed
        assert await world.ask() is Word.SERVE
        assert not world.pod.record().lapsed
        assert world.pod.record().seq == world.pod.seq + 1
        assert world.router.anew == [(SERVICE, 0)]

    run(story)


@pytest.mark.parametrize("order", list(permutations(["end", "renew", "vouch"])))
@pytest.mark.parametrize("silent", [True, False])
def test_a_life_is_ended_or_goes_on_and_never_both(
    store: Store, namespace: str, order: tuple[str, ...], silent: bool
) -> None:
    pod = Pod(store, PodCalls(Keys(namespace, 1)))
    store.one(plain_call("HSET", pod.calls.keys.meta, "sealed", "here", "router", 9))
    pod.claim()
    seen, number = pod.record(), pod.seq + 1  # that of the renewal
    said = {}
    for act in order:
        if act == "end":
            said[act] = store.one(pod.calls.declare_gone(SERVICE, seen, 9, silent=silent))
        elif act == "renew":
            said[act] = pod.renew()
        else:
            said[act] = store.one(pod.calls.vouch(pod.address, number, 9))
    alive = pod.record().life is Life.ALIVE
    assert alive == (said["end"] == b"renewed")
    vouched = said["vouch"] == b"ok"
    if order.index("vouch") < order.index("renew"):
        assert not vouched, "nobody vouches for a renewal that is not there"
    if order.index("end") < order.index("vouch"):
        assert vouched == (alive and order == ("renew", "end", "vouch"))
    elif order == ("renew", "vouch", "end"):
        assert vouched
        assert alive == silent, "only a process that is known to have ended"
    if order[0] == "end":
        assert (said["renew"], alive) == (b"gone", False)


@pytest.mark.parametrize(
    ("meanwhile", "verdict"),
    [("shutdown", b"ended"), ("unsealed", b"lost"), ("replaced", b"superseded")],
)
def test_nobody_vouches_over_what_came_meanwhile(
    store: Store, namespace: str, meanwhile: str, verdict: bytes
) -> None:
    """The router's own table may lag behind: the script looks at everything once more."""
    pod = Pod(store, PodCalls(Keys(namespace, 1)))
    store.one(plain_call("HSET", pod.calls.keys.meta, "sealed", "here", "router", 9))
    pod.claim()
    pod.renew()
    address, seq = pod.address, pod.seq
    if meanwhile == "shutdown":
        store.one(pod.calls.set_state(SERVICE, pod.record(), SHUTDOWN, 9))
    elif meanwhile == "unsealed":
        store.one(plain_call("HDEL", pod.calls.keys.meta, "sealed"))
    else:
        pod.claim()
    before = pod.record()
    assert store.one(pod.calls.vouch(address, seq, 9)) == verdict
    assert pod.record() == before


@pytest.mark.parametrize("ending", ["gone", "resigned", "shutdown", "replaced"])
def test_a_life_that_was_ended_is_over(run: Run, ending: str) -> None:
    async def story(world: World) -> None:
        pod, membership = world.pod, world.router.membership
        pod.renew()
        asked = {"seq": pod.seq, "under": pod.under, "heard": 0}
        address = pod.address
        if ending == "gone":
            assert await membership.declare_gone(SERVICE, pod.record(), silent=False)
        elif ending == "resigned":
            world.store.one(pod.calls.resign(WHO, pod.incarnation))
        elif ending == "shutdown":
            await membership.set_state(SERVICE, pod.record(), SHUTDOWN)
        else:
            pod.claim()
        word = await world.router.resumption.confirm(address, **asked)
        assert word is Word.ENDED
        assert world.router.anew == []

    run(story)


def test_an_end_that_redis_has_forgotten_stands(run: Run) -> None:
    """A replica that lacked the end was promoted, and the pod renews as if nothing were."""

    async def story(world: World) -> None:
        before = world.pod.copy()
        assert await world.router.membership.declare_gone(SERVICE, world.pod.record(), silent=True)
        world.pod.put_back(before)
        assert world.pod.renew() == b"ok"
        assert await world.ask() is Word.ENDED

    run(story)


def deaths(world: World) -> dict[str, int]:
    counted = world.router.membership.meter.counts
    return {of[1]: counted[name, of] for name, of in counted if name == POD_DEATHS.name}


def test_a_life_that_reaches_the_store_and_not_its_router_is_ended_after_a_lease(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    at = 1_000.0
    monkeypatch.setattr(failure_detector, "now", lambda: at)

    async def story(world: World) -> None:
        nonlocal at
        assert world.pod.renew() == b"ok"
        for _ in range(int(CONFIG.pod_lease_s)):
            await world.router.failures._look()
            assert world.pod.renew() == b"ok"
            at += 1.0
        await world.router.failures._look()
        assert world.pod.renew() == b"gone"
        assert deaths(world) == {"cut off": 1}

    run(story)
    assert "has reached the store and not its router" in caplog.text


def test_an_end_that_does_not_stand_is_written_again(run: Run) -> None:
    async def story(world: World) -> None:
        before = world.pod.copy()
        assert await world.router.membership.declare_gone(SERVICE, world.pod.record(), silent=True)
        world.pod.put_back(before)
        assert world.pod.renew() == b"ok"
        await world.router.failures._look()
        assert world.pod.renew() == b"gone"

    run(story)


def test_an_end_that_could_not_be_written_is_written_at_the_next_look(run: Run) -> None:
    async def story(world: World) -> None:
        world.router.membership.denied.deny(world.pod.address, None)
        await world.router.failures._look()
        assert world.pod.renew() == b"gone"
        assert deaths(world) == {"again": 1}

    run(story)


def test_a_renewal_that_redis_has_lost_is_asked_for_again(run: Run) -> None:
    async def story(world: World) -> None:
        before = world.pod.copy()
        world.pod.renew()
        world.pod.put_back(before)
        assert await world.ask() is Word.AGAIN
        world.pod.renew()
        assert await world.ask() is Word.SERVE

    run(story)


def test_a_record_that_redis_has_lost_is_asked_for_again(run: Run) -> None:
    async def story(world: World) -> None:
        world.pod.renew()
        world.store.one(plain_call("DEL", world.keys.pods(SERVICE)))
        assert await world.ask() is Word.AGAIN
        world.pod.renew()
        assert await world.ask() is Word.SERVE

    run(story)


# Whose memory spans the lapse.


def test_a_later_router_lets_go_on_what_a_whole_redis_tells(run: Run) -> None:
    async def story(world: World) -> None:
        later = await world.another_router()
        assert later.recovery.credible.is_proven
        world.pod.renew()
        assert world.pod.under != later.incarnation
        assert await world.ask(later) is Word.SERVE

    run(story)


def lose_the_seal(world: World) -> None:
    world.store.one(plain_call("HSET", world.keys.meta, "sealed", "other servers"))


def test_a_later_router_on_another_server_lets_nobody_go_on(run: Run) -> None:
    """An end may have been written under the router before, and lost together with it."""

    async def story(world: World) -> None:
        lose_the_seal(world)
        later = Router.on(world.url, world.keys)
        await later.begin()
        assert not later.recovery.credible.is_proven
        world.pod.renew()
        assert await world.ask(later) is Word.ENDED
        assert world.pod.renew() == b"gone", "it is written before it is said"

    run(story)


def test_a_pod_that_has_renewed_under_the_later_router_before_it_lapsed_goes_on(run: Run) -> None:
    async def story(world: World) -> None:
        lose_the_seal(world)
        later = Router.on(world.url, world.keys)
        await later.begin()
        world.pod.renew(lapsed=False)
        assert world.pod.under == later.incarnation
        world.pod.renew()
        assert await world.ask(later) is Word.SERVE

    run(story)


def test_a_loss_between_the_looks_of_a_starting_router_is_no_proof(run: Run) -> None:
    async def story(world: World) -> None:
        later = Router.on(world.url, world.keys)
        await later.recovery.look_for_proof()
        assert later.recovery.credible.is_proven
        lose_the_seal(world)
        await later.begin_after_its_look()
        assert not later.recovery.credible.is_proven

    run(story)


def test_a_seal_that_came_after_a_routers_claim_is_no_proof(run: Run) -> None:
    """What was lost before may be what an end was written to."""

    async def story(world: World) -> None:
        whole = world.store.one(read_seal(world.keys))
        lose_the_seal(world)
        later = Router.on(world.url, world.keys)
        await later.recovery.look_for_proof()
        world.store.one(plain_call("HSET", world.keys.meta, "sealed", whole))
        await later.begin_after_its_look()
        assert not later.recovery.credible.is_proven

    run(story)


# Who may say so.


def test_a_router_that_has_only_claimed_may_claim_again(run: Run) -> None:
    """A claim without an answer may have been carried out: the younger router is itself."""

    async def story(world: World) -> None:
        router = Router.on(world.url, world.keys)
        await router.shards.claim()
        await router.membership.refresh_all()
        world.store.one(plain_call("HINCRBY", world.keys.meta, "router", 1))
        with pytest.raises(RouterUnavailableError, match="younger"):
            await router.membership.declare_gone(SERVICE, world.pod.record(), silent=True)
        assert not router.shards.superseded.is_set()
        await router.begin()
        world.pod.renew()
        assert await world.ask(router) is Word.SERVE

    run(story)


def test_a_router_that_was_deposed_says_nothing_and_ends(run: Run) -> None:
    async def story(world: World) -> None:
        world.pod.renew()
        await world.another_router()
        with pytest.raises(RouterUnavailableError, match="younger"):
            await world.ask()
        assert world.router.shards.superseded.is_set()
        assert world.pod.record().lapsed

    run(story)


def test_a_claim_alone_deposes(run: Run) -> None:
    """The younger router has written to no shard yet; but it has read the pod tables."""

    async def story(world: World) -> None:
        world.pod.renew()
        younger = Router.on(world.url, world.keys)
        await younger.shards.claim()
        with pytest.raises(RouterUnavailableError, match="younger"):
            await world.ask()
        with pytest.raises(RouterUnavailableError, match="younger"):
            await world.router.membership.declare_gone(SERVICE, world.pod.record(), silent=False)
        assert world.pod.record().life is Life.ALIVE

    run(story)


def test_a_router_that_is_older_than_one_the_pod_has_heard_of_ends(run: Run) -> None:
    async def story(world: World) -> None:
        world.pod.renew()
        with pytest.raises(RouterUnavailableError, match="younger"):
            await world.ask(heard=world.router.incarnation + 1)
        assert world.router.shards.superseded.is_set()
        assert await world.ask(heard=world.router.incarnation) is Word.SERVE

    run(story)


def test_a_router_without_an_incarnation_decides_nothing(run: Run) -> None:
    async def story(world: World) -> None:
        unborn = Router.on(world.url, world.keys)
        await unborn.membership.refresh_all()
        with pytest.raises(RouterUnavailableError, match="starting"):
            await unborn.membership.declare_gone(SERVICE, world.pod.record(), silent=False)
        with pytest.raises(RouterUnavailableError, match="starting"):
            await unborn.failures._look()
        assert not unborn.shards.superseded.is_set()

    run(story)


def test_every_shard_is_written_after_the_question(run: Run) -> None:
    async def story(world: World) -> None:
        world.pod.renew()
        counters = [world.keys.counter(shard) for shard in range(CONFIG.shards)]
        before = world.store.run([plain_call("GET", key) for key in counters])
        assert await world.ask() is Word.SERVE
        after = world.store.run([plain_call("GET", key) for key in counters])
        assert all(one != other for one, other in zip(before, after, strict=True))

    run(story)


def test_a_loss_is_recovered_before_anybody_goes_on(run: Run) -> None:
    async def story(world: World) -> None:
        world.store.one(Call("", ("FLUSHALL",)))
        world.pod.renew()
        while (word := await world.ask()) is Word.AGAIN:
            world.pod.renew()
        assert word is Word.SERVE
        assert world.store.one(read_seal(world.keys)) is not None
        assert not any((await world.router.shards.counters.compare())[:2])

    run(story)


def test_a_run_serves_only_those_who_asked_before_it_began() -> None:
    async def main() -> None:
        begun, may_end = 0, asyncio.Event()

        async def work() -> None:
            nonlocal begun
            begun += 1
            await may_end.wait()

        shared = SharedRun(work)
        early = [asyncio.create_task(shared.begun_now()) for _ in range(5)]
        await soon(lambda: begun == 1, "the first run has begun")
        late = [asyncio.create_task(shared.begun_now()) for _ in range(5)]
        await asyncio.sleep(0)  # they have asked
        assert begun == 1
        may_end.set()
        await asyncio.gather(*early)
        assert not any(task.done() for task in late)
        await asyncio.gather(*late)
        assert begun == 2

    asyncio.run(asyncio.wait_for(main(), 10))


def test_a_run_that_fails_fails_for_its_own_callers_alone() -> None:
    async def main() -> None:
        outcomes = iter([StoreUnavailableError(address="here", reason="away"), None])
        begun, may_end = asyncio.Event(), asyncio.Event()

        async def work() -> None:
            begun.set()
            await may_end.wait()
            if error := next(outcomes):
                raise error

        shared = SharedRun(work)
        first = asyncio.create_task(shared.begun_now())
        await begun.wait()
        second = asyncio.create_task(shared.begun_now())
        await asyncio.sleep(0)  # it has asked
        may_end.set()
        with pytest.raises(StoreUnavailableError):
            await first
        await second

    asyncio.run(asyncio.wait_for(main(), 10))


# Ends whose outcome is unknown.


def test_nobody_vouches_for_a_life_whose_end_is_on_its_way(
    server: EmbeddedServer, store: Store, namespace: str
) -> None:
    """The cable holds the end back, its sender hears nothing, and it arrives in the end."""
    keys = Keys(namespace, CONFIG.shards)

    async def main(proxy: TcpProxy) -> None:
        by_proxy = parse_url(server.url.replace(str(server.port), str(proxy.port)))
        router = Router.on(by_proxy, keys)
        await router.begin()
        pod = Pod(store, PodCalls(keys))
        pod.claim()
        await router.membership.refresh_all()
        asked = {"under": pod.under, "heard": 0}
        proxy.stall()
        with pytest.raises(StoreUnavailableError):
            await router.membership.declare_gone(SERVICE, pod.record(), silent=True)
        assert pod.address in router.membership.denied
        with pytest.raises(StoreUnavailableError):
            await router.resumption.confirm(pod.address, pod.seq, **asked)
        proxy.heal()
        # What was held back arrives: it had seen the record as it still was.
        await soon(lambda: pod.record().life is Life.GONE, "the end that was held back")
        assert pod.renew() == b"gone"
        assert await eventually_said(router, pod, asked) is Word.ENDED
        await close_all()

    with TcpProxy(server.port) as proxy:
        asyncio.run(asyncio.wait_for(main(proxy), 60))


def test_who_comes_once_redis_is_back_is_not_told_of_the_outage(
    server: EmbeddedServer, namespace: str
) -> None:
    """Neither the failure of a run that began before they came, nor the circuit's memory of it."""
    keys = Keys(namespace, CONFIG.shards)

    async def main(proxy: TcpProxy) -> None:
        by_proxy = parse_url(server.url.replace(str(server.port), str(proxy.port)))
        router = Router.on(by_proxy, keys)
        await router.begin()
        proxy.cut()
        with pytest.raises(StoreUnavailableError):
            await router.recovery.recover([0])
        begun_before = asyncio.create_task(router.recovery.compared())
        proxy.heal()
        await router.recovery.recover([0])
        assert begun_before.done()
        await close_all()

    with TcpProxy(server.port) as proxy:
        asyncio.run(asyncio.wait_for(main(proxy), 60))


async def eventually_said(router: Router, pod: Pod, asked: dict[str, int]) -> Word:
    while True:
        try:
            await router.membership.refresh_all()
            word = await router.resumption.confirm(pod.address, pod.seq, **asked)
        except StoreUnavailableError:
            word = Word.AGAIN
        if word is not Word.AGAIN:
            return word
        await asyncio.sleep(0.1)  # polls, until the test ends


def test_an_end_that_came_too_late_is_forgotten(run: Run) -> None:
    async def story(world: World) -> None:
        pod, membership = world.pod, world.router.membership
        seen = pod.record()
        membership.denied.deny(pod.address, seen.seq)  # sent; no answer yet
        assert await world.ask() is Word.AGAIN
        pod.renew()
        await membership.refresh_all()
        assert pod.address not in membership.denied, "it can only say 'renewed' now"
        assert await world.ask() is Word.SERVE
        assert not await membership.declare_gone(SERVICE, seen, silent=True)
        assert pod.address not in membership.denied

    run(story)


def test_an_end_of_a_process_that_has_ended_is_sent_until_it_stands(run: Run) -> None:
    async def story(world: World) -> None:
        pod, router = world.pod, world.router
        router.membership.denied.deny(pod.address, None)  # sent, and lost on the way
        pod.renew()
        await router.membership.refresh_all()
        assert await world.ask() is Word.ENDED
        await router.failures._look()
        assert pod.record().life is Life.GONE
        assert pod.address not in router.membership.denied

    run(story)


def test_an_end_that_is_sent_while_somebody_vouches_wins(run: Run) -> None:
    async def story(world: World) -> None:
        pod, router = world.pod, world.router
        pod.renew()
        asking = asyncio.create_task(world.ask())
        for _ in range(10_000):
            if router.resumption._fence._running:  # what is known has been looked at
                break
            await asyncio.sleep(0)
        router.membership.denied.deny(pod.address, pod.record().seq)
        assert await asking is Word.AGAIN
        assert not pod.record().lapsed, "it was vouched for: the end can only say 'renewed'"
        assert router.anew == []

    run(story)


# Silence.


def refuse_writes(store: Store) -> None:
    store._client.config_set("min-replicas-to-write", 1)


def test_silence_counts_only_while_redis_takes_the_routers_own_look(run: Run) -> None:
    """It refuses renewals then, and nobody is silent; reads alone go on."""

    async def story(world: World) -> None:
        failures, pod = world.router.failures, world.pod
        await failures._look()
        refuse_writes(world.store)
        try:
            end = asyncio.get_running_loop().time() + CONFIG.pod_lease_s + 1
            watching = asyncio.create_task(failures.watch_heartbeats())
            while asyncio.get_running_loop().time() < end:
                with pytest.raises(StoreUnavailableError):
                    pod.renew()
                await asyncio.sleep(0.2)  # the pace of renewals
        finally:
            world.store._client.config_set("min-replicas-to-write", 0)
        await asyncio.sleep(2 * CONFIG.heartbeat_s)  # so many beats that change nothing
        assert pod.record().life is Life.ALIVE, "it could not renew"
        assert pod.renew(lapsed=True) == b"ok"
        assert await world.ask() is Word.SERVE
        await soon(lambda: pod.record().life is Life.GONE, "it could renew, and did not")
        watching.cancel()

    run(story)


def test_a_pod_that_reaches_redis_and_no_router_is_given_up_after_a_lease(run: Run) -> None:
    async def story(world: World) -> None:
        watching = asyncio.create_task(world.router.failures.watch_heartbeats())
        for _ in range(int(CONFIG.pod_lease_s / 0.2)):  # its agent is heard, if nothing else
            assert world.pod.renew() == b"ok"
            world.router.failures.hear(SERVICE, 0)
            await asyncio.sleep(0.2)  # the pace of renewals
        renewals = 0
        for _ in range(100):
            if world.pod.renew() != b"ok":
                break
            renewals += 1
            await asyncio.sleep(0.2)  # the pace of renewals
        assert 0.2 * renewals > CONFIG.pod_lease_s / 2
        assert world.pod.record().life is Life.GONE
        watching.cancel()

    run(story)


def test_new_uids_go_to_pods_that_serve(run: Run) -> None:
    async def story(world: World) -> None:
        world.pod.renew()
        await world.router.membership.refresh_all()
        table = world.router.membership.table
        assert [pod.pod for pod in table.available(SERVICE)] == [0], "there is no other"
        other = WHO._replace(pod=1, process="process-2")
        world.store.one(world.pod.calls.claim(other, READY))
        await world.router.membership.refresh_all()
        assert [pod.pod for pod in table.available(SERVICE)] == [1]

    run(story)


# The seal.


def test_a_failover_that_lost_nothing_is_sealed_anew(run: Run) -> None:
    async def story(world: World) -> None:
        before = world.store.one(read_seal(world.keys))
        assert before.decode() == await world.router.recovery.comparison.servers()
        lose_the_seal(world)
        await world.router.recovery.recover()
        assert world.store.one(read_seal(world.keys)) == before
        later = await world.another_router()
        assert later.recovery.credible.is_proven

    run(story)


def test_a_server_that_was_a_replica_meanwhile_is_another(run: Run) -> None:
    async def story(world: World) -> None:
        before = await world.router.recovery.comparison.servers()
        with EmbeddedServer("redis") as primary:
            client = world.store._client
            password = primary.password
            client.config_set("masterauth", password)
            client.replicaof("127.0.0.1", primary.port)
            for _ in range(200):
                if client.info("replication").get("master_link_status") == "up":
                    break
                await asyncio.sleep(0.05)  # polls
            client.replicaof("no", "one")
        client.config_set("masterauth", "")
        after = await world.router.recovery.comparison.servers()
        assert after.split(":")[0] == before.split(":")[0]
        assert after != before

    run(story)
