"""One description of an operation, run in two ways.

An operation is a generator that yields what it waits for and is sent what came. The sync and
the async client run the same generators; only the way they wait differs (psycopg does the same,
and calls it so). Every wait is bounded by the operation's deadline, and says what it waits for.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import ray

from ray_route.clock import Deadline
from ray_route.errors import RayGoneError, RouteError, RouteTimeoutError
from ray_route.runtime.futures import Outcome
from ray_route.runtime.given_up import begin, give_up
from ray_route.runtime.joined_ray import joined_ray
from ray_route.runtime.unseen import leave_behind, seen
from ray_route.store.clients import SOCKET_TIMEOUT_S

T = TypeVar("T")

_LOOK_S = 0.2
_STAY_S = 1.0

# What a store call may take at worst: connecting and every retry timed out.
INLINE_S = 5 * SOCKET_TIMEOUT_S


class Wait(Protocol):
    """Something to wait for, in the calling thread or on the running event loop.

    Both return what came, or raise `RouteTimeoutError` at the deadline.
    """

    def wait(self, deadline: Deadline) -> Any:
        """Wait in the calling thread."""

    async def wait_async(self, deadline: Deadline) -> Any:
        """Wait on the running event loop."""


Check = Callable[[], None]
"""Raises what ends a wait before its deadline."""


def no_check() -> None:
    """Let a wait go on."""


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
    joined: object | None = field(default_factory=joined_ray)

    def _slice_s(self, deadline: Deadline) -> float:
        if joined_ray() is not self.joined:  # asked now, Ray would start another
            raise RayGoneError(what=self.what)
        deadline.check(self.what)
        if self.has_ended is None:
            return min(_STAY_S, deadline.remaining())
        if self.has_ended() and not ray.wait([self.ref], timeout=0)[0]:
            raise LifeEndedError(self.what)
        return min(_LOOK_S, deadline.remaining())

    def wait(self, deadline: Deadline) -> Any:
        """Wait in the calling thread."""
        try:
            return self._got(deadline)
        except ray.exceptions.RayError:
            raise  # an answer, too
        except SystemExit as error:  # what Ray says to who waits while it shuts down
            if self._give_up():
                raise
            raise RayGoneError(what=self.what) from error
        except BaseException:
            self._give_up()
            raise

    def _give_up(self) -> bool:
        """Let go of the reference; say whether this process is still in its Ray.

        What comes later is taken, since Ray complains of errors that nobody saw.
        """
        is_here = joined_ray() is self.joined
        if is_here:
            seen(self.ref)
        else:
            leave_behind(self.ref)
        return is_here

    def _got(self, deadline: Deadline) -> Any:
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
        try:
            while True:
                done, _ = await asyncio.wait({answer}, timeout=slice_s)
                if done:
                    return answer.result()
                slice_s = self._slice_s(deadline)
        finally:
            if answer.cancel():
                self._give_up()
            elif not answer.cancelled():
                answer.exception()  # asyncio, too, complains of an error that nobody saw


class Stage:
    """What a long piece of work is waiting for just now, in words."""

    def __init__(self, what: str) -> None:
        self.what = what


def within(
    deadline: Deadline,
    stage: Stage,
    work: Callable[[], T],
    undo: Callable[[T], object] | None = None,
    *,
    makes: bool = False,
) -> T:
    """Run what may block for longer than its caller has time, in a thread of its own.

    Returns or raises what it does, `RouteTimeoutError` at the deadline, or `RayGoneError` once this
    process has left its Ray. It goes on then, and after an interrupt, to an end of its own: what it
    made is handed to `undo`. No interrupt reaches the work itself. With `makes`, it is `making` all
    the time.
    """
    done: Outcome[T] = Outcome()
    check = staying(stage)
    try:  # and no context manager's `with`: an interrupt on the way out of that would be missed
        begin(done, work, makes=makes)
        return result_of(done, stage, deadline, check)
    except BaseException:
        give_up(done, undo)
        raise


async def within_async(
    deadline: Deadline,
    stage: Stage,
    work: Callable[[], T],
    undo: Callable[[T], object] | None = None,
) -> T:
    """Do as `within`, awaited; also after a cancellation. Takes no thread of the loop's few."""
    done: Outcome[T] = Outcome()
    loop, woken = asyncio.get_running_loop(), asyncio.Event()
    check = staying(stage)

    def wake(_: Future[T]) -> None:
        with contextlib.suppress(RuntimeError):  # nobody waits on a loop that has been closed
            loop.call_soon_threadsafe(woken.set)

    async def result() -> T:
        for slice_s in slices(deadline):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(woken.wait(), slice_s)
            if done.done():
                return done.result()
            check()
        raise late(stage.what, deadline)

    done.add_done_callback(wake)
    try:
        begin(done, work)
        return await result()
    except BaseException:
        give_up(done, undo)
        raise


def result_of(
    future: Future[T], what: str | Stage, deadline: Deadline, check: Check = no_check
) -> T:
    """Wait for a future in the calling thread; `check` raises what ends the wait before."""
    for slice_s in slices(deadline):
        try:
            return future.result(slice_s)
        except concurrent.futures.TimeoutError:
            if future.done():
                return future.result(0)
            check()
    raise late(what.what if isinstance(what, Stage) else what, deadline)


def slices(deadline: Deadline) -> Iterator[float]:
    """Yield the parts of a wait, in seconds, until the deadline; between them others may look."""
    yield min(_LOOK_S, deadline.remaining())
    while deadline.remaining():
        yield min(_STAY_S, deadline.remaining())


def staying(stage: Stage) -> Check:
    """Return what raises `RayGoneError` once this process has left the Ray that it is in now."""
    joined = joined_ray()

    def check() -> None:
        if joined is not None and joined_ray() is not joined:
            raise RayGoneError(what=stage.what)

    return check


def answer_beside(ref: Any, what: str, deadline: Deadline) -> Any:
    """Wait for a Ray call without being in Ray meanwhile; raises what came, or as `within` does.

    For a thread that waits for most of its life. As a program ends Ray frees what threads wait in;
    one that waits there looks at it once more, up to a second later, and may crash the process.
    """
    stage, answer = Stage(what), ref.future()
    try:
        return result_of(answer, stage, deadline, staying(stage))
    except RayGoneError:
        leave_behind(ref, answer)
        raise


class Blocking(NamedTuple):
    """Run a function that blocks: for the store, unless `longest_s` says otherwise."""

    work: Callable[[], Any]
    what: str
    longest_s: float = INLINE_S

    def wait(self, deadline: Deadline) -> Any:
        """Run it here, unless it could outlast the deadline: then a thread does."""
        if deadline.remaining() > self.longest_s:
            return self.work()
        return within(deadline, Stage(self.what), self.work)

    async def wait_async(self, deadline: Deadline) -> Any:
        """Run it in a thread of its own: the loop's few are its user's."""
        return await within_async(deadline, Stage(self.what), self.work)


class Pause(NamedTuple):
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
    finally:
        operation.close()  # now, not when a traceback has been dropped


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
    finally:
        operation.close()  # now, not when a traceback has been dropped
