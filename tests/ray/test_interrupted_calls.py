"""Calls that are interrupted anywhere cost no later call its turn, its order or its answer."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from typing import Any

import pytest
import ray
from helpers import eventually, own_namespace
from interrupting import at_every_line
from talkers import AsyncTalker

import ray_route
from ray_route import CallCancelledError, Link, RouteClient
from ray_route.client import (
    arrivals,
    batch,
    call_loop,
    calls,
    dispatcher,
    feed,
    handles,
    held_calls,
    lanes,
    many_uids,
    outgoing,
    refusals,
    responses,
    streamed_call,
    streams,
    untaken,
    use_reporter,
)
from ray_route.clock import now
from ray_route.runtime import waiting

pytestmark = pytest.mark.slow

S = "rooms"
OUTGOING = (arrivals, call_loop, dispatcher, held_calls, lanes, outgoing, refusals, untaken)
TAKING = (calls, handles, responses, waiting)
STREAMS = (feed, handles, streamed_call, streams, call_loop)


class Rooms:
    """A service, and what its calls are to be like whatever became of earlier ones."""

    def __init__(self, client: RouteClient) -> None:
        self.client: Any = client
        self.handle: Any = client.service(S, AsyncTalker)
        self.session: Any = client._session  # type: ignore[attr-defined]
        self.numbers = count()
        self.another = "another"
        self.checked: defaultdict[str, list[int]] = defaultdict(list)

    def say(self, uid: str, number: int | None = None) -> Any:
        number = next(self.numbers) if number is None else number
        return self.handle[uid].options(timeout_s=20).say.remote(uid, number)

    def forget(self, uid: str) -> None:
        """Have the next call look its uid up, so that it is held."""
        self.session.near.drop(S, uid)

    def be_out_of_date(self, uid: str) -> None:
        """Have the next call go to a pod that refuses it, since the uid's epoch is another."""
        link = self.client.compute_linked_pod(uid, S)
        older = Link(link.pod, link.incarnation, link.epoch - 1, persistent=False, lease_s=9.0)
        self.session.near.flush()
        self.session.near.put(S, uid, older, now())

    def check(self, *uids: str) -> None:
        """Find calls of these uids run in order, with nothing lost and nothing run twice.

        One that was interrupted just when it was sent may run at any time.
        """
        for uid in uids:
            checked = self.checked[uid]
            checked += [next(self.numbers), next(self.numbers)]
            _, last = [self.say(uid, number) for number in checked[-2:]]
            assert [number for number in last.result() if number in checked] == checked

    def is_at_rest(self) -> bool:
        """True if nothing is on its way, and nobody sees to anything."""
        sender = self.session.dispatcher
        return not len(sender.untaken) and not len(sender.lanes) and not sender.loop._tasks


@pytest.fixture(scope="module")
def rooms(ray_session: None) -> Iterator[Rooms]:
    with own_namespace() as namespace:
        client = ray_route.connect(namespace)
        options = {"namespace": namespace, "service": S, "replicas": 1}
        with ray_route.deploy(AsyncTalker, **options):
            made = Rooms(client)
            yield made
        client.close()
        loop = made.session.dispatcher.loop._loop
        eventually(loop.is_closed, "after all that, what sees to calls ends with its client")


@pytest.fixture
def u(rooms: Rooms, namespace: str) -> Iterator[str]:
    rooms.another = f"{namespace}-2"
    rooms.check(namespace, rooms.another)
    yield namespace
    eventually(rooms.is_at_rest, "nothing is left on its way")


def by_handle(rooms: Rooms, uid: str) -> None:
    rooms.say(uid).result()


def held(rooms: Rooms, uid: str) -> None:
    rooms.forget(uid)
    for response in [rooms.say(uid), rooms.say(uid)]:
        response.result()


def by_call(rooms: Rooms, uid: str) -> None:
    rooms.client.call(uid, S, "say", uid, next(rooms.numbers), timeout=20)


def by_call_many(rooms: Rooms, uid: str) -> None:
    there = ray.put(next(rooms.numbers))
    rooms.client.call_many([(uid, (uid, there)), (rooms.another, ("x", 1))], S, "say", timeout=20)


