"""Reading the body of an HTTP request before the user's code does, who gets it whole all the same.

All of this runs on the event loop of the user's code, as what Serve gives to read from does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

Message = dict[str, Any]


class Body:
    """What an HTTP request's code receives: first what has been read, then the rest.

    Args:
        receive: ASGI's, as Serve has made it.

    """

    def __init__(self, receive: Callable[[], Awaitable[Message]]) -> None:
        self._receive = receive
        self._read: list[Message] = []
        self._fetching: asyncio.Task[Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.is_whole = False

    async def read(self, limit: int) -> None:
        """Read up to the end, or until more than `limit` bytes have come."""
        self._begin()
        while not self.is_whole and self.size <= limit:
            message = await self._receive()
            self._read.append(message)
            self.is_whole = not message.get("more_body", False)

    def _begin(self) -> None:
        fetch = getattr(self._receive, "fetch_until_disconnect", None)
        if fetch is not None and self._fetching is None:
            self._loop = asyncio.get_running_loop()
            self._fetching = self._loop.create_task(fetch())

    @property
    def size(self) -> int:
        """The bytes read so far."""
        return sum(len(message.get("body", b"")) for message in self._read)

    @property
    def content(self) -> bytes:
        """What has been read."""
        return b"".join(message.get("body", b"") for message in self._read)

    @property
    def messages(self) -> list[Message]:
        """The messages read."""
        return list(self._read)

    async def __call__(self) -> Message:
        """Return the next message, as ASGI's `receive`."""
        return self._read.pop(0) if self._read else await self._receive()

    def end(self) -> None:
        """Read no more; from any thread."""
        if self._fetching is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._fetching.cancel)
