"""What interrupts a pod's calls, at whatever line, leaves what all its calls share sound.

A signal's handler, and exceptions that a library of the user's raises in a thread, come at any
line, the pod's own among them; a cancelled task, at any await.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from itertools import count
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from helpers import eventually
from interrupting import Interrupter, at_every_line
from test_gate_without_a_router import Namespace

from ray_route.clock import now
from ray_route.model import Link
from ray_route.pod import (
    admission,
    asked_releases,
    bell,
    call_order,
    call_time,
    confirming,
    current_link,
    due,
    entries,
    fenced_calls,
    holdings,
    hooks,
    instances,
    moments,
    pod_lease,
    readers,
    release_lines,
    streams,
    surely_left,
    use_order,
    user_hooks,
    user_threads,
)
from ray_route.pod import gate as gates
from ray_route.pod.agent import PodAgent
from ray_route.pod.call_order import ArrivalOrder, CallOrder
from ray_route.pod.gate import Gate
from ray_route.pod.holdings import Holdings
from ray_route.pod.hooks import Hooks
from ray_route.pod.instances import Instances
from ray_route.pod.moments import Moments
from ray_route.pod.next_work import NextWork
from ray_route.pod.pod_lease import PodLease
from ray_route.pod.release import Releases
from ray_route.pod.turn_calls import TurnCalls
from ray_route.pod.user_hooks import UserHooks
from ray_route.pod.user_threads import UserThreads
from ray_route.protocol.calls import Refused, SendAgain, StreamEnd
from ray_route.runtime import call_context, futures, loop_posts

SERVING = (
    admission,
    call_order,
    confirming,
    current_link,
    due,
    entries,
    gates,
    holdings,
    pod_lease,
    use_order,
)
CALLING = (fenced_calls, streams, surely_left, hooks, user_hooks, call_context)
TURNS = (user_threads, loop_posts, instances, hooks, user_hooks, call_context, current_link)
RELEASING = (asked_releases, bell, call_time, moments, release_lines)
PATIENCE_S = 20.0
LIFE = 7


class Rooms:
    """The user's object, one for all uids."""

    def __init__(self) -> None:
        self.acquired: list[str] = []
        self.meanwhile: Callable[[], None] = lambda: None

    def on_acquire(self, uid: str) -> None:
        self.acquired.append(uid)

    def say(self, text: Any) -> Any:
        self.meanwhile()
        return text

    def items(self) -> Iterator[int]:
        self.meanwhile()
        yield from range(2)


class Pod:
    """What a pod process is made of, but for its store; its links say what a test wants."""

    def __init__(self, *, one_by_one: bool) -> None:
        self.links = Namespace()
        self.held = Holdings(0, PodLease(LIFE, 600.0, now()), 600.0)
        self.releases = Releases(self.held)
        self.work = NextWork(self.held)
        self.rooms = Rooms()
        turn = threading.RLock() if one_by_one else None
        found = UserHooks(lambda: None).find(self.rooms, "on_acquire", on_loop=False)
        self.gate = Gate(self.links, "chat", self.held, Hooks(found, turn=turn))  # type: ignore[arg-type]
        self._ray_route_agent = self.agent()
        self._ray_route_turn = turn or nullcontext()
        self._ray_route_order = ArrivalOrder() if one_by_one else CallOrder()
        self._runs = count(1)
        self._epochs = count(100)
        self.next_epoch()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rooms, name)

    def agent(self) -> Any:
        return SimpleNamespace(gate=self.gate, namespace="ns", service="chat", pod=0, joined=True)

    def next_epoch(self) -> None:
        self.epoch = next(self._epochs)
        self.links.link = Link(0, LIFE, self.epoch, persistent=False, lease_s=100.0)

    def header(self, method: str, run: int, place: int) -> list[Any]:
        return ["u", self.epoch, LIFE, method, run, place]

    def release(self) -> None:
        """Give the uid up, as for a move: it can be, for no call of it runs."""
        number = next(self._runs)
        self.releases.release(number, {"u": self.epoch}, 600.0, closes=False, router=1)
        for work in self.work.take(1):
            assert self.work.may_begin(work)
            self.work.ended(work.uid, work.epoch)
        (told,) = [one for one in self.held.outcomes.take() if one[0] == number]
        assert told.given
        self.next_epoch()


def elsewhere(work: Callable[[], Any]) -> Any:
    """Run something in another thread, as the next call; it must not wait for ever."""
    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(work).result(PATIENCE_S)
    finally:
        pool.shutdown(wait=False)


