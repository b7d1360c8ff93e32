"""Calls and streams on a pod's event loop, cancelled at any await or closed at any item.

The user's code ends as it likes then: it may wait, fail, or be cancelled once more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, suppress
from itertools import count, product
from typing import Any

import pytest
from test_interrupted_pods import PATIENCE_S, Pod, TurnPod

from ray_route.errors import FencedError
from ray_route.pod import fenced_calls, streams
from ray_route.pod.gate import Gate
from ray_route.pod.hooks import Hooks
from ray_route.pod.user_hooks import UserHooks
from ray_route.protocol.calls import StreamEnd

TICKS = 14


class Rooms:
    """The user's object, whose code waits for something at each step."""

    fails = False

    def __init__(self, *_: Any) -> None:
        self.acquired: list[str] = []

    async def on_acquire(self, uid: str, *_: Any) -> None:
        await asyncio.sleep(0)
        self.acquired.append(uid)

    async def say(self, text: Any) -> Any:
        await asyncio.sleep(0)
        return text

    async def items(self, *_: Any) -> AsyncIterator[int]:
        try:
            for item in range(2):
                await asyncio.sleep(0)
                yield item
        finally:
            await asyncio.sleep(0)
            if self.fails:
                raise OSError("it can't be closed")


class LoopPod(Pod):
    """A pod on the event loop whose uids take no turns."""

    def __init__(self) -> None:
        super().__init__(one_by_one=False)
        self.rooms: Any = Rooms()
        found = UserHooks(lambda: None).find(self.rooms, "on_acquire", on_loop=True)
        hooks = Hooks(found, loop=asyncio.get_running_loop())
        self.gate = Gate(self.links, "chat", self.held, hooks)  # type: ignore[arg-type]
        self._ray_route_agent = self.agent()
        self.numbers = count(1)

    def call(self) -> Coroutine[Any, Any, Any]:
        header = self.header("say", next(self.numbers), 0)
        return fenced_calls._call_async(self, header, "hello")

    def many(self) -> Coroutine[Any, Any, Any]:
        headers = [self.header("say", next(self.numbers), 0) for _ in range(3)]
        return fenced_calls._call_many_async(self, [(one, ("hello",), {}) for one in headers])

    def stream(self) -> Any:
        return streams.stream_async(self, self.header("items", 0, 0))

    def is_at_rest(self) -> bool:
        return not self.held.running


class LoopTurnPod(TurnPod):
    """One whose uids take turns."""

    def __init__(self) -> None:
        super().__init__(Rooms, on_loop=True)
        self.numbers = count(1)

    def call(self) -> Coroutine[Any, Any, Any]:
        return self.calls.call(self.header("say", next(self.numbers), 0), ("hello",), {})

    def many(self) -> Coroutine[Any, Any, Any]:
        headers = [self.header("say", next(self.numbers), 0) for _ in range(3)]
        return self.calls.call_many([(one, ("hello",), {}) for one in headers])

    def save(self) -> Coroutine[Any, Any, Any]:
        return self.calls.in_turn("u", "save", lambda: asyncio.sleep(0))

    def stream(self) -> Any:
        return self.calls.stream(self.header("items", 0, 0), (), {})

    def is_at_rest(self) -> bool:
        turns = self.calls._turns
        return not (self.held.running or len(turns) or turns.waiting)


Looped = LoopPod | LoopTurnPod


async def read(pod: Looped, taken: int) -> list[Any]:
    """Take so many items, and close the stream."""
    items = []
    async with aclosing(pod.stream()) as stream:
        async for item in stream:
            items.append(item)
            if len(items) >= taken:
                break
    return items


WORKS: dict[str, Callable[[Any], Coroutine[Any, Any, Any]]] = {
    "a call": lambda pod: pod.call(),
    "many calls": lambda pod: pod.many(),
    "a save": lambda pod: pod.save(),
    "a stream": lambda pod: read(pod, 9),
    "a stream that is left": lambda pod: read(pod, 1),
}


async def cancelled(work: Coroutine[Any, Any, Any], ticks: int, again: int | None) -> None:
    """Cancel some work after so many ticks of the loop, and perhaps once more."""
    task = asyncio.ensure_future(work)
    for more in (ticks, again):
        if more is not None:
            for _ in range(more):
                await asyncio.sleep(0)
            task.cancel()
    await asyncio.wait({task}, timeout=PATIENCE_S)
    assert task.done()
    with suppress(asyncio.CancelledError, OSError, FencedError):
        task.result()


async def check(pod: Looped) -> None:
    """Find nothing left, and calls, streams and the release of the uid as if nothing had been."""
    assert pod.is_at_rest()
    assert await asyncio.wait_for(pod.call(), PATIENCE_S) == "hello"
    Rooms.fails = False
    *items, last = await asyncio.wait_for(read(pod, 9), PATIENCE_S)
    assert (items, type(last)) == ([0, 1], StreamEnd)
    pod.release()


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True], ids=["well", "ill"])
@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("cls", [LoopPod, LoopTurnPod])
def test_what_is_cancelled_at_any_await_leaves_nothing_behind(
    cls: type[Any], work: str, fails: bool
) -> None:
    if cls is LoopPod and work == "a save":
        pytest.skip("its objects are saved by nobody")

    async def main() -> None:
        pod = cls()
        for ticks, again, is_new in product(range(TICKS), (None, 0, 1, 2), (False, True)):
            if not is_new:
                await pod.call()
            Rooms.fails = fails
            await cancelled(WORKS[work](pod), ticks, again)
            await check(pod)

    asyncio.run(main())
