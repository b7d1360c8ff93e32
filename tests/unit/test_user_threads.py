"""Threads for plain functions beside an event loop."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading

import pytest
from helpers import soon

from ray_route.pod import user_threads
from ray_route.pod.user_threads import UserThreads

word: contextvars.ContextVar[str] = contextvars.ContextVar("word", default="")


def test_results_and_errors_come_back_even_stop_iteration() -> None:
    threads = UserThreads(1)

    def fail() -> None:
        raise StopIteration

    async def go() -> None:
        word.set("mine")
        assert await threads.run(word.get) == "mine"
        with pytest.raises(RuntimeError, match="StopIteration"):
            await asyncio.wait_for(threads.run(fail), 20)

    asyncio.run(go())


def test_what_is_called_within_needs_no_free_thread() -> None:
    threads = UserThreads(1)
    free = threading.Event()

    async def go() -> None:
        outer = asyncio.ensure_future(threads.run(lambda: free.wait(30)))
        behind = asyncio.ensure_future(threads.run(lambda: "behind"))
        assert await asyncio.wait_for(threads.run(lambda: "in", is_within=True), 20) == "in"
        assert not behind.done()
        free.set()
        assert await outer
        assert await behind == "behind"

    asyncio.run(go())


def test_ray_warns_of_a_blocking_get_where_it_blocks_a_loop_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rays = logging.getLogger("ray._private.worker")
    rays.addHandler(caplog.handler)  # Ray's loggers hand nothing on
    before = rays.filters[:]
    user_threads.warn_on_loops_alone()

    async def warn() -> None:
        rays.warning("Using blocking ray.get inside async actor.")

    try:
        rays.warning("Using blocking ray.get inside async actor.")
        assert not caplog.messages
        rays.warning("something else")
        asyncio.run(warn())
    finally:
        rays.filters[:] = before
        rays.removeHandler(caplog.handler)
    assert caplog.messages[0] == "something else"
    assert "blocking" in caplog.messages[-1]


def test_cancelled_it_waits_for_what_runs_and_drops_what_has_not_begun() -> None:
    threads = UserThreads(1)
    begun, free = threading.Event(), threading.Event()
    ran: list[str] = []

    def long() -> None:
        begun.set()
        free.wait(30)
        ran.append("long")

    async def go() -> None:
        running = asyncio.ensure_future(threads.run(long))
        queued = asyncio.ensure_future(threads.run(lambda: ran.append("queued")))
        await soon(begun.is_set, "it runs")
        for _ in range(3):  # however often
            running.cancel()
            queued.cancel()
            await asyncio.sleep(0)
        assert not running.done()
        free.set()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert ran == ["long"]
        with pytest.raises(asyncio.CancelledError):
            await queued
        await threads.run(lambda: None)
        assert ran == ["long"]

    asyncio.run(go())