class Callers:
    """Two calls of one run: the first is interrupted, the second comes behind it."""

    def __init__(self, pod: Pod, way: Callable[[Pod, list[Any]], Any]) -> None:
        self.pod = pod
        self.way = way
        self.runs = count(1)
        self.run = 0

    def first(self) -> None:
        self.run = next(self.runs)
        self.way(self.pod, self.pod.header("say", self.run, 0))

    def check(self) -> None:
        """Find all well: calls behind it, other calls, and the release of the uid."""
        pod, number = self.pod, next(self.runs)
        behind = pod.header("say", self.run, 1)
        assert type(elsewhere(lambda: self.way(pod, behind))) in (str, SendAgain)
        fresh = pod.header("say", number, 0)
        assert elsewhere(lambda: self.way(pod, fresh)) == "hello"
        assert pod.held.running == 0
        assert current_link.current_link() is None
        pod.release()


def test_who_reads_for_a_call_is_hung_by_no_interrupt_of_its_wait() -> None:
    pod = Pod(one_by_one=False)
    pod.links.takes_s = 0.002
    callers = Callers(pod, serving)
    of_python = (concurrent.futures._base, concurrent.futures.thread, threading)
    ours = (confirming, futures)
    assert at_every_line(callers.first, callers.check, *of_python, *ours) > 60


def test_a_stream_that_is_watched_and_interrupted_anywhere_holds_up_nothing_and_is_let_go() -> None:
    pod = Pod(one_by_one=False)
    callers = Callers(pod, watched)

    def check() -> None:
        callers.check()
        eventually(lambda: not readers._watch._readers, "nobody looks at it")

    assert at_every_line(callers.first, check, readers, streams, surely_left) > 30


class WantedUid:
    """A call of a uid that is to be given up, which the pod has found busy meanwhile."""

    def __init__(self, pod: Pod, way: Callable[[Pod, list[Any]], Any]) -> None:
        self.pod = pod
        self.way = way
        self.runs = count(1)
        self.number = 0
        pod.rooms.meanwhile = self.look

    def look(self) -> None:
        """Look as the pod's own threads do, which no interrupt reaches."""
        assert elsewhere(lambda: self.pod.work.take(1)) == []

    def call(self) -> None:
        self.way(self.pod, self.pod.header("say", next(self.runs), 0))

    def want(self) -> None:
        """Have the uid held, and its release asked for."""
        serving(self.pod, self.pod.header("say", 0, 0))
        self.number = next(self.runs)
        uids = {"u": self.pod.epoch}
        self.pod.releases.release(self.number, uids, 600.0, closes=False, router=1)

    def check(self) -> None:
        """Find that it is given up, and that the next one can be."""
        elsewhere(self.give_up)
        self.want()

    def give_up(self) -> None:
        self.pod.releases.tick()
        (work,) = self.pod.work.take(1)
        assert self.pod.work.may_begin(work)
        self.pod.work.ended(work.uid, work.epoch)
        (told,) = self.pod.held.outcomes.take()
        assert (told.release, told.given) == (self.number, True)
        self.pod.next_epoch()


def call(pod: Pod, header: list[Any]) -> Any:
    return fenced_calls._call(pod, header, "hello")


def stream(pod: Pod, header: list[Any]) -> Any:
    return items_of(streams.stream(pod, [*header[:3], "items"]))


def watched(pod: Pod, header: list[Any]) -> Any:
    return items_of(readers.stream(pod, [*header[:3], "items"]))


def items_of(streamed: Iterator[Any]) -> Any:
    *items, last = list(streamed)
    if not isinstance(last, StreamEnd):
        return last
    assert items == [0, 1]
    return "hello"


def serving(pod: Pod, header: list[Any]) -> Any:
    with PodAgent.serving(pod._ray_route_agent, *header[:3]):
        return "hello"


@pytest.mark.slow
@pytest.mark.parametrize("is_new", [False, True], ids=["held", "new"])
@pytest.mark.parametrize("one_by_one", [False, True], ids=["in threads", "one by one"])
@pytest.mark.parametrize("way", [call, stream, serving])
def test_a_call_that_is_interrupted_anywhere_holds_up_no_other_and_no_release(
    way: Any, one_by_one: bool, is_new: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_order, "_MISSING_S", 0.01)
    pod = Pod(one_by_one=one_by_one)
    callers = Callers(pod, way)

    def check() -> None:
        callers.check()
        if not is_new:  # the next interrupted call is of a uid that is held
            way(pod, pod.header("say", next(callers.runs), 0))

    check()
    assert at_every_line(callers.first, check, *SERVING, *CALLING) > 30


