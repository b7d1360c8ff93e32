"""States that move between pods, while pods and routers die and Redis loses everything.

The router's insides and the pods' are the real ones, over a real server; what is played is Ray: the
processes, their messages, and the hooks. Each uid counts its calls. Its count must go on where it
was, unless the pod died that had it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from helpers import soon

from ray_route.clock import now
from ray_route.config import RouteConfig
from ray_route.errors import FencedError, RouteError, StoreUnavailableError
from ray_route.model import Link, PodRecord, RoutingState
from ray_route.pod.admission import Admission, Told, Verdict
from ray_route.pod.entries import Phase
from ray_route.pod.exports import Exports, Unsent
from ray_route.pod.holdings import Holdings
from ray_route.pod.incoming import take_in
from ray_route.pod.kinds import set_kinds
from ray_route.pod.memory import epochs_held, memory
from ray_route.pod.next_work import Kind, NextWork
from ray_route.pod.pod_lease import PodLease
from ray_route.pod.release import Releases
from ray_route.pod.release_lines import Why
from ray_route.pod.states import arrival
from ray_route.pod.unsettled import unsettled
from ray_route.protocol.commands import (
    Cancel,
    EndAt,
    Kinds,
    Memory,
    Recall,
    Release,
    Settled,
    Take,
    Taken,
)
from ray_route.router.directory import Directory
from ray_route.router.link_table import LinkTable
from ray_route.router.mailbox import Mailboxes
from ray_route.router.membership import Membership
from ray_route.router.moves import Moves
from ray_route.router.placing_gate import PlacingGate
from ray_route.router.recovery import Recovery
from ray_route.router.shards import Shards
from ray_route.store.connect import AsyncStore, Store
from ray_route.store.keys import Keys
from ray_route.store.links import LinkCalls
from ray_route.store.pods import Identity, PodCalls
from ray_route.store.scripts import Call

pytestmark = pytest.mark.slow

SERVICE = "chat"
CONFIG = RouteConfig(shards=2, ttl_s=300.0)
PODS, UIDS = 3, ["a", "b", "c", "d"]
ALWAYS_S = 1e6
PATIENCE_S = 5.0
REPLACED = "its process has ended"


def as_it_is(_: str, state: Any) -> Any:
    return state


class Router:
    """A router's insides, from its claim on; `end` kills it."""

    def __init__(self, store: Store, keys: Keys, diary: list[tuple[str, str]]) -> None:
        self.diary = diary
        self.connection = AsyncStore(store.url)
        self.shards = Shards(self.connection, keys, LinkCalls(keys, CONFIG))
        self.mailboxes = Mailboxes()
        self.membership = Membership(self.connection, keys, self._changed, self.shards)
        self.links = LinkTable(CONFIG, keys, self.membership, self.shards)
        self.links.decisions.note = self._decided  # type: ignore[method-assign]
        self.directory = Directory(CONFIG, self.links, self.connection, self.membership)
        self.moves = Moves(
            self.membership, self.links, self.directory, self.mailboxes, self._stale, 60.0
        )
        parts = (CONFIG, self.connection, self.membership, self.shards, self.links, self.mailboxes)
        self.recovery = Recovery(*parts, lambda: None)
        self.gate = PlacingGate(keys.namespace, CONFIG, self.membership)
        self.gate.readmit = self.recovery.readmit
        self.shards.may_place, self.shards.recover = self.gate.passed, self.recovery.recover
        self.shards.look = self.recovery.compared
        self.serves = False

    def _decided(
        self, _: str, links: Mapping[str, Link], decision: str, _from: object = None
    ) -> None:
        self.diary += [
            (uid, f"{decision} {it.pod}:{it.incarnation}, epoch {it.epoch} of {it.replaced}")
            for uid, it in links.items()
        ]

    def _changed(self, service: str, record: PodRecord) -> None:
        alive = record.life.value == "alive"
        self.mailboxes.end(service, record.pod, record.incarnation - alive)

    def _stale(self, service: str, epochs: dict[str, int]) -> None:
        for uid, epoch in epochs.items():
            self.links.cache.drop(service, uid, epoch)

    async def begin(self) -> None:
        await self.recovery.look_for_proof()
        await self.shards.claim()
        await self.membership.refresh_all()
        await self.recovery.begin(pods_expected=True)
        await self.gate.passed()
        self.serves = True


