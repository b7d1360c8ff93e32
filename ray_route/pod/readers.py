"""What a stream's reader owes its pod: to take items, and to end the stream that it has read.

A reader's process may be frozen, or cut off, and sees to neither then.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any
from weakref import WeakSet

from ray_route.clock import now
from ray_route.errors import RouteTimeoutError
from ray_route.pod import streams, turn_calls
from ray_route.pod.methods import raised, sendable
from ray_route.protocol.calls import UNREAD_S, Header, Refused

_LOOK_S = 1.0
# Its reader's process, where it runs, closes the stream before, and says so.
LEFT_S = 1.25 * UNREAD_S


class _Reader:
    """How long the reader of one stream has taken nothing; closes the stream, at most once."""

    def __init__(self, close: Callable[[], object]) -> None:
        self._close = close
        self._since = math.inf
        self._lock = threading.Lock()
        self.is_left = False
        """The stream is being closed: nothing more is to be asked of it."""

    def is_given(self) -> None:
        """Take in that it has been given an item, and asks for the next when it has taken some."""
        self._since = now()

    def asks(self) -> bool:
        """Take in that it asks for the next item; False if its stream is closed."""
        with self._lock:
            self._since = math.inf
            return not self.is_left

    def look(self) -> None:
        """Close the stream if its reader has taken nothing for long."""
        with self._lock:
            if self.is_left or now() < self._since + LEFT_S:
                return
            self.is_left = True
            try:
                self._close()
            except RuntimeError:  # the system has no more threads for us, now: at the next look
                self.is_left = False


def _unread(header: Header) -> Refused:
    what = f"an item of {header[3]} to be taken: its pod has closed the stream"
    late = RouteTimeoutError(waiting_for=what, timeout_s=LEFT_S, may_have_run=True, uid=header[0])
    return Refused(late)


# In threads.


class _Watch:
    """Looks at the readers of all streams of a process, in a thread that begins with the first."""

    def __init__(self) -> None:
        # Weak: a stream that was interrupted as it ended may not have dropped its own.
        self._readers: WeakSet[_Reader] = WeakSet()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, reader: _Reader) -> None:
        """Look at a reader now and then, until `drop`."""
        with self._lock:
            self._readers.add(reader)
            if self._thread is None:
                name = "ray_route-readers"
                thread = threading.Thread(target=self._run, name=name, daemon=True)
                thread.start()
                self._thread = thread  # not before: whoever begins it may be interrupted

    def drop(self, reader: _Reader) -> None:
        """Look at it no more."""
        with self._lock:
            self._readers.discard(reader)

    def _run(self) -> None:
        pause = threading.Event()
        while not pause.wait(_LOOK_S):
            self._look()

    def _look(self) -> None:
        with self._lock:
            some = list(self._readers)
        for reader in some:
            reader.look()


_watch = _Watch()


def stream(pod: Any, header: Header, /, *args: Any, **kwargs: Any) -> Iterator[Any]:
    """Do as `streams.stream`, and close it once its reader takes nothing for long.

    The uid is free for others then; the thread that serves the stream stays with Ray until the
    reader's process wakes, or has ended.
    """
    items: Any = streams.stream(pod, header, *args, **kwargs)

    def close() -> None:  # which may wait for the user's code
        threading.Thread(target=items.close, name="ray_route-unread", daemon=True).start()

    reader = _Reader(close)
    try:
        _watch.add(reader)
        for item in items:
            reader.is_given()
            yield item
            if not reader.asks():
                yield _unread(header)
                return
    finally:
        try:
            _watch.drop(reader)
        finally:
            if not reader.is_left:
                items.close()


# On an event loop.


async def stream_async(
    pod: Any, header: Header, /, *args: Any, **kwargs: Any
) -> AsyncGenerator[Any, None]:
    """Do the same as `streams.stream_async`; see `_read`."""
    items = _read(pod, header, streams.stream_async(pod, header, *args, **kwargs))
    try:
        async for item in items:
            yield item
    finally:
        await items.aclose()


async def stream_in_turns(
    pod: Any, header: Header, /, *args: Any, **kwargs: Any
) -> AsyncGenerator[Any, None]:
    """Do the same as a stream whose uid has turns; see `_read`."""
    items = _read(pod, header, pod._ray_route_turns.stream(header, args, kwargs))
    try:
        async for item in items:
            yield item
    finally:
        await items.aclose()


async def _read(pod: Any, header: Header, items: Any) -> AsyncGenerator[Any, None]:
    """Yield the items; come to no end before the reader has ended the stream.

    Where a stream ends by itself Ray waits, on the loop, until the reader's process has answered
    for each item: with one that is frozen or cut off no call of the pod would ever run again. A
    stream that is cancelled it lets go, and so readers do with each that they have read to its end.
    So its errors are items, too.
    """
    closing: list[asyncio.Task[None]] = []
    loop = asyncio.get_running_loop()
    reader = _Reader(lambda: closing.append(loop.create_task(items.aclose())))
    watching = loop.create_task(_look_on(reader))
    try:
        async for item in items:
            reader.is_given()
            yield item
            if not reader.asks():
                yield _unread(header)
                break
    except Exception as error:  # noqa: BLE001 - the user's own
        yield sendable(raised(pod, header[3], error), header[3])
    finally:
        watching.cancel()
        if not reader.is_left:
            await items.aclose()
    await asyncio.sleep(LEFT_S)
    raise asyncio.CancelledError


async def _look_on(reader: _Reader) -> None:
    while not reader.is_left:
        await asyncio.sleep(_LOOK_S)
        reader.look()


WATCHED: dict[Any, Any] = {
    streams.stream: stream,
    streams.stream_async: stream_async,
    turn_calls.METHODS["_ray_route_stream"]: stream_in_turns,
}
"""What a pod that is an actor has in the place of each way to stream."""
