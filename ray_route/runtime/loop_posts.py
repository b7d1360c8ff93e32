"""The way from threads to an event loop: all that has come meanwhile by one waking of the loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

_Call = Callable[[], object]


class LoopPosts:
    """Has functions called on an event loop. Thread-safe.

    Waking a loop is a write to a socket, and a look at it: 10 µs each time, and the other thread
    has the interpreter meanwhile.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._wake = loop.call_soon_threadsafe
        self._calls: deque[_Call] = deque()
        self._is_woken = False

    def put(self, call: _Call, *, surely: bool = False) -> None:
        """Have a function called soon, behind those that were put before; it must not raise.

        `surely` is for whoever was interrupted in here: the loop may not have been woken.
        """
        self._calls.append(call)  # first: who finds the loop woken has his call seen to
        if surely or not self._is_woken:
            self._is_woken = True
            with suppress(RuntimeError):  # nobody waits on a loop that has been closed
                self._wake(self._take)

    def _take(self) -> None:
        self._is_woken = False
        while self._calls:
            self._calls.popleft()()


_posts: WeakKeyDictionary[asyncio.AbstractEventLoop, LoopPosts] = WeakKeyDictionary()


def posts_here() -> LoopPosts:
    """Return the way to the running event loop."""
    loop = asyncio.get_running_loop()
    posts = _posts.get(loop)
    return _posts.setdefault(loop, LoopPosts(loop)) if posts is None else posts


def wake(waiting: asyncio.Future[None]) -> None:
    """End a wait on the loop, unless it has been given up."""
    if not waiting.done():
        waiting.set_result(None)


async def ended(future: Future[Any], longest_s: float) -> bool:
    """Wait until a thread has settled a future; False if it has not within so many seconds."""
    posts, loop = posts_here(), asyncio.get_running_loop()
    waiting: asyncio.Future[None] = loop.create_future()
    future.add_done_callback(lambda _: posts.put(lambda: wake(waiting)))
    timer = loop.call_later(longest_s, wake, waiting)
    try:
        await waiting
    finally:
        timer.cancel()
    return future.done()