@dataclass
class Pod:
    """One life of a pod: the real rooms of its process, and hooks that wait as they like."""

    world: World
    index: int
    incarnation: int
    dead: bool = False
    counts: dict[str, int] = field(default_factory=dict)
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)

    def begin(self) -> None:
        lease = PodLease(self.incarnation, ALWAYS_S, self.world.now())
        self.held = Holdings(self.index, lease, ALWAYS_S)
        self.admission = Admission(self.held)
        self.releases = Releases(self.held)
        self.to_do = NextWork(self.held)
        self.exports = Exports(self.held, drops_unpicklable=False)
        for work in (self.fetch(), self.work()):
            self.spawn(work)

    def spawn(self, work: Any) -> None:
        self.tasks.append(asyncio.create_task(work))

    def end(self) -> None:
        self.dead = True
        for task in self.tasks:
            task.cancel()

    @property
    def address(self) -> tuple[str, int, int]:
        return SERVICE, self.index, self.incarnation

    # Commands.

    async def fetch(self) -> None:
        heard, had = 0, []
        while True:
            router = self.world.router
            commands = await router.mailboxes.fetch(self.address, 0.05, had)
            if self.world.loses():
                continue
            had = [number for number, _ in commands]
            for number, command in commands:
                if router.serves and router.shards.incarnation > heard:
                    heard = router.shards.incarnation
                    self.releases.follow(heard)
                await self.world.lag()
                self.dispatch(router, number, command)

    def dispatch(self, router: Router, number: int, command: Any) -> None:
        if isinstance(command, Release):
            for uid, epoch in command.uids.items():
                replaced = command.replaced.get(uid)
                self.note(uid, f"is to release {epoch} of {replaced}, {self.held.entries.get(uid)}")
            how = {"closes": command.closes, "router": router.shards.incarnation}
            self.releases.release(
                number, command.uids, command.patience_s, replaced=command.replaced, **how
            )
        elif isinstance(command, Take):
            self.spawn(self.take(router, number, command))
        elif isinstance(command, Cancel):
            self.releases.cancel(command.release)
        elif isinstance(command, Settled):
            for uid, it in command.uids.items():
                self.note(uid, f"is told {it}")
            self.releases.settled(command.uids)
            router.mailboxes.answer(self.address, number, None)
        elif isinstance(command, EndAt):
            at = self.world.now() + command.after_s
            end_at = partial(self.releases.end_at, at=at, temporary=command.temporary)
            uids, replaced = command.uids, command.replaced
            ending = [u for u in uids if not end_at(u, uids[u], replaced=replaced[u])]
            router.mailboxes.answer(self.address, number, ending)
        elif isinstance(command, Kinds):
            set_kinds(self.held, command.uids)
        elif isinstance(command, Recall):
            shards, shard_of = command.shards, router.links.keys.shard
            self.held.recalls.told(shards, shard_of, self.held.clock())
            lapsed, held, ago_s = memory(self.held)
            held = {uid: it for uid, it in held.items() if shard_of(uid) in shards}
            ago_s = {uid: it for uid, it in ago_s.items() if shard_of(uid) in shards}
            remembered = Memory([0] * CONFIG.shards, held, lapsed, 0, ago_s)
            router.mailboxes.answer(self.address, number, remembered)

    async def take(self, router: Router, number: int, command: Take) -> None:
        owner = self.world.by_actor.get(command.actor)
        await self.world.lag()
        if owner is None or owner.dead:
            sent = dict.fromkeys(command.uids, Unsent(REPLACED))
        else:
            sent = pickle.loads(owner.exports.some(command.uids))
        await self.world.lag()
        told = []
        for uid, found in sent.items():
            problem = found.reason if isinstance(found, Unsent) else ""
            if isinstance(found, bytes):
                state = arrival(uid, found, as_it_is)
                with self.held.lock:
                    if not take_in(self.held, uid, command.uids[uid], state):
                        problem = "not now"
                self.note(uid, f"took in state of {command.uids[uid]}: {problem or 'ok'}")
            told.append(Taken(number, uid, problem))
        await self.world.lag()
        router.mailboxes.take_outcomes(self.address, told)

    # What a releaser does.

    async def work(self) -> None:
        while True:
            self.releases.tick()
            for work in self.to_do.take(10):
                self.spawn(self.run_hook(work))
            for work in self.to_do.to_acquire():
                self.spawn(self.confirm(work.uid, work.epoch))
            outcomes = self.held.outcomes.take()
            for it in outcomes:
                self.note(it.uid, f"tells {it}")
            if outcomes and not self.world.loses():
                self.world.router.mailboxes.take_outcomes(self.address, outcomes)
            given = unsettled(self.held, self.world.now() - 0.05)
            if given and self.world.router.serves:
                asked_at = self.held.clock()
                with contextlib.suppress(RouteError):
                    settled = await self.world.router.moves.settle(self.address, given)
                    await self.world.lag()
                    if not self.world.loses():
                        for uid, it in settled.items():
                            self.note(uid, f"hears {it}")
                        self.releases.settled(settled, given, asked_at)
            await asyncio.sleep(0.005)  # the pace of an agent

    async def run_hook(self, work: Any) -> None:
        await self.world.lag()
        if self.to_do.may_begin(work):
            await self.world.lag()
            count = self.counts.pop(work.uid)
            state = {"count": count} if work.kind is Kind.RELEASE else None
            self.note(work.uid, f"{work.kind.value} of {work.epoch}: {count}")
            self.to_do.ended(work.uid, work.epoch, state)

    async def confirm(self, uid: str, epoch: int) -> None:
        """Read a link, and run `on_acquire`, as a gate does."""
        term, asked_at = self.held.term, self.world.now()
        try:
            link = await self.world.router.links.read(SERVICE, uid)
        except RouteError:
            self.admission.unread(uid)
            raise
        await self.world.lag()
        mine = (self.index, self.incarnation, epoch)
        if link is None or (link.pod, link.incarnation, link.epoch) != mine:
            self.note(uid, f"is denied {epoch}: {link}")
            self.admission.denied(uid, epoch, term)
            raise FencedError(reason="not confirmed", may_have_run=False)
        if self.admission.confirmed(uid, epoch, link, asked_at, term) is Told.ACQUIRE:
            await self.acquire(uid, epoch)

    async def acquire(self, uid: str, epoch: int) -> None:
        state = self.admission.state_of(uid)
        count = state.take(uid, as_it_is)["count"] if state else 0
        await self.world.lag()
        if self.dead:
            raise FencedError(reason="it is gone", may_have_run=False)
        if self.world.random.random() < self.world.hooks_fail:
            self.admission.not_acquired(uid, epoch)
            raise FencedError(reason="on_acquire failed", may_have_run=False)
        assert uid not in self.counts, "acquired beside an earlier epoch"
        self.world.seen["with state" if state else "without"] += 1
        self.counts[uid] = count
        self.note(uid, f"acquired under {epoch}, {'with' if state else 'without'} state: {count}")
        self.admission.acquired(uid, epoch)

    async def add(self, uid: str, link: Link) -> int:
        for _ in range(200):
            if self.dead:
                break
            verdict, _ = self.admission.enter(uid, link.epoch, link.incarnation)
            if verdict is Verdict.ADMIT:
                self.counts[uid] += 1
                count = self.counts[uid]
                self.admission.leave(uid)
                return count
            if verdict is Verdict.REFUSE:
                break
            if verdict is Verdict.CONFIRM:
                await self.confirm(uid, link.epoch)
            await asyncio.sleep(0.002)  # the pace of a caller
        raise FencedError(reason="refused", may_have_run=False)

    def note(self, uid: str, what: str) -> None:
        self.world.diary.append((uid, f"{self.index}:{self.incarnation} {what}"))

    def holds(self, uid: str) -> bool:
        """True if a uid's state is lost should this process end.

        It may also be one that has come, though its link names another pod: a router that has not
        heard of the end may switch the link after it, as if it had been before.
        """
        entry = self.held.entries.get(uid)
        is_here = self.held.nobodys.has_state(uid)
        return entry is not None and (entry.phase is not Phase.GIVEN or is_here)


