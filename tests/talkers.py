"""Users' classes for tests of calls. In a module of their own, so that workers can import it."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import ray_route
from ray_route.pod import terms
from ray_route.pod.pod_actor import current_agent


class LockedError(Exception):
    """Carries what no process can send to another."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


def refuse() -> None:
    """Raise what the pod would say of this very call if it lost the uid."""
    link = ray_route.current_link()
    agent = current_agent()
    assert link is not None
    assert agent is not None
    ids = {"namespace": agent.namespace, "service": agent.service, "pod": agent.pod}
    raise ray_route.FencedError(
        reason="the user says so", may_have_run=True, uid=link.uid, epoch=link.epoch, **ids
    )


def lapse() -> None:
    """Have the pod that runs this find its lease run out, until its router vouches for it."""
    agent = current_agent()
    assert agent is not None
    terms.lapse(agent.gate.held)


class Talker:
    """What users' methods return, raise and yield."""

    def __init__(self) -> None:
        self.said: dict[str, list[Any]] = {}

    def say(self, uid: str, text: Any, *, loudly: bool = False) -> list[Any]:
        self.said.setdefault(uid, []).append(f"{text}!" if loudly else text)
        return list(self.said[uid])

    def echo(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        return args, kwargs

    def fail(self, text: str) -> None:
        raise KeyError(text)

    def fail_of_ours(self) -> None:
        raise ray_route.RouteTimeoutError(waiting_for="another", timeout_s=1.5)

    def refuse(self) -> None:
        refuse()

    def lock(self) -> Any:
        return {"lock": threading.Lock()}

    def fail_with_a_lock(self) -> None:
        raise LockedError("with a lock")

    def count(self, number: int) -> Iterator[int]:
        yield from range(number)

    def refuse_after(self, number: int) -> Iterator[int]:
        yield from range(number)
        refuse()

    def drip(self, folder: str, number: int) -> Iterator[int]:
        """Note in a folder how far it has come, and that it was closed."""
        try:
            for item in range(number):
                (Path(folder) / "at").write_text(str(item))
                yield item
        finally:
            (Path(folder) / "closed").touch()

    def break_off(self, number: int, how: str) -> Iterator[int]:
        yield from range(number)
        if how == "exit":
            os._exit(1)
        raise KeyError(how)

    def lapse_after(self, number: int) -> Iterator[int]:
        yield from range(number)
        lapse()
        yield number

    def counting(self, number: int) -> Iterator[int]:
        return (item for item in range(number))

    def sleep(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    def wait_for(self, path: str) -> str:
        while not Path(path).exists():
            time.sleep(0.01)
        return path

    def remaining(self) -> float | None:
        link = ray_route.current_link()
        assert link is not None
        return link.remaining_s

    def remaining_of_nested(self, handle: Any, uid: str, timeout_s: float | None) -> Any:
        if timeout_s is not None:
            handle = handle.options(timeout_s=timeout_s)
        return handle[uid].remaining.remote().result()

    def three(self) -> int:
        return 3

    def exit(self) -> None:
        os._exit(1)

    def big(self, size: int) -> bytearray:
        return bytearray(size)

    def size(self, thing: Any) -> int:
        return len(thing)


class AsyncTalker:
    """The same with coroutines."""

    def __init__(self) -> None:
        self.said: dict[str, list[Any]] = {}
        self.begun: list[str] = []
        self.cancelled: list[str] = []

    async def say(self, uid: str, text: Any, *, loudly: bool = False) -> list[Any]:
        self.said.setdefault(uid, []).append(f"{text}!" if loudly else text)
        return list(self.said[uid])

    async def echo(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        return args, kwargs

    async def fail(self, text: str) -> None:
        raise KeyError(text)

    async def fail_of_ours(self) -> None:
        raise ray_route.RouteTimeoutError(waiting_for="another", timeout_s=1.5)

    async def refuse(self) -> None:
        refuse()

    async def refuse_after(self, number: int) -> AsyncIterator[int]:
        for item in range(number):
            yield item
        refuse()

    async def lock(self) -> Any:
        return {"lock": threading.Lock()}

    async def fail_with_a_lock(self) -> None:
        raise LockedError("with a lock")

    async def count(self, number: int) -> AsyncIterator[int]:
        for item in range(number):
            yield item

    async def drip(self, folder: str, number: int) -> AsyncIterator[int]:
        try:
            for item in range(number):
                (Path(folder) / "at").write_text(str(item))
                yield item
        finally:
            (Path(folder) / "closed").touch()

    async def break_off(self, number: int, how: str) -> AsyncIterator[int]:
        for item in range(number):
            yield item
        if how == "exit":
            os._exit(1)
        raise KeyError(how)

    async def lapse_after(self, number: int) -> AsyncIterator[int]:
        for item in range(number):
            yield item
        lapse()
        yield number

    async def lapse(self) -> None:
        lapse()

    def counting(self, number: int) -> Iterator[int]:
        return (item for item in range(number))

    async def wait_for(self, path: str) -> str:
        self.begun.append(path)
        try:
            while not Path(path).exists():  # noqa: ASYNC110, ASYNC240 - a test's signal
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.cancelled.append(path)
            raise
        return path

    async def remaining(self) -> float | None:
        link = ray_route.current_link()
        assert link is not None
        return link.remaining_s

    async def remaining_of_nested(self, handle: Any, uid: str, timeout_s: float | None) -> Any:
        if timeout_s is not None:
            handle = handle.options(timeout_s=timeout_s)
        return await handle[uid].remaining.remote()

    async def three(self) -> int:
        return 3

    async def began(self, path: str) -> bool:
        return path in self.begun

    async def was_cancelled(self, path: str) -> bool:
        return path in self.cancelled


class FailsToStart:
    """Its constructor raises."""

    def __init__(self) -> None:
        raise LookupError("no such model: llama-99")


class SlowToAcquire:
    """Acquires a uid, which is a path, when there is such a file."""

    def __init__(self) -> None:
        self.begun: list[str] = []

    def on_acquire(self, uid: str) -> None:
        if uid == "refused":
            raise ray_route.FencedError(reason="the user says so", may_have_run=False)
        while not Path(uid).exists():
            time.sleep(0.01)

    def count(self, number: int) -> Iterator[int]:
        self.begun.append("count")
        yield from range(number)

    def say(self, text: str) -> list[str]:
        self.begun.append(text)
        return self.begun