@pytest.mark.slow
@pytest.mark.parametrize("way", [call, stream])
def test_a_uid_is_given_up_wherever_the_call_that_it_waits_for_is_interrupted(way: Any) -> None:
    wanted = WantedUid(Pod(one_by_one=False), way)
    wanted.want()
    assert at_every_line(wanted.call, wanted.check, *SERVING, *CALLING, *RELEASING) > 30


def test_a_uid_is_looked_at_though_who_said_when_was_interrupted_at_first() -> None:
    all_of_them = [Moments()]

    def work() -> None:
        waiting = all_of_them[-1]
        for uid, at in (("last", 2.0), ("first", 1.0), ("others", 3.0)):
            waiting.set(uid, at)
        waiting._tidy()

    def check() -> None:
        waiting = all_of_them[-1]
        for uid, at in (("last", 2.0), ("first", 1.0)):
            waiting.set(uid, at)
        assert [waiting.take(1.5), waiting.take(2.5)] == [["first"], ["last"]]
        all_of_them.append(Moments())

    assert at_every_line(work, check, moments) > 20


# Pods whose uids take turns: calls are coroutines, and what is interrupted are the user's threads.


class Room:
    """The object of one user."""

    def __init__(self, _: str) -> None:
        self.inside = 0

    def say(self, text: Any) -> Any:
        self.inside += 1
        assert self.inside == 1, "two calls at once"
        self.inside -= 1
        return text


class AsyncRoom(Room):
    """The same on the event loop."""

    async def say(self, text: Any) -> Any:
        self.inside += 1
        assert self.inside == 1, "two calls at once"
        try:
            for _ in range(3):
                await asyncio.sleep(0)
        finally:
            self.inside -= 1
        return text


class TurnPod(Pod):
    """A pod with an object for each uid, on an event loop of the test's."""

    def __init__(self, cls: type, *, on_loop: bool) -> None:
        super().__init__(one_by_one=False)
        self.instances = Instances(cls, (), {})
        found = UserHooks(lambda: None)
        loop = asyncio.get_running_loop() if on_loop else None
        acquire = found.find(self.instances, "on_acquire", on_loop=on_loop)
        hooks = Hooks(acquire, carries=True, prepare=self.instances.prepare, loop=loop)
        self.gate = Gate(self.links, "chat", self.held, hooks)  # type: ignore[arg-type]
        threads = None if on_loop else UserThreads(1)
        self.calls = TurnCalls(self.agent(), self.instances, threads)

    async def say(self, run: int, place: int) -> Any:
        header = self.header("say", run, place)
        return await asyncio.wait_for(self.calls.call(header, ("hello",), {}), PATIENCE_S)

    async def check(self, run: int) -> None:
        """Find all well: calls behind, other calls, and the release of the uid."""
        assert type(await self.say(run, 1)) in (str, SendAgain)
        assert await self.say(next(self._runs), 0) == "hello"
        assert not self.held.running
        assert len(self.calls._turns) == self.calls._turns.waiting == 0
        self.release()


def test_a_thread_that_is_interrupted_anywhere_ends_no_turn_too_early_or_never() -> None:
    async def main() -> None:
        pod = TurnPod(Room, on_loop=False)
        for line in count(1):
            run = next(pod._runs)
            interrupter = Interrupter(line, TURNS)
            threads = pod.calls._threads
            assert threads is not None
            with traced(interrupter), suppress(KeyboardInterrupt):
                answer = await pod.say(run, 0)
                assert answer == "hello" or isinstance(answer, Refused)
            if interrupter.lines < line:
                assert line > 10
                return
            await pod.check(run)

    asyncio.run(main())


@contextmanager
def traced(interrupter: Interrupter) -> Iterator[None]:
    """Have the interrupter at work in the thread that runs the user's code, all the time."""
    run = user_threads._Work.run

    def within(work: Any) -> None:
        with interrupter:
            run(work)

    with patch.object(user_threads._Work, "run", within):
        yield


@pytest.mark.parametrize("cls", [Room, AsyncRoom])
@pytest.mark.parametrize("is_new", [False, True], ids=["held", "new"])
def test_a_call_that_is_cancelled_at_any_await_takes_its_turn_along(cls: Any, is_new: bool) -> None:
    async def main() -> None:
        pod = TurnPod(cls, on_loop=cls is AsyncRoom)
        for ticks in range(20):
            if not is_new:
                await pod.say(next(pod._runs), 0)
            run = next(pod._runs)
            before = asyncio.ensure_future(pod.say(next(pod._runs), 0))
            task = asyncio.ensure_future(pod.say(run, 0))
            for _ in range(ticks):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task, before}, timeout=PATIENCE_S)
            assert task.done()
            assert before.result() == "hello"
            await pod.check(run)

    asyncio.run(main())
