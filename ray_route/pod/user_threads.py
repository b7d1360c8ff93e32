"""Threads for user code that is no coroutine, in a pod whose calls are coroutines."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from ray_route.runtime.loop_posts import posts_here, wake
from ray_route.runtime.threads import Threads

AT_ONCE = 16

_RAYS_LOGGER = "ray._private.worker"


class UserThreads:
    """Runs functions beside the event loop, so many at a time; those within another call, always.

    For what that call waits for must not wait for its thread.
    """

    def __init__(self, at_once: int) -> None:
        self._pool = Threads(at_once, "ray_route-call")

    async def run(self, function: Callable[[], Any], *, is_within: bool = False) -> Any:
        """Return what a function returns, or raise what it raises, in the caller's context.

        Cancelled, a function that has not begun does not; any other is waited for to its end, for
        it can't be ended, and nothing must run beside it.
        """
        work = _Work(function)
        if is_within:
            threading.Thread(target=work.run, name="ray_route-within", daemon=True).start()
        else:
            self._pool.begin(work.run)
        await work.end()
        if work.error is not None:
            raise work.error
        return work.result


class _Work:
    """A function that a thread is to run, and who waits for it on the running event loop."""

    __slots__ = (
        "_chance",
        "_context",
        "_function",
        "_is_over",
        "_posts",
        "_waiting",
        "error",
        "result",
    )

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._context = contextvars.copy_context()
        self._posts = posts_here()
        self._waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._chance = [None]
        """Whoever takes what is in it decides: that it runs, or that it never does."""
        self._is_over = False
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """Run it, unless it was given up before; tell whoever waits, whatever is raised here."""
        try:
            self._run()
            self._posts.put(self._has_run)
        except BaseException as error:  # noqa: BLE001 - raised in this thread, at whatever line
            self.error = self.error or error
            self._posts.put(self._has_run, surely=True)

    def _run(self) -> None:
        try:
            if self._is_taken():
                self.result = self._context.run(self._function)
        except BaseException as error:  # noqa: BLE001 - whoever waits gets it
            self.error = error

    def _has_run(self) -> None:
        self._is_over = True
        wake(self._waiting)

    def _is_taken(self) -> bool:
        try:
            self._chance.pop()
        except IndexError:
            return False
        return True

    async def end(self) -> None:
        """Wait until it has ended, or has been given up; raise the cancellation of the wait."""
        try:
            await self._waiting
        except asyncio.CancelledError:
            if not self._is_taken():
                await self._end_for_certain()
            raise

    async def _end_for_certain(self) -> None:
        while not self._is_over:
            self._waiting = asyncio.get_running_loop().create_future()
            with suppress(asyncio.CancelledError):  # once more
                await self._waiting


class _BlocksItsLoop(logging.Filter):
    """Lets Ray's warning of a blocking `ray.get` through on an event loop alone.

    Ray gives it in any thread of an actor that has a loop, and the pod's own may block.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        return "blocking ray.get" not in record.getMessage() or _on_loop()


def _on_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def warn_on_loops_alone() -> None:
    """Have Ray warn of a `ray.get` that blocks where it blocks an event loop."""
    logging.getLogger(_RAYS_LOGGER).addFilter(_BlocksItsLoop())


def in_thread(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a function in a thread that no event loop runs in; wait for it here."""
    with ThreadPoolExecutor(1) as one:
        return one.submit(function, *args, **kwargs).result()