class World:
    """Three pods, one router at a time, one server; `seen` counts what has happened."""

    def __init__(self, store: Store, namespace: str, seed: int) -> None:
        self.store = store
        self.keys = Keys(namespace, CONFIG.shards)
        self.random = random.Random(seed)
        self.seen: Counter[str] = Counter()
        self.by_actor: dict[str, Pod] = {}
        self.pods: dict[int, Pod] = {}
        self.counts: dict[str, int] = {}
        self.may_be_lost: set[str] = set()
        self.hooks_fail = 0.1
        self.routers: list[Router] = []
        self.diary: list[tuple[str, str]] = []

    @staticmethod
    def now() -> float:
        return now()

    @property
    def router(self) -> Router:
        return self.routers[-1]

    async def lag(self) -> None:
        """Let others go first, now and then for long."""
        chance = self.random.random()
        await asyncio.sleep(0 if chance < 0.6 else 0.03 * chance)  # a message on its way

    def loses(self) -> bool:
        """True if a message is lost on its way."""
        return self.random.random() < 0.05

    # What happens.

    async def begin(self) -> None:
        self.routers.append(Router(self.store, self.keys, self.diary))
        await self.router.begin()
        for index in range(PODS):
            self.start_pod(index)
        await self.router.membership.refresh_all()

    def end(self) -> None:
        for pod in self.pods.values():
            pod.end()

    def start_pod(self, index: int) -> None:
        calls = PodCalls(self.keys)
        actor = f"actor-{index}-{self.random.getrandbits(40)}"
        who = Identity(SERVICE, index, actor, "node", actor)
        status, incarnation, *_ = self.store.one(calls.claim(who, RoutingState.READY))
        assert status == b"ok", status
        pod = Pod(self, index, int(incarnation))
        self.by_actor[actor] = self.pods[index] = pod
        pod.begin()

    async def call(self) -> None:
        """Count one call of a uid, which must be the next unless its pod has died."""
        uid = self.random.choice(UIDS)
        was, lost = self.counts.get(uid, 0), uid in self.may_be_lost
        try:
            answer = (await self.router.directory.compute(SERVICE, {uid: 1}, None))[uid]
            if isinstance(answer, RouteError):
                raise answer
            pod = self.pods[answer.pod]
            if pod.incarnation != answer.incarnation:
                raise FencedError(reason="it is gone", may_have_run=False)
            count = await pod.add(uid, answer)
        except RouteError:
            self.seen["refused"] += 1
            self.router.links.cache.drop(SERVICE, uid)
            return
        self.seen["calls"] += 1
        lost = lost or uid in self.may_be_lost
        assert count == self.counts.get(uid, 0) + 1 or (lost and count <= was + 1), (
            f"{uid} counts {count} after {self.counts.get(uid, 0)}: "
            + "; ".join(what for of, what in self.diary if of in (uid, ""))[-3000:]
        )
        self.counts[uid] = count
        self.may_be_lost.discard(uid)

    async def move(self) -> None:
        uid, pod = self.random.choice(UIDS), self.random.randrange(PODS)
        moves = self.router.moves
        with contextlib.suppress(RouteError):
            await moves.set(
                SERVICE, uid, pod, persistent=None, timeout_s=self.random.choice([0.1, 2])
            )
            self.seen["moved"] += 1

    async def hand_over(self) -> None:
        """Move all uids of a pod, as a drain does."""
        pod = self.pods[self.random.randrange(PODS)]
        held = epochs_held(pod.held)
        links = {
            uid: Link(pod.index, pod.incarnation, epoch, False, 0) for uid, epoch in held.items()
        }
        if links:
            moving = self.router.moves.hand_over(
                SERVICE, links, 2.0, closes=True, note=lambda _: None
            )
            with contextlib.suppress(Exception):
                await asyncio.wait_for(moving, self.random.choice([0.05, 2]))
                self.seen["handed over"] += 1

    async def kill_pod(self) -> None:
        pod = self.pods[self.random.randrange(PODS)]
        record = self.router.membership.table.get(SERVICE, pod.index)
        if record is None or record.incarnation != pod.incarnation or not self.router.serves:
            return
        self.may_be_lost |= {uid for uid in UIDS if pod.holds(uid)} | await self.named(pod)
        pod.end()
        with contextlib.suppress(RouteError):
            await self.router.membership.declare_gone(SERVICE, record, silent=False)
        self.may_be_lost |= await self.named(pod)  # what has come while it died
        self.start_pod(pod.index)
        with contextlib.suppress(RouteError):
            await self.router.membership.refresh(SERVICE)
        self.seen["pods died"] += 1
        self.diary.append(("", f"pod {pod.index}:{pod.incarnation} died, {self.may_be_lost}"))

    async def named(self, pod: Pod) -> set[str]:
        """Return the uids whose link names a pod, or cannot be read: it may."""
        outcomes = await self.router.links.read_many(SERVICE, UIDS)
        unread = {uid for uid, it in outcomes.items() if isinstance(it, RouteError)}
        links = {uid: it.link for uid, it in outcomes.items() if not isinstance(it, RouteError)}
        return unread | {uid for uid, link in links.items() if link and link.pod == pod.index}

    async def kill_router(self) -> None:
        if not self.router.serves:
            return
        old, young = self.router, Router(self.store, self.keys, self.diary)
        old.serves = False
        old.mailboxes.end_all()
        self.routers.append(young)
        await young.begin()
        self.seen["routers died"] += 1
        self.diary.append(("", "router died"))

    async def lose_everything(self) -> None:
        """Empty the server; what is there afterwards comes from the router and the pods."""
        if not self.router.serves:
            return
        # What nobody but Redis knows is not in use.
        self.diary.append(("", "all is lost"))
        self.store.one(Call("", ("FLUSHALL",)))
        await self.router.recovery.recover()
        self.seen["losses"] += 1
        self.diary.append(("", "and written back"))


