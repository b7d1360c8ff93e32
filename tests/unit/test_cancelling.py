"""Tasks end, though `asyncio.wait_for` loses a cancel before Python 3.12."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ray_route.runtime import cancelling
from ray_route.runtime.cancelling import ended


@pytest.fixture(autouse=True)
def soon_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancelling, "_AGAIN_S", 0.01)


def run(story: Any) -> None:
    asyncio.run(asyncio.wait_for(story, 20))


class Deaf:
    """Works in a loop, and loses its first cancels."""

    def __init__(self, cancels: int) -> None:
        self.left = cancels

    async def work(self) -> None:
        while True:
            try:
                await asyncio.sleep(60)  # nothing but a cancel ends it
            except asyncio.CancelledError:
                if not self.left:
                    raise
                self.left -= 1


async def _sent() -> None:
    """Be done at once, as what is written to a socket."""


async def _works_on() -> None:
    while True:
        await asyncio.wait_for(_sent(), 60)
        await asyncio.sleep(60)  # until the next beat


def test_a_loop_ends_whose_cancel_came_as_what_it_waited_for_was_done() -> None:
    async def story() -> None:
        for turns in range(8):
            task = asyncio.ensure_future(_works_on())
            for _ in range(turns):
                await asyncio.sleep(0)
            await ended([task])
            assert task.cancelled()

    run(story())


def test_each_is_cancelled_until_it_has_ended() -> None:
    async def story() -> None:
        tasks = [asyncio.ensure_future(Deaf(cancels).work()) for cancels in (0, 1, 3)]
        await asyncio.sleep(0)
        await ended(tasks)
        assert all(task.cancelled() for task in tasks)

    run(story())


def test_one_that_is_cancelled_itself_ends_them_all_the_same_and_says_so() -> None:
    async def story() -> None:
        deaf = asyncio.ensure_future(Deaf(3).work())
        await asyncio.sleep(0)
        ending = asyncio.ensure_future(ended([deaf]))
        await asyncio.sleep(0)
        ending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ending
        assert deaf.cancelled()

    run(story())


def test_what_they_raised_counts_as_taken() -> None:
    async def fails() -> None:
        raise ValueError("nobody's business")

    async def story() -> None:
        loop, met = asyncio.get_running_loop(), []
        loop.set_exception_handler(lambda _, context: met.append(context))
        tasks = [asyncio.ensure_future(fails())]
        await asyncio.wait(tasks)
        await ended(tasks)
        tasks.clear()
        await asyncio.sleep(0)
        assert met == []

    run(story())
