"""How operations wait, on an event loop and in threads, for an answer that others share."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from typing import Any

import pytest

from ray_route.client.coalescer import Batch, SharedAnswer
from ray_route.client.shared_future import SharedFuture
from ray_route.clock import Deadline
from ray_route.errors import RayGoneError, RouteTimeoutError
from ray_route.runtime import waiting as waits
from ray_route.runtime.link_reads import Awaited
from ray_route.runtime.waiting import Stage, run, run_async, within, within_async

ANSWER = {"u": "link"}


def waiting(future: SharedFuture[Any], timeout_s: float = 10.0) -> Any:
    """A task's way to wait."""

    def operation() -> Any:
        sent = Batch(lambda: None, answers=future)
        return (yield SharedAnswer(sent, "the answer"))

    return run_async(operation(), Deadline.after(timeout_s))


def test_a_thousand_tasks_wake_their_loop_once_for_one_answer(monkeypatch: pytest.MonkeyPatch):
    future: SharedFuture[Any] = SharedFuture()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        wake = loop.call_soon_threadsafe
        woken: list[Any] = []

        def counted(*args: Any, **kwargs: Any) -> Any:
            woken.append(args)
            return wake(*args, **kwargs)

        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        tasks = [asyncio.create_task(waiting(future)) for _ in range(1_000)]
        await asyncio.sleep(0)
        answering = threading.Thread(target=future.set_result, args=(ANSWER,))
        answering.start()
        assert await asyncio.gather(*tasks) == [ANSWER] * 1_000
        answering.join()
        assert len(woken) == 1

    asyncio.run(main())


def test_an_answer_that_is_there_already_is_taken():
    future: SharedFuture[Any] = SharedFuture()
    future.set_result(ANSWER)
    assert asyncio.run(waiting(future)) == ANSWER
    assert asyncio.run(waiting(future)) == ANSWER  # on another loop of the same thread


def test_every_loop_hears_of_it():
    future: SharedFuture[Any] = SharedFuture()
    heard: list[Any] = []
    threads = [
        threading.Thread(target=lambda: heard.append(asyncio.run(waiting(future))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    future.set_result(ANSWER)
    for thread in threads:
        thread.join(10)
    assert heard == [ANSWER] * 4


def test_who_gives_up_disturbs_nobody():
    future: SharedFuture[Any] = SharedFuture()

    async def main() -> None:
        patient = asyncio.create_task(waiting(future))
        hasty = asyncio.create_task(waiting(future, timeout_s=0.01))
        cancelled = asyncio.create_task(waiting(future))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        with pytest.raises(RouteTimeoutError, match="waiting for the answer"):
            await hasty
        assert not future.cancelled()
        future.set_result(ANSWER)
        assert await patient == ANSWER

    asyncio.run(main())


def test_an_error_is_everybodys():
    future: SharedFuture[Any] = SharedFuture()

    async def main() -> list[Any]:
        tasks = [asyncio.create_task(waiting(future)) for _ in range(3)]
        await asyncio.sleep(0)
        future.set_exception(ConnectionError("no router"))
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert [str(error) for error in asyncio.run(main())] == ["no router"] * 3


def test_an_error_that_came_when_all_had_given_up_is_not_complained_of(
    caplog: pytest.LogCaptureFixture,
):
    async def main() -> None:
        future: SharedFuture[Any] = SharedFuture()
        with pytest.raises(RouteTimeoutError):
            await waiting(future, timeout_s=0.01)
        future.set_exception(ConnectionError("no router"))
        await asyncio.sleep(0)  # the loop hears of it
        await asyncio.sleep(0)

    with caplog.at_level(logging.ERROR, logger="asyncio"):
        asyncio.run(main())
        gc.collect()
    assert caplog.messages == []


def test_a_thread_waits_for_the_same_until_its_deadline():
    future: SharedFuture[Any] = SharedFuture()

    def operation() -> Any:
        sent = Batch(lambda: None, answers=future)
        return (yield SharedAnswer(sent, "the answer"))

    with pytest.raises(RouteTimeoutError, match="waiting for the answer"):
        run(operation(), Deadline.after(0.01))
    future.set_result(ANSWER)
    assert run(operation(), Deadline.after(10)) == ANSWER


def test_who_came_later_and_has_less_time_is_let_go_first():
    """Tried again where the process had no turn between two of the times: then all are late."""
    future: SharedFuture[Any] = SharedFuture()

    async def main() -> list[str]:
        ended: list[str] = []

        async def wait(name: str, timeout_s: float) -> None:
            with pytest.raises(RouteTimeoutError):
                await waiting(future, timeout_s)
            ended.append(name)

        await asyncio.gather(wait("second", 0.05), wait("third", 0.1), wait("first", 0.01))
        return ended

    assert any(asyncio.run(main()) == ["first", "second", "third"] for _ in range(20))


def test_a_loop_that_was_closed_is_in_nobodys_way():
    future: SharedFuture[Any] = SharedFuture()

    async def give_up() -> None:
        with pytest.raises(RouteTimeoutError):
            await waiting(future, timeout_s=0.01)

    asyncio.run(give_up())
    future.set_result(ANSWER)
    assert asyncio.run(waiting(future)) == ANSWER


# The Ray of whoever waits may go.

FOREVER_S = 600.0


def gone() -> None:
    raise RayGoneError(what="the answer")


@pytest.mark.parametrize("kind", [SharedAnswer, Awaited])
def test_who_waits_for_what_others_wait_for_hears_that_its_ray_is_gone(kind: Any):
    future: SharedFuture[Any] = SharedFuture()
    awaited = Batch(lambda: None, answers=future) if kind is SharedAnswer else future
    deadline = Deadline.after(FOREVER_S)
    with pytest.raises(RayGoneError):
        kind(awaited, "the answer", gone).wait(deadline)
    with pytest.raises(RayGoneError):
        asyncio.run(kind(awaited, "the answer", gone).wait_async(deadline))
    assert not future.done(), "others may hear more"


@pytest.mark.parametrize("on_a_loop", [True, False])
def test_who_waits_for_work_that_asks_ray_hears_that_it_is_gone(
    monkeypatch: pytest.MonkeyPatch, on_a_loop: bool
):
    """The work itself may wait for a head that is no more, for a minute."""
    here: list[object] = [object()]
    monkeypatch.setattr(waits, "joined_ray", lambda: here[-1])
    ends = threading.Event()

    def work() -> None:
        here.append(None)
        ends.wait(FOREVER_S)

    stage, deadline = Stage("the router"), Deadline.after(FOREVER_S)
    try:
        with pytest.raises(RayGoneError, match="the router"):
            asyncio.run(within_async(deadline, stage, work)) if on_a_loop else within(
                deadline, stage, work
            )
    finally:
        ends.set()


@pytest.mark.slow
def test_a_wait_of_many_parts_ends_with_the_answer_and_at_its_deadline():
    future: SharedFuture[Any] = SharedFuture()
    threading.Timer(1.5, future.set_result, (ANSWER,)).start()
    assert asyncio.run(waiting(future)) == ANSWER
    never: SharedFuture[Any] = SharedFuture()
    with pytest.raises(RouteTimeoutError):
        asyncio.run(waiting(never, timeout_s=1.3))
