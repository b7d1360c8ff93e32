"""Threads for user code that is no coroutine, in a pod whose calls are coroutines."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

AT_ONCE = 16


class UserThreads:
    """Runs functions beside the event loop, so many at a time; those within another call, always.

    For what that call waits for must not wait for its thread.
    """

    def __init__(self, at_once: int) -> None:
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="ray_route-call")

    async def run(self, function: Callable[[], Any], *, is_within: bool = False) -> Any:
        """Return what a function returns, or raise what it raises, in the caller's context.

        Cancelled, a function that has not begun does not; any other is waited for to its end, for
        it can't be ended, and nothing must run beside it.
        """
        context = contextvars.copy_context()
        ran: _Ran = Future()
        work = partial(context.run, _outcome, ran, function)
        if is_within:
            threading.Thread(target=work, name="ray_route-within", daemon=True).start()
        else:
            self._pool.submit(work)
        result, error = await _to_its_end(ran)
        if error is not None:
            raise error
        return result


_Ran = Future[tuple[Any, BaseException | None]]


def _outcome(ran: _Ran, function: Callable[[], Any]) -> None:
    """Run a function, and tell whoever waits, whatever is raised in this thread, at any line."""
    try:
        if ran.set_running_or_notify_cancel():
            ran.set_result(_result(function))
    except BaseException as error:  # noqa: BLE001 - whoever waits gets it
        if not ran.done():
            ran.set_result((None, error))


def _result(function: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """Return a result, or an error: a future can't raise `StopIteration`."""
    try:
        return function(), None
    except BaseException as error:  # noqa: BLE001 - the user's own
        return None, error


async def _to_its_end(ran: Future[Any]) -> Any:
    waiting = asyncio.wrap_future(ran)
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:
        while not (ran.cancel() or ran.done()):
            try:
                await asyncio.wait({waiting})
            except asyncio.CancelledError:  # once more
                continue
        raise


def in_thread(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a function in a thread that no event loop runs in; wait for it here."""
    with ThreadPoolExecutor(1) as one:
        return one.submit(function, *args, **kwargs).result()
