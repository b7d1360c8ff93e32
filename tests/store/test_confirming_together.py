"""First calls that come at once are confirmed at their pod by one read, each with its own fate."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
from helpers import eventually, soon, unique_name
from reader import CONFIG, Process, S

from ray_route.clock import now
from ray_route.errors import DamagedKeyError, FencedError
from ray_route.model import Link
from ray_route.pod import closing
from ray_route.pod.gate import Gate
from ray_route.pod.holdings import Holdings
from ray_route.pod.hooks import Hooks
from ray_route.pod.incoming import take_in
from ray_route.pod.next_work import Kind, NextWork, Work
from ray_route.pod.pod_lease import PodLease
from ray_route.pod.release import Releases
from ray_route.pod.states import State
from ray_route.runtime.namespace import Namespace
from ray_route.runtime.waiting import Operation
from ray_route.store.embedded import EmbeddedServer
from ray_route.store.keys import Keys
from ray_route.store.links import Writer
from ray_route.store.scripts import plain_call
from ray_route.store.url import parse_url

MINE, ANOTHERS = "0:7", "1:8"


class ThisNamespace(Namespace):
    """Reads of a process that needs no Ray; reads that were made one by one are counted."""

    def __init__(self, process: Process) -> None:
        self.name = process.keys.namespace
        self.keys, self.url, self.reads = process.keys, process.url, process.reads
        self.belief = process.belief
        self.alone: list[str] = []

    def check_here(self) -> None:
        pass

    def read(self, shard: int, names: Any) -> Operation[list[Link | None]]:
        self.alone += [uid for _, uid in names]
        return super().read(shard, names)

    def ask(self, method: str, *_: Any, **__: Any) -> Operation[Any]:
        yield from ()
        return method


@dataclass
class Pod:
    """A pod's gate over a real server; its hook says what a test wants."""

    process: Process
    made: list[str] = field(default_factory=list)
    hook: Any = None

    def __post_init__(self) -> None:
        self.namespace = ThisNamespace(self.process)
        held = Holdings(0, PodLease(7, 600.0, now()), 600.0)
        self.gate = Gate(self.namespace, S, held, Hooks(self.on_acquire))
        self.epochs: dict[str, int] = {}

    def on_acquire(self, uid: str) -> None:
        if self.hook is not None:
            self.hook(uid)
        self.made.append(uid)

    def link(self, uid: str, owner: str = MINE) -> str:
        self.epochs[uid] = self.process.link(uid, owner)
        return uid

    async def enter(self, uid: str) -> None:
        await asyncio.wait_for(self.gate.enter_async(uid, self.epochs[uid], 7), 60)

    def enter_all(self, uids: list[str]) -> list[Any]:
        async def all_at_once() -> list[Any]:
            return await asyncio.gather(*map(self.enter, uids), return_exceptions=True)

        return asyncio.run(all_at_once())


@pytest.fixture
def pod(server: EmbeddedServer) -> Iterator[Pod]:
    process = Process(parse_url(server.url), Keys(unique_name(), CONFIG.shards))
    process.believe()
    yield Pod(process)
    process.close()


