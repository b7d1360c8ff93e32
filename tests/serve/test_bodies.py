"""A body that was read before the user's code arrives there whole, by either of Serve's readers."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from ray.serve._private.common import RequestMetadata
from ray.serve._private.direct_ingress_http_util import ASGIDIReceiveProxy
from ray.serve._private.http_util import ASGIReceiveProxy

from ray_route.serve.bodies import Body, Message

SCOPE = {"type": "http"}
PIECES = [b"ab" * 50, b"", b"c" * 10]
MESSAGES: list[Message] = [
    {"type": "http.request", "body": piece, "more_body": piece is not PIECES[-1]}
    for piece in PIECES
]
GONE = {"type": "http.disconnect"}
Receive = Callable[[], Awaitable[Message]]


def by_proxy() -> Receive:
    """Read as from Serve's proxy, which ends what it knows no more."""
    waiting = [pickle.dumps([message]) for message in MESSAGES]

    async def ask(_: RequestMetadata) -> bytes:
        if not waiting:
            raise KeyError("the request is over")
        return waiting.pop(0)

    return ASGIReceiveProxy(SCOPE, RequestMetadata("a", "b"), ask)


def by_direct_ingress() -> Receive:
    """Read as from a replica's own server."""
    waiting = [*MESSAGES, GONE]

    async def receive() -> Message:
        return waiting.pop(0)

    proxy = ASGIDIReceiveProxy(SCOPE, receive, asyncio.get_running_loop())
    proxy.task = proxy.fetch_until_disconnect_task()  # as Serve does, before anything is read
    return proxy


def by_server() -> Receive:
    """Read straight from the server, where Serve watches for no end."""
    waiting = [*MESSAGES, GONE]

    async def receive() -> Message:
        return waiting.pop(0)

    return receive


WAYS = [by_proxy, by_direct_ingress, by_server]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("limit", [0, 50, 105, 1_000])
def test_what_was_read_comes_first_and_then_the_rest(way: Callable[[], Any], limit: int) -> None:
    async def scene() -> None:
        body = Body(way())
        await body.read(limit)
        assert body.is_whole == (limit >= 100)
        assert b"".join(PIECES).startswith(body.content)
        assert body.size == len(body.content) > 0
        received = [await body() for _ in range(4)]
        assert received == [*MESSAGES, GONE]
        body.end()

    asyncio.run(asyncio.wait_for(scene(), 20))


@pytest.mark.parametrize("way", WAYS)
def test_a_body_that_nobody_has_read_is_left_alone(way: Callable[[], Any]) -> None:
    async def scene() -> None:
        body = Body(way())
        assert (body.messages, body.content, body.is_whole) == ([], b"", False)
        body.end()

    asyncio.run(scene())


def test_reading_goes_on_where_it_was_left() -> None:
    async def scene() -> None:
        body = Body(by_proxy())
        await body.read(10)
        await body.read(1_000)
        assert body.content == b"".join(PIECES)
        assert body.messages == MESSAGES
        body.end()

    asyncio.run(asyncio.wait_for(scene(), 20))
