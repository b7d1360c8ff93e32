"""A call that was admitted, and then waits for a thread or its pod's turn, is judged once more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import pytest
from helpers import eventually, soon
from test_interrupted_pods import PATIENCE_S, Pod, Room, Rooms, TurnPod, call, stream

from ray_route.clock import Deadline
from ray_route.errors import FencedError, RouteError, RouteTimeoutError
from ray_route.pod import streams, terms, turn_calls
from ray_route.pod.holdings import Holdings
from ray_route.protocol.calls import SAME_PROCESS, Refused
from ray_route.runtime.call_context import time_of


def lapses(held: Holdings) -> None:
    terms.lapse(held)


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


async def once_a_thread_is_free(
    pod: TurnPod, begin: Callable[[], Coroutine[Any, Any, Any]], happens: Callable[[Holdings], None]
) -> asyncio.Task[Any]:
    """Begin something that waits for the pod's thread; have something happen, and free that."""
    threads = pod.calls._threads
    assert threads is not None
    over = threading.Event()
    kept = asyncio.ensure_future(threads.run(lambda: over.wait(PATIENCE_S)))
    begun = asyncio.create_task(begin())
    await soon(lambda: pod.held.running == 1, "it is admitted")
    happens(pod.held)
    over.set()
    await kept
    return begun


@pytest.mark.parametrize(("happens", "runs"), [(lapses, 0), (is_lost, 0), (needs_confirmation, 1)])
def test_one_that_waits_for_a_thread_begins_only_while_its_uid_is_held(
    happens: Callable[[Holdings], None], runs: int
) -> None:
    async def main() -> None:
        pod = TurnPod(Counted, on_loop=False)
        assert await pod.say(1, 0) == "hello"
        Counted.said = 0
        answer = await once_a_thread_is_free(pod, lambda: pod.say(2, 0), happens)
        assert await answer == "hello" if runs else refuses(await answer)
        assert Counted.said == runs

    asyncio.run(main())


@pytest.mark.parametrize(("happens", "runs"), [(lapses, 0), (is_lost, 0), (needs_confirmation, 1)])
def test_a_save_that_waits_for_a_thread_begins_only_while_its_uid_is_held(
    happens: Callable[[Holdings], None], runs: int
) -> None:
    async def main() -> None:
        pod = TurnPod(Room, on_loop=False)
        assert await pod.say(1, 0) == "hello"
        saved: list[int] = []
        in_turn = partial(pod.calls.in_turn, "u", "save", lambda: saved.append(1))
        save = await once_a_thread_is_free(pod, in_turn, happens)
        if runs:
            await save
        else:
            with pytest.raises(FencedError):
                await save
        assert len(saved) == runs

    asyncio.run(main())


Happens = Callable[[Holdings, pytest.MonkeyPatch], object]


class Steps:
    """Stands for a turn that another call has, before it is had for the second time."""

    def __init__(self, between: Callable[[], object]) -> None:
        self._between = between
        self._had = 0

    def __enter__(self) -> None:
        self._had += 1
        if self._had == 2:
            self._between()

    def __exit__(self, *_: object) -> None:
        pass


class Told(Room):
    """Notes what has run of its streams."""

    ran: ClassVar[list[str]] = []

    def told(self) -> Iterator[str]:
        Told.ran.append("told")
        yield "hello"

    def worked_and_told(self) -> Iterator[str]:
        Told.ran.append("worked")
        return self.told()


def comes_late(_: Holdings, patch: pytest.MonkeyPatch) -> None:
    """Have all callers have given up by now."""
    patch.setattr(streams, "is_over", lambda _: True)
    patch.setattr(turn_calls, "is_over", lambda _: True)


def with_deadline(pod: Pod, method: str, due_s: float = PATIENCE_S) -> list[Any]:
    due_at = time_of(Deadline.after(due_s))
    return [*pod.header(method, 0, 0), due_at, SAME_PROCESS, 0]


@pytest.mark.parametrize(
    ("happens", "refused"),
    [
        pytest.param(lambda held, _: lapses(held), FencedError, id="its lease lapses"),
        pytest.param(lambda held, _: is_lost(held), FencedError, id="its uid is lost"),
        pytest.param(comes_late, RouteTimeoutError, id="it is late"),
        pytest.param(lambda held, _: needs_confirmation(held), None, id="it is confirmed"),
    ],
)
class TestStreamsThatWaitForTheirFirstItem:
    """Of a generator nothing has run before that."""

    def refuses(self, items: list[Any], refused: type[RouteError] | None) -> None:
        if refused is None:
            assert (items[0], Told.ran) == ("hello", ["told"])
            return
        assert isinstance(items[0], Refused), items
        assert isinstance(items[0].error, refused)
        assert not items[0].error.may_have_run
        assert Told.ran == []

    def test_for_their_pods_turn(
        self, happens: Happens, refused: type[RouteError] | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pod = Pod(one_by_one=True)
        pod.rooms: Any = Told("u")
        header = with_deadline(pod, "told")
        pod._ray_route_turn = Steps(lambda: happens(pod.held, monkeypatch))  # type: ignore[assignment]
        Told.ran.clear()
        self.refuses(list(streams.stream(pod, header)), refused)
        assert pod.held.running == 0

    def test_for_a_thread(
        self, happens: Happens, refused: type[RouteError] | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def main() -> None:
            pod = TurnPod(Told, on_loop=False)
            header = with_deadline(pod, "told")
            self.steps(pod, lambda: happens(pod.held, monkeypatch))
            Told.ran.clear()
            self.refuses([item async for item in pod.calls.stream(header, (), {})], refused)
            assert pod.held.running == 0

        asyncio.run(main())

    @staticmethod
    def steps(pod: TurnPod, between: Callable[[], object]) -> None:
        """Have something happen before a thread is there for the second time."""
        threads: Any = pod.calls._threads
        steps, run = Steps(between), threads.run

        async def waits(*args: Any, **kwargs: Any) -> Any:
            with steps:
                return await run(*args, **kwargs)

        threads.run = waits


def test_a_stream_whose_method_has_worked_before_its_first_item_is_not_said_not_to_have_run() -> (
    None
):
    pod = Pod(one_by_one=True)
    pod.rooms: Any = Told("u")
    header = with_deadline(pod, "worked_and_told")
    pod._ray_route_turn = Steps(lambda: lapses(pod.held))  # type: ignore[assignment]
    (answer,) = streams.stream(pod, header)
    assert isinstance(answer.error, FencedError)
    assert answer.error.may_have_run


def test_a_stream_on_the_loop_waits_for_on_acquire_no_longer_than_its_caller_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, over = threading.Event(), threading.Event()

    def acquire(*_: object) -> None:
        begun.set()
        over.wait(4 * PATIENCE_S)

    monkeypatch.setattr(Rooms, "on_acquire", acquire)
    pod = Pod(one_by_one=False)

    async def main() -> None:
        due_s = 0.1
        while not begun.is_set():  # where that was too short to come so far, again
            header = with_deadline(pod, "items", due_s)
            answer = await asyncio.wait_for(anext(streams.stream_async(pod, header)), PATIENCE_S)
            assert isinstance(answer.error, RouteTimeoutError)
            assert not answer.error.may_have_run
            due_s *= 2

    try:
        asyncio.run(main())
    finally:
        over.set()
