"""What comes of a stream, item by item, whatever its reader is interrupted by."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

import ray

from ray_route.client.responses import Failed
from ray_route.clock import Deadline
from ray_route.runtime.waiting import LifeEndedError, Remote, late, result_of

_LOOK_S = 0.2


class Feed:
    """What comes from a pod: its generator, and the item that came last, until it is delivered."""

    def __init__(self) -> None:
        self.generator: Any = None
        self.item: Any = None
        """The reference of an item that was taken from the generator, and by nobody yet."""
        self.is_broken = False
        """An item may have been lost, since an interrupt came just when it was taken."""

    def put(self, ref: Any) -> None:
        """Take in what the generator gave: an item, or nothing yet."""
        self.item = None if ref.is_nil() else ref

    def close(self) -> None:
        """Have the generator closed at the pod; dropped, it might run on to its end there."""
        generator = self.generator
        if generator is not None:
            ray.cancel(generator, recursive=False)
            self.generator = None  # not before: whoever was interrupted may close it again


class Sent(NamedTuple):
    """Wait until a stream's call has been sent."""

    sent: Future[Any]
    what: str

    def wait(self, deadline: Deadline) -> None:
        """Wait in the calling thread."""
        if self.sent.done():
            self.sent.result()
        else:
            result_of(self.sent, self.what, deadline)

    async def wait_async(self, deadline: Deadline) -> None:
        """Wait on the running event loop."""
        if not self.sent.done():
            done, _ = await asyncio.wait(
                {asyncio.wrap_future(self.sent)}, timeout=deadline.remaining()
            )
            if not done:
                raise late(self.what, deadline)
        self.sent.result()


class Item(NamedTuple):
    """Wait for the next item of a stream; one that ends without its mark has lost its pod.

    An item stays in the feed until it is delivered: whoever is cancelled has lost none.
    """

    feed: Feed
    what: str
    has_ended: Callable[[], bool]

    def wait(self, deadline: Deadline) -> Any:
        """Wait in the calling thread."""
        while self.feed.item is None:
            self._take()
            self._check(deadline)
        try:
            return self._value().wait(deadline)
        except ray.exceptions.RayTaskError as error:
            return Failed(error)

    async def wait_async(self, deadline: Deadline) -> Any:
        """Wait on the running event loop."""
        while self.feed.item is None:
            await self._take_async()
            self._check(deadline)
        try:
            return await self._value().wait_async(deadline)
        except ray.exceptions.RayTaskError as error:
            return Failed(error)

    def _take(self) -> None:
        try:
            self.feed.put(self.feed.generator._next_sync(_LOOK_S))
        except StopIteration:
            raise self._broke_off() from None
        except (KeyboardInterrupt, SystemExit):
            self.feed.is_broken = True
            raise

    async def _take_async(self) -> None:
        try:
            self.feed.put(await self.feed.generator._next_async(_LOOK_S))
        except StopAsyncIteration:
            raise self._broke_off() from None
        except (KeyboardInterrupt, SystemExit):
            self.feed.is_broken = True
            raise

    def _broke_off(self) -> LifeEndedError:
        return LifeEndedError(f"{self.what}, whose stream broke off")

    def _check(self, deadline: Deadline) -> None:
        """Raise what ends the wait for an item that is not there."""
        if self.feed.item is None:
            deadline.check(f"the next item of {self.what}")
            if self.has_ended():
                raise LifeEndedError(self.what)

    def _value(self) -> Remote:
        # A large one may have a long way to come.
        return Remote(self.feed.item, f"an item of {self.what} to be fetched", self.has_ended)
