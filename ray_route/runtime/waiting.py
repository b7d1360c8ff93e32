"""One description of an operation, run in two ways.

An operation is a generator that yields what it waits for and is sent what came. The sync and
the async client run the same generators; only the way they wait differs (psycopg does the same,
and calls it so). Every wait is bounded by the operation's deadline, and says what it waits for.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import ray

from ray_route.clock import Deadline
from ray_route.errors import RouteError, RouteTimeoutError
from ray_route.store.clients import SOCKET_TIMEOUT_S

T = TypeVar("T")

_LOOK_S = 0.2

# What a store call may take at worst: connecting and every retry timed out.
_INLINE_S = 5 * SOCKET_TIMEOUT_S


class Wait(Protocol):
    """Something to wait for, in the calling thread or on the running event loop.

    Both return what came, or raise `RouteTimeoutError` at the deadline.
    """

    def wait(self, deadline: Deadline) -> Any:
        """Wait in the calling thread."""

    async def wait_async(self, deadline: Deadline) -> Any:
        """Wait on the running event loop."""


def late(what: str, deadline: Deadline) -> RouteTimeoutError:
    """Make the error of a wait that was longer than its deadline."""
    return RouteTimeoutError(waiting_for=what, timeout_s=deadline.timeout_s)


class LifeEndedError(Exception):
    """The process that was to answer is known to have ended."""


@dataclass(frozen=True, slots=True)
class Remote:
    """Wait for a Ray call.

    `has_ended` tells whether the callee's process is known to have ended. It is asked a few
    times a second: Ray needs a second to fail a call on an actor that it restarts.
    """

    ref: Any
    what: str
    has_ended: Callable[[], bool] | None = None

    def _slice_s(self, deadline: Deadline) -> float:
        deadline.check(self.what)
        if self.has_ended is None:
            return deadline.remaining()
        if self.has_ended() and not ray.wait([self.ref], timeout=0)[0]:
            raise LifeEndedError(self.what)
        return min(_LOOK_S, deadline.remaining())

    def wait(self, deadline: Deadline) -> Any:
        """Wait in the calling thread."""
        slice_s = min(_LOOK_S, deadline.remaining())
        while True:
            try:
                return ray.get(self.ref, timeout=slice_s)
            except ray.exceptions.GetTimeoutError as error:
                if isinstance(error, ray.exceptions.RayTaskError):
                    raise  # the callee's own
                slice_s = self._slice_s(deadline)

    async def wait_async(self, deadline: Deadline) -> Any:
        """Wait on the running event loop."""
        answer = asyncio.wrap_future(self.ref.future())
        slice_s = min(_LOOK_S, deadline.remaining())
        while True:
            done, _ = await asyncio.wait({answer}, timeout=slice_s)
            if done:
                return answer.result()
            slice_s = self._slice_s(deadline)


def result_of(future: Future[Any], what: str, deadline: Deadline) -> Any:
    """Wait for a future in the calling thread."""
    try:
        return future.result(deadline.remaining())
    except concurrent.futures.TimeoutError:
        if future.done():
            return future.result(0)
        raise late(what, deadline) from None


@dataclass(frozen=True, slots=True)
class Blocking:
    """Run a function that blocks for the store."""

    work: Callable[[], Any]
    what: str

    def wait(self, deadline: Deadline) -> Any:
        """Run it here, unless it could outlast the deadline: then a thread does."""
        if deadline.remaining() > _INLINE_S:
            return self.work()
        pool = concurrent.futures.ThreadPoolExecutor(1)
        try:
            return result_of(pool.submit(self.work), self.what, deadline)
        finally:
            pool.shutdown(wait=False)

    async def wait_async(self, deadline: Deadline) -> Any:
        """Run it in a thread of the loop's pool."""
        try:
            return await asyncio.wait_for(asyncio.to_thread(self.work), deadline.remaining())
        except asyncio.TimeoutError:
            raise late(self.what, deadline) from None


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait a while before the next attempt."""

    seconds: float
    what: str

    def wait(self, deadline: Deadline) -> None:
        """Sleep in the calling thread."""
        deadline.check(self.what)
        time.sleep(min(self.seconds, deadline.remaining()))

    async def wait_async(self, deadline: Deadline) -> None:
        """Sleep on the running event loop."""
        deadline.check(self.what)
        await asyncio.sleep(min(self.seconds, deadline.remaining()))


@dataclass(frozen=True, slots=True)
class TheDeadline:
    """Wait for nothing; what comes is the operation's deadline."""

    def wait(self, deadline: Deadline) -> Deadline:
        """Return it."""
        return deadline

    async def wait_async(self, deadline: Deadline) -> Deadline:
        """Return it."""
        return deadline


Operation = Generator[Wait, Any, T]


def name_of(operation: Operation[Any]) -> str:
    """Return the name of the function that describes an operation."""
    return str(operation.__name__)  # type: ignore[attr-defined] # every generator has one


def _unwrapped(error: Exception) -> Exception:
    """Return our own error from within the wrapper that Ray puts around a task's errors."""
    if isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, RouteError):
        return error.cause
    return error


def run(operation: Operation[T], deadline: Deadline) -> T:
    """Run an operation in the calling thread."""
    outcome: Any = None
    try:
        wait = next(operation)
        while True:
            try:
                outcome = wait.wait(deadline)
            except Exception as error:  # noqa: BLE001 - the operation decides
                wait = operation.throw(_unwrapped(error))
            else:
                wait = operation.send(outcome)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


async def run_async(operation: Operation[T], deadline: Deadline) -> T:
    """Run an operation on the running event loop."""
    outcome: Any = None
    try:
        wait = next(operation)
        while True:
            try:
                outcome = await wait.wait_async(deadline)
            except Exception as error:  # noqa: BLE001 - the operation decides
                wait = operation.throw(_unwrapped(error))
            else:
                wait = operation.send(outcome)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