def refused(rooms: Rooms, uid: str) -> None:
    rooms.be_out_of_date(uid)
    for response in [rooms.say(uid), rooms.say(uid)]:
        response.result()


def passed_on(rooms: Rooms, uid: str) -> None:
    number = rooms.handle[rooms.another].echo.remote(1)
    rooms.handle[uid].options(timeout_s=20).echo.remote(number).result()


def cancelled(rooms: Rooms, uid: str) -> None:
    rooms.forget(uid)
    sent, waits = rooms.say(rooms.another), rooms.say(uid)
    for response in (sent, waits):
        response.cancel()
        with suppress(CallCancelledError):
            response.result()


def looked_at(rooms: Rooms, uid: str) -> None:
    response = rooms.say(uid)
    response.done()
    response.ref()
    response.done()


Work = Callable[[Rooms, str], None]


@pytest.mark.parametrize("stride", [2, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "work",
    [by_handle, held, by_call, by_call_many, refused, passed_on, cancelled, looked_at],
    ids=lambda work: work.__name__,
)
def test_a_call_that_is_interrupted_at_any_line_costs_no_later_one_anything(
    rooms: Rooms, u: str, work: Work, stride: int
) -> None:
    lines = at_every_line(
        lambda: work(rooms, u),
        lambda: rooms.check(u, rooms.another),
        *OUTGOING,
        *TAKING,
        stride=stride,
    )
    assert lines > 30


def test_a_task_that_is_cancelled_at_any_await_costs_no_later_call_anything(
    rooms: Rooms, u: str
) -> None:
    async def cancelled_after(ticks: int) -> None:
        async with await ray_route.connect_async(rooms.client.namespace) as client:
            rooms.forget(u)
            calls = [client.call(u, S, "say", u, next(rooms.numbers)) for _ in range(2)]
            tasks = [asyncio.create_task(call) for call in calls]
            for _ in range(ticks):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    for ticks in range(0, 60, 3):
        asyncio.run(cancelled_after(ticks))
        rooms.check(u, rooms.another)


def test_a_stream_that_is_interrupted_at_any_line_loses_no_item_unsaid_and_is_closed(
    rooms: Rooms, u: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed_call, "_WATCH_S", 0.2)
    begun: list[Any] = []
    items: list[int] = []

    def work() -> None:
        begun.clear()
        items.clear()
        begun.append(rooms.handle[u].count.remote(5))
        items.extend(begun[0])

    def check() -> None:
        for stream in begun:
            with suppress(CallCancelledError):
                items.extend(stream)
                assert items == list(range(5))
            stream.close()

    spared = {"__next__"}  # no signal comes between its last lines, nor can an item be kept there
    assert at_every_line(work, check, *STREAMS, spared=spared) > 30


def test_reports_of_use_that_are_interrupted_anywhere_go_on() -> None:
    sent: list[tuple[str, dict[str, int]]] = []
    reporter = use_reporter.UseReporter(1.0, lambda service, used: sent.append((service, used)))

    def work() -> None:
        reporter.note(S, {"ann": 1})
        reporter.report()

    def check() -> None:
        sent.clear()
        reporter.note(S, {"bob": 2})
        reporter.report()
        assert any(used.get("bob") == 2 for _, used in sent)

    assert at_every_line(work, check, use_reporter) > 5


def test_a_batch_that_is_interrupted_anywhere_costs_the_next_no_answer(
    rooms: Rooms, u: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uids = [u, rooms.another, "nobody"]

    def work() -> None:
        rooms.client.batch_get_linked_pod(uids, S, num_cpus=0, timeout=20)

    def check() -> None:
        found = rooms.client.batch_get_linked_pod(uids, S, timeout=20)
        assert dict(found) == {0: [u, rooms.another]}

    assert at_every_line(work, check, batch, many_uids, waiting) > 30
    monkeypatch.setattr(batch, "IN_PROCESS", 0)  # in tasks
    assert at_every_line(work, check, batch, stride=5) > 30
