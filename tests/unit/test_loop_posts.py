"""What threads have done comes to an event loop, all of it, by few wakings."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import Any

from helpers import soon

from ray_route.runtime.loop_posts import LoopPosts, ended, posts_here


def test_nothing_is_lost_between_threads_and_each_ones_order_holds() -> None:
    each, heard = 2_000, []

    async def go() -> None:
        posts = posts_here()
        assert posts_here() is posts

        def put(name: int) -> None:
            for number in range(each):
                posts.put(lambda name=name, number=number: heard.append((name, number)))  # type: ignore[misc]

        threads = [threading.Thread(target=put, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        await soon(lambda: len(heard) == 4 * each, "all have come", 60)
        for thread in threads:
            thread.join()

    asyncio.run(go())
    for name in range(4):
        assert [number for one, number in heard if one == name] == list(range(each))


def test_all_that_comes_before_the_loop_looks_is_one_waking() -> None:
    class Loop:
        wakings = 0

        def call_soon_threadsafe(self, _: Any) -> None:
            self.wakings += 1

    loop: Any = Loop()
    posts = LoopPosts(loop)
    for _ in range(100):
        posts.put(lambda: None)
    assert loop.wakings == 1
    posts._take()
    posts.put(lambda: None)
    assert loop.wakings == 2


def test_a_wait_ends_with_its_future_or_at_its_limit() -> None:
    async def go() -> None:
        never: Future[None] = Future()
        assert not await ended(never, 0.01)
        soon_done: Future[None] = Future()
        threading.Timer(0.01, soon_done.set_result, (None,)).start()
        assert await ended(soon_done, 60)
        assert await ended(soon_done, 60), "and what has ended before is no wait"
        given_up = asyncio.ensure_future(ended(never, 60))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.wait({given_up})
        assert given_up.cancelled()
        never.set_result(None)
        await asyncio.sleep(0)

    asyncio.run(go())
