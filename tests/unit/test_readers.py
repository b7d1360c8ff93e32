"""A stream whose reader takes nothing is closed; on a loop it ends when its reader has ended it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from helpers import eventually, soon
from interrupting import at_every_line
from test_pod_streams import Pod

from ray_route.errors import RouteTimeoutError
from ray_route.pod import readers
from ray_route.protocol.calls import Raised, Refused, StreamEnd

HEADER = ["ann", 1, 1, "count"]


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_LOOK_S", 0.02)
    monkeypatch.setattr(readers, "LEFT_S", 0.2)


def check_unread(item: Any) -> None:
    assert type(item) is Refused
    assert isinstance(item.error, RouteTimeoutError)
    assert item.error.may_have_run is True
    assert "its pod has closed the stream" in str(item.error)


# In threads.


@pytest.fixture
def pod() -> Any:
    return Pod()


def test_one_that_is_read_comes_to_its_end(pod: Any) -> None:
    *items, end = readers.stream(pod, HEADER, 100)
    assert items == list(range(100))
    assert type(end) is StreamEnd
    assert not readers._watch._readers


def test_one_that_nobody_reads_is_closed_and_left_and_says_so_later(pod: Any) -> None:
    items = readers.stream(pod, HEADER, 100)
    assert next(items) == 0
    eventually(lambda: "left" in pod.in_turn, "its call has ended")
    assert pod.in_turn["closed"], "in its turn"
    check_unread(next(items))
    assert list(items) == []
    assert not readers._watch._readers


def test_one_that_no_thread_could_close_is_closed_later_and_so_are_others(
    pod: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "_watch", readers._Watch())
    start, tried = threading.Thread.start, threading.Event()

    def begun(self: threading.Thread) -> None:
        if self.name == "ray_route-unread" and not tried.is_set():
            tried.set()
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", begun)
    items = readers.stream(pod, HEADER, 100)
    assert next(items) == 0
    assert tried.wait(60)
    eventually(lambda: "left" in pod.in_turn, "its call has ended")
    check_unread(next(items))


def test_readers_are_looked_at_wherever_the_first_of_them_was_interrupted() -> None:
    watches = [readers._Watch()]
    closed: list[int] = []

    def left() -> readers._Reader:
        reader = readers._Reader(lambda: closed.append(1))
        reader._since = 0.0  # long ago
        return reader

    def work() -> None:
        watches[-1].add(readers._Reader(lambda: None))

    def check() -> None:
        closed.clear()
        reader = left()
        watches[-1].add(reader)
        eventually(lambda: closed == [1], "it is closed")
        watches.append(readers._Watch())

    assert at_every_line(work, check, readers) > 5


def test_one_that_is_dropped_is_closed_at_once(pod: Any) -> None:
    items: Any = readers.stream(pod, HEADER, 100)
    next(items)
    items.close()
    assert "left" in pod.in_turn
    assert not readers._watch._readers


# On a loop.


class Items:
    """A stream of a pod's, which notes that it was closed."""

    def __init__(self) -> None:
        self.closed = False

    async def give(self, number: int, error: Exception | None = None) -> AsyncIterator[int]:
        try:
            for item in range(number):
                yield item
            if error is not None:
                raise error
        finally:
            self.closed = True


@pytest.fixture
def items() -> Iterator[Items]:
    made = Items()
    yield made
    assert made.closed


def read(items: Any) -> Any:
    return readers._read(object(), HEADER, items)


def test_what_is_read_to_its_end_ends_once_its_reader_ends_it(
    items: Items, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "LEFT_S", 60.0)

    async def story() -> None:
        stream = read(items.give(3))
        assert [await anext(stream) for _ in range(3)] == [0, 1, 2]
        waiting = asyncio.ensure_future(anext(stream))
        await soon(lambda: items.closed, "the user's generator has ended")
        assert not waiting.done(), "Ray must not find that the stream has ended"
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(story())


def test_one_that_no_reader_ends_is_cancelled_in_the_end(items: Items) -> None:
    async def story() -> None:
        stream = read(items.give(1))
        assert await anext(stream) == 0
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(anext(stream), 30)

    asyncio.run(story())


def test_what_the_users_code_raises_is_its_last_item(items: Items) -> None:
    async def story() -> None:
        stream = read(items.give(1, KeyError("mine")))
        assert await anext(stream) == 0
        raised = await anext(stream)
        assert type(raised) is Raised
        assert isinstance(raised.error.cause, KeyError)
        await stream.aclose()

    asyncio.run(story())


def test_one_that_nobody_reads_is_closed_and_says_so_later_on_a_loop_too(items: Items) -> None:
    async def story() -> None:
        stream = read(items.give(100))
        assert await anext(stream) == 0
        await soon(lambda: items.closed, "the user's generator has ended")
        check_unread(await anext(stream))
        await stream.aclose()

    asyncio.run(story())
