"""Items of a stream: each wait for one has its limit, and no item is lost unsaid."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any

import pytest
import ray

from ray_route.client.feed import Feed, Item
from ray_route.clock import Deadline
from ray_route.errors import RouteTimeoutError


class Ref:
    """A reference of a value that is on its way until it is `there`."""

    def __init__(self) -> None:
        self.there: Future[int] = Future()

    def is_nil(self) -> bool:
        return False

    def future(self) -> Future[int]:
        return self.there


class Generator:
    """Has made one item; more never come."""

    def __init__(self, ref: Ref) -> None:
        self.refs = [ref]

    def _next_sync(self, _: float) -> Ref:
        return self.refs.pop()

    async def _next_async(self, _: float) -> Ref:
        return self.refs.pop()


def get(ref: Ref, timeout: float) -> int:
    if not ref.there.done():
        raise ray.exceptions.GetTimeoutError
    return ref.there.result()


def took(item: Item, timeout_s: float, *, awaited: bool) -> Any:
    deadline = Deadline.after(timeout_s)
    return asyncio.run(item.wait_async(deadline)) if awaited else item.wait(deadline)


@pytest.mark.parametrize("awaited", [False, True])
def test_an_item_that_takes_long_to_fetch_does_not_outlast_the_limit_and_is_not_lost(
    monkeypatch: pytest.MonkeyPatch, awaited: bool
) -> None:
    monkeypatch.setattr(ray, "get", get)
    ref, feed = Ref(), Feed()
    feed.generator = Generator(ref)
    item = Item(feed, "tokens", lambda: False)
    with pytest.raises(RouteTimeoutError, match="an item of tokens to be fetched"):
        took(item, 0.3, awaited=awaited)
    ref.there = Future()  # who gave up has cancelled his own wait for it
    ref.there.set_result(7)
    assert took(item, 30, awaited=awaited) == 7


def test_an_interrupt_just_when_an_item_comes_breaks_the_feed() -> None:
    class Interrupted(Generator):
        def _next_sync(self, _: float) -> Ref:
            raise KeyboardInterrupt

    feed = Feed()
    feed.generator = Interrupted(Ref())
    with pytest.raises(KeyboardInterrupt):
        Item(feed, "tokens", lambda: False).wait(Deadline.after(9))
    assert feed.is_broken