def counted(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the links of each read."""
    reads, read = [], pod.process.reads.read

    def noted(parts: Any) -> Any:
        reads.append(sum(len(part.names) for part in parts))
        return read(parts)

    monkeypatch.setattr(pod.process.reads, "read", noted)
    return reads


def test_many_at_once_are_one_read_and_one_object_each(
    pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    uids = [pod.link(f"u{number}") for number in range(200)]
    reads = counted(pod, monkeypatch)
    assert pod.enter_all(uids + uids) == [None] * 400
    assert reads == [200]
    assert sorted(pod.made) == sorted(uids)
    assert all(pod.gate.held.entries[uid].running == 2 for uid in uids)


def test_more_than_travel_together_all_come_in(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_route.pod.confirming.TOGETHER", 7)
    uids = [pod.link(f"u{number}") for number in range(50)]
    assert pod.enter_all(uids) == [None] * 50
    assert sorted(pod.made) == sorted(uids)
    assert not pod.namespace.alone


def test_each_has_its_own_fate(pod: Pod) -> None:
    """One whose link is another's, damaged or gone is refused; all others are none the worse."""
    good = [pod.link(f"u{number}") for number in range(20)]
    moved, gone, damaged = pod.link("moved"), pod.link("gone"), pod.link("damaged")
    pod.process.link(moved, ANOTHERS)
    shard_of, link_of = pod.process.keys.shard, pod.process.keys.link
    pod.process.store.one(plain_call("DEL", link_of(shard_of(gone), S, gone)))
    pod.process.store.one(plain_call("SET", link_of(shard_of(damaged), S, damaged), "nonsense"))
    uids = [*good, moved, gone, damaged]
    outcomes = dict(zip(uids, pod.enter_all(uids), strict=True))
    assert [outcomes[uid] for uid in good] == [None] * 20
    assert isinstance(outcomes[moved], FencedError)
    assert isinstance(outcomes[gone], FencedError)
    assert isinstance(outcomes[damaged], DamagedKeyError)
    assert sorted(pod.made) == sorted(good)
    assert sorted(pod.namespace.alone) == sorted(["moved", "gone", "gone", "damaged"])


def test_an_object_that_fails_or_takes_long_is_nobody_elses_concern(pod: Pod) -> None:
    free = threading.Event()

    def hook(uid: str) -> None:
        if uid == "fails":
            raise ValueError(uid)
        if uid == "slow":
            assert free.wait(60)

    pod.hook = hook
    for uid in ("fails", "slow", *(f"u{number}" for number in range(20))):
        pod.link(uid)

    async def story() -> None:
        slow = asyncio.ensure_future(pod.enter("slow"))
        others = [pod.enter(f"u{number}") for number in range(20)]
        fails, *rest = await asyncio.gather(pod.enter("fails"), *others, return_exceptions=True)
        assert isinstance(fails, ValueError)
        assert rest == [None] * 20
        assert not slow.done()
        free.set()
        await slow

    asyncio.run(story())
    pod.hook = None
    assert pod.enter_all(["fails"]) == [None], "the next one tries again"


def given_up(pod: Pod) -> list[Work]:
    """Return what must be confirmed first, of a pod that leaves after its leases have ended."""
    held = pod.gate.held
    with held.lock:
        for entry in held.entries.values():
            entry.until = 0.0
    closing.leave_all(held)
    return NextWork(held).to_confirm()


def test_those_that_are_to_be_given_up_are_confirmed_by_one_read(
    pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    uids = [pod.link(f"u{number}") for number in range(50)]
    moved = pod.link("moved")
    assert pod.enter_all([*uids, moved]) == [None] * 51
    for uid in (*uids, moved):
        pod.gate.leave(uid)
    pod.process.link(moved, ANOTHERS)
    work, reads = given_up(pod), counted(pod, monkeypatch)
    assert len(work) == 51
    to_do = NextWork(pod.gate.held)
    with ThreadPoolExecutor(1) as threads:
        pod.gate.confirm_all({it.uid: it.epoch for it in work}, threads.submit)
        taken: list[Work] = []

        def all_taken() -> bool:
            taken.extend(to_do.take(100))
            return len(taken) == 51

        eventually(all_taken, "all are answered")
    assert reads[0] == 51
    assert set(pod.namespace.alone) == {"moved"}, "only what a read together does not settle well"
    kinds = {it.uid: it.kind for it in taken}
    assert kinds == {**dict.fromkeys(uids, Kind.RELEASE), "moved": Kind.LOSE}


def test_those_that_have_arrived_are_acquired_by_one_read(
    pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hook(uid: str) -> None:
        if uid == "fails":
            raise ValueError(uid)

    pod.hook = hook
    uids = ["fails", *(f"u{number}" for number in range(50))]
    held, releases = pod.gate.held, Releases(pod.gate.held)
    with held.lock:
        for uid in uids:
            pod.link(uid)
            assert take_in(held, uid, 1, State("its state", arrived=True))
    releases.settled({uid: (1, pod.epochs[uid]) for uid in uids})
    reads = counted(pod, monkeypatch)
    told: dict[str, BaseException | None] = {}
    with ThreadPoolExecutor(1) as threads:
        work = {it.uid: it.epoch for it in NextWork(held).to_acquire()}
        pod.gate.acquire_all(work, told.__setitem__, threads.submit)
        eventually(lambda: len(told) == 51, "all are told of")
    assert reads == [51]
    assert not pod.namespace.alone
    assert isinstance(told.pop("fails"), ValueError)
    assert set(told.values()) == {None}
    assert sorted(pod.made) == sorted(told)


def test_where_no_server_is_believed_each_has_one_vouched_for(pod: Pod) -> None:
    uids = [pod.link(f"u{number}") for number in range(20)]
    pod.process.belief.end()
    pod.namespace.believe = lambda _: _believed(pod)  # type: ignore[method-assign]
    assert pod.enter_all(uids) == [None] * 20
    assert sorted(pod.made) == sorted(uids)


def _believed(pod: Pod) -> Operation[None]:
    yield from ()
    pod.process.believe()


def test_whoever_gives_up_leaves_what_is_shared_to_others(pod: Pod) -> None:
    free = threading.Event()
    pod.hook = lambda _: free.wait(60)
    pod.link("u")

    async def story() -> None:
        first, second = (asyncio.ensure_future(pod.enter("u")) for _ in range(2))
        await soon(lambda: "u" in pod.gate.held.entries, "it is being acquired")
        first.cancel()
        await asyncio.wait({first})
        free.set()
        await second
        assert pod.gate.held.entries["u"].running == 1

    asyncio.run(story())
    assert pod.made == ["u"]


@dataclass
class Reporting(Pod):
    """One whose router answers reports of use, as a router does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.namespace.ask = self.ask  # type: ignore[method-assign]

    def run(self, verb: Any, uid: str, *args: Any, **options: Any) -> None:
        shard, routers = self.process.keys.shard(uid), self.process.routers
        call = verb(Writer(1, routers[shard]), shard, S, [uid], *args, **options)
        routers[shard] = self.process.calls.parse(self.process.store.one(call)).counter

    def ask(self, method: str, _: str, used: dict[str, int], *, ending: bool) -> Operation[Any]:
        yield from ()
        assert method == "report_use"
        for uid, epoch in used.items():
            self.run(self.process.calls.refresh, uid, [epoch], ending=ending)


@pytest.mark.parametrize("is_to_go", [True, False])
def test_a_link_in_use_that_has_no_lease_left_is_lengthened_though_it_is_to_go(
    pod: Pod, is_to_go: bool
) -> None:
    """Its pod knows of that, and gives it up when it is due; till then it serves."""
    reporting = Reporting(pod.process)
    reporting.link("u")
    if is_to_go:
        Releases(reporting.gate.held).end_at("u", reporting.epochs["u"], now() + 600)
        meant = [f"{MINE}:{reporting.epochs['u']}"]
        reporting.run(pod.process.calls.remove_if, "u", meant, after_s=600)
    key = pod.process.keys.link(pod.process.keys.shard("u"), S, "u")
    left_ms = int(CONFIG.margin_s * 1000) - 1_000
    assert pod.process.store.one(plain_call("PEXPIRE", key, left_ms))
    asyncio.run(reporting.enter("u"))
    assert reporting.made == ["u"]