STEPS: dict[str, float] = {
    "call": 60,
    "move": 14,
    "hand_over": 5,
    "kill_pod": 1.5,
    "kill_router": 1.5,
    "lose_everything": 1,
}


async def history(world: World, steps: int) -> None:
    """Have things happen side by side; the first error ends it."""
    await world.begin()
    running: set[asyncio.Task[None]] = set()
    exclusive = asyncio.Lock()  # of two of these at a time nobody promises anything

    async def alone(work: Callable[[], Awaitable[None]]) -> None:
        async with exclusive:
            await work()

    names, weights = list(STEPS), list(STEPS.values())
    for name in world.random.choices(names, weights, k=steps):
        work = getattr(world, name)
        is_fault = name in ("kill_pod", "kill_router", "lose_everything")
        running.add(asyncio.create_task(alone(work) if is_fault else work()))
        await asyncio.sleep(0.004)  # the pace of the story
        while len(running) > 12 or any(task.done() for task in running):
            done, running = await asyncio.wait(running, return_when="FIRST_COMPLETED")
            for task in done:
                task.result()
            if not running:
                break
    for task in running:
        await task
    for _ in range(200):
        await world.call()
        await asyncio.sleep(0.002)  # the pace of a caller
    world.end()
    for router in world.routers:
        await router.connection.close()


