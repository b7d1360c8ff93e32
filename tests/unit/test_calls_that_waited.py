"""A call that was admitted, and then waits for a thread or its pod's turn, is judged once more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from helpers import eventually, soon
from test_interrupted_pods import PATIENCE_S, Pod, Room, TurnPod, call, stream

from ray_route.errors import FencedError
from ray_route.pod.holdings import Holdings
from ray_route.protocol.calls import Refused


def lapses(held: Holdings) -> None:
    held.lapse()


def is_lost(held: Holdings) -> None:
    with held.lock:
        held.entries["u"].lost = True


def needs_confirmation(held: Holdings) -> None:
    """Have the pod's lease on the uid run out: the link, when it is read again, is as it was."""
    with held.lock:
        held.entries["u"].until = 0.0


@pytest.fixture
def elsewhere() -> Iterator[Callable[..., Future[Any]]]:
    pool = ThreadPoolExecutor(2)
    yield pool.submit
    pool.shutdown(wait=False)


@contextmanager
def turn_taken(pod: Pod, elsewhere: Callable[..., Future[Any]]) -> Iterator[None]:
    """Have another call keep the pod's turn meanwhile."""
    begun, over = threading.Event(), threading.Event()

    def keep() -> None:
        with pod._ray_route_turn:
            begun.set()
            over.wait(PATIENCE_S)

    kept = elsewhere(keep)
    assert begun.wait(PATIENCE_S)
    try:
        yield
    finally:
        over.set()
        kept.result(PATIENCE_S)


def refuses(answer: Any) -> bool:
    assert isinstance(answer, Refused), answer
    assert isinstance(answer.error, FencedError)
    assert not answer.error.may_have_run
    return True


@pytest.mark.parametrize("way", [call, stream])
@pytest.mark.parametrize("ends", [lapses, is_lost])
def test_one_that_waits_for_its_pods_turn_does_not_begin_once_its_uid_is_lost(
    elsewhere: Any, ends: Callable[[Holdings], None], way: Any
) -> None:
    pod = Pod(one_by_one=True)
    assert way(pod, pod.header("say", 1, 0)) == "hello"  # the uid is held
    with turn_taken(pod, elsewhere):
        answer = elsewhere(way, pod, pod.header("say", 2, 0))
        eventually(lambda: pod.held.running == 1, "it is admitted")
        ends(pod.held)
    assert refuses(answer.result(PATIENCE_S))


def test_one_that_waits_for_its_pods_turn_begins_once_its_uid_is_confirmed(
    elsewhere: Any,
) -> None:
    pod = Pod(one_by_one=True)
    assert call(pod, pod.header("say", 1, 0)) == "hello"
    with turn_taken(pod, elsewhere):
        answer = elsewhere(call, pod, pod.header("say", 2, 0))
        eventually(lambda: pod.held.running == 1, "it is admitted")
        needs_confirmation(pod.held)
    assert answer.result(PATIENCE_S) == "hello"


class Counted(Room):
    """One that counts its calls."""

    said = 0

    def say(self, text: Any) -> Any:
        Counted.said += 1
        return text


@pytest.mark.parametrize(("happens", "runs"), [(lapses, 0), (is_lost, 0), (needs_confirmation, 1)])
def test_one_that_waits_for_a_thread_begins_only_while_its_uid_is_held(
    happens: Callable[[Holdings], None], runs: int
) -> None:
    async def main() -> None:
        pod = TurnPod(Counted, on_loop=False)
        assert await pod.say(1, 0) == "hello"
        Counted.said = 0
        threads = pod.calls._threads
        assert threads is not None
        over = threading.Event()
        kept = asyncio.ensure_future(threads.run(lambda: over.wait(PATIENCE_S)))
        answer = asyncio.ensure_future(pod.say(2, 0))
        await soon(lambda: pod.held.running == 1, "it is admitted")
        happens(pod.held)
        over.set()
        await kept
        assert await answer == "hello" if runs else refuses(await answer)
        assert Counted.said == runs

    asyncio.run(main())