def run(store: Store, namespace: str, seed: int, steps: int) -> Counter[str]:
    world = World(store, namespace, seed)
    try:
        asyncio.run(asyncio.wait_for(history(world, steps), 110))
    except BaseException:
        print(f"STATES_SEED={seed}: {dict(world.seen)}")
        raise
    return world.seen


@pytest.mark.parametrize("server", ["valkey"], indirect=True)
def test_no_state_is_lost_but_with_the_pod_that_had_it(store: Store, namespace: str) -> None:
    seed = int(os.environ.get("STATES_SEED", random.getrandbits(32)))
    seen = run(store, namespace, seed, steps=int(os.environ.get("STATES_STEPS", "300")))
    print(f"seed {seed}: {dict(seen)}")
    assert seen["calls"], "this proves little"


@pytest.mark.parametrize("server", ["valkey"], indirect=True)
@pytest.mark.parametrize("after_s", [0, ALWAYS_S])
@pytest.mark.parametrize("of", ["whoever holds it", "its old pod"])
def test_a_uid_that_is_moved_as_it_is_removed_is_removed_where_it_has_gone(
    store: Store, namespace: str, after_s: float, of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        await world.begin()
        router = world.router
        moves, links, membership = router.moves, router.links, router.membership
        link = await placed(world)
        remove, other = links.remove, (link.pod + 1) % PODS

        async def late(service: str, uid: str, held: Link, after_s: float) -> bool:
            monkeypatch.undo()
            target = await membership.target(service, other)
            await links.hand_over(service, {uid: held}, target)  # as a drain does
            return await remove(service, uid, held, after_s)

        monkeypatch.setattr(links, "remove", late)
        pod = None if of == "whoever holds it" else link.pod
        is_removed = await moves.remove(SERVICE, "a", pod, after_s=after_s, timeout_s=20.0)
        left = await links.read(SERVICE, "a")
        told = [what for of, what in world.diary if of == "a" and what.startswith("removed")]
        assert len(told) == is_removed, "whoever asks why it is there is told so"
        if pod is not None:
            assert not is_removed
            assert left is not None
            assert left.pod == other
        else:
            assert is_removed
            assert (left is None) == (after_s == 0)
        world.end()
        await world.router.connection.close()

    asyncio.run(story(World(store, namespace, 1)))


@pytest.mark.parametrize("server", ["valkey"], indirect=True)
def test_a_uid_that_is_given_back_as_it_is_removed_keeps_its_state_if_it_stays(
    store: Store, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        await world.begin()
        moves, links = world.router.moves, world.router.links
        link = await placed(world)
        remove = links.remove

        async def fails(*_: object) -> None:
            monkeypatch.undo()
            raise StoreUnavailableError(address="its address", reason="it is away")

        async def late(service: str, uid: str, held: Link, after_s: float) -> bool:
            await links.regrant(service, {uid: held.epoch})  # as a drain does that has failed
            monkeypatch.setattr(links, "read", fails)
            return await remove(service, uid, held, after_s)

        monkeypatch.setattr(links, "remove", late)
        with pytest.raises(StoreUnavailableError):
            await moves.remove(SERVICE, "a", None, after_s=0, timeout_s=20.0)
        back = await links.read(SERVICE, "a")
        assert back is not None
        assert back.replaced == link.epoch
        pod = world.pods[link.pod]
        await soon(lambda: memory(pod.held)[1].get("a") == (back.epoch, False), "it is back")
        assert await pod.add("a", back) == 2
        world.end()
        await world.router.connection.close()

    asyncio.run(story(World(store, namespace, 1)))


async def placed(world: World) -> Link:
    """Place "a", and call it once; from now on no hook fails by chance."""
    world.hooks_fail = 0.0
    link = (await world.router.directory.compute(SERVICE, {"a": 1}, None))["a"]
    assert isinstance(link, Link)
    assert await world.pods[link.pod].add("a", link) == 1
    return link


@pytest.mark.parametrize("server", ["valkey"], indirect=True)
@pytest.mark.parametrize("verb", ["set", "try_set"])
def test_a_pod_hears_of_which_kind_a_link_is_that_it_keeps(
    store: Store, namespace: str, verb: str
) -> None:
    async def story(world: World) -> None:
        await world.begin()
        link = await placed(world)
        pod = world.pods[link.pod]
        change = getattr(world.router.moves, verb)
        how = {"timeout_s": ALWAYS_S, **({"steal": False} if verb == "try_set" else {})}
        for persistent in (True, False):
            await change(SERVICE, "a", link.pod, persistent=persistent, **how)
            known = (link.epoch, persistent)
            await soon(lambda known=known: memory(pod.held)[1]["a"] == known, "its pod hears it")
        world.end()
        await world.router.connection.close()

    asyncio.run(story(World(store, namespace, 1)))


@pytest.mark.parametrize("server", ["valkey"], indirect=True)
@pytest.mark.parametrize("persistent", [True, False])
def test_a_pod_that_hears_no_more_takes_no_link_for_persistent_that_is_not(
    store: Store, namespace: str, persistent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        await world.begin()
        link = await placed(world)
        pod, moves, boxes = world.pods[link.pod], world.router.moves, world.router.mailboxes
        how = {"timeout_s": ALWAYS_S}
        await moves.set(SERVICE, "a", link.pod, persistent=not persistent, **how)
        told = (link.epoch, not persistent)
        await soon(lambda: memory(pod.held)[1]["a"] == told, "its pod hears it")
        post = boxes.post

        def dies(address: Any, command: Any) -> int:
            """Have the router die after it has set the link: it tells nobody."""
            return 0 if isinstance(command, Kinds) else post(address, command)

        monkeypatch.setattr(boxes, "post", dies)
        assert (await moves.set(SERVICE, "a", link.pod, persistent=persistent, **how)) == (
            Link(link.pod, link.incarnation, link.epoch, persistent, 0)
        )
        assert memory(pod.held)[1]["a"] == (link.epoch, False)
        world.end()
        await world.router.connection.close()

    asyncio.run(story(World(store, namespace, 1)))


@pytest.mark.parametrize("server", ["valkey"], indirect=True)
def test_one_that_is_given_up_for_want_of_use_as_its_link_is_set_is_given_back(
    store: Store, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pod, which has said that it keeps it, forgets that here: as one of another version."""

    async def story(world: World) -> None:
        await world.begin()
        link = await placed(world)
        pod, moves, links = world.pods[link.pod], world.router.moves, world.router.links
        write = links.set

        async def late(*args: Any, **options: Any) -> Link:
            pod.held.idle_s = 0.0
            with pod.held.lock:
                pod.held.ready.add("a", Why.OWN)
                pod.held.ready.read("a", now())
            await soon(lambda: "a" in pod.held.nobodys.removed, "it is given up")
            pod.held.idle_s = ALWAYS_S
            return await write(*args, **options)

        monkeypatch.setattr(links, "set", late)
        set_ = await moves.set(SERVICE, "a", link.pod, persistent=True, timeout_s=ALWAYS_S)
        assert (set_.epoch, set_.persistent) == (link.epoch, True)
        await soon(lambda: "a" not in pod.held.entries, "that is settled")
        back = await links.read(SERVICE, "a")
        assert back is not None
        assert (back.pod, back.persistent, back.replaced) == (link.pod, True, link.epoch)
        assert await pod.add("a", back) == 1, "it was released, as one that is not used"
        world.end()
        await world.router.connection.close()

    asyncio.run(story(World(store, namespace, 1)))
