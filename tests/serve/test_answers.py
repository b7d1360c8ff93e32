"""How a Serve replica answers what it does not run."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc
import pytest
from ray.serve._private.common import RequestMetadata
from ray.serve.grpc_util import RayServegRPCContext

from ray_route.errors import FencedError, PodUnavailableError, RouteError, RouterUnavailableError
from ray_route.serve.answers import Message, answer, code_of_grpc
from ray_route.serve.session_ids import InvalidSessionError

FENCED = FencedError(reason="it lives on replica ü" * 20, may_have_run=False, uid="ann", pod=0)
ANSWERS = [
    (FENCED, 409, grpc.StatusCode.ABORTED),
    (InvalidSessionError(argument="the id", value="x", reason="is bad"), 400, None),
    (RouterUnavailableError(reason="late"), 503, grpc.StatusCode.UNAVAILABLE),
    (PodUnavailableError(reason="gone", may_have_run=True), 503, grpc.StatusCode.UNAVAILABLE),
]


def answered(kind: str, error: RouteError) -> list[Message]:
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    asyncio.run(answer({"type": kind}, send, error))
    return messages


@pytest.mark.parametrize(("error", "status", "_"), ANSWERS)
def test_by_http_it_has_a_status_and_says_why(error: RouteError, status: int, _: Any) -> None:
    start, body = answered("http", error)
    assert start["status"] == status
    assert (b"content-type", b"application/json") in start["headers"]
    assert (b"content-length", str(len(body["body"])).encode()) in start["headers"]
    told = json.loads(body["body"])["error"]
    assert told == {"type": type(error).__name__, "message": str(error)}


@pytest.mark.parametrize(("error", "status", "_"), ANSWERS)
def test_a_web_socket_is_closed_with_a_code(error: RouteError, status: int, _: Any) -> None:
    (close,) = answered("websocket", error)
    assert (close["type"], close["code"]) == ("websocket.close", 4000 + status)
    assert 0 < len(close["reason"].encode()) <= 123, "what a closing frame has room for"


@pytest.mark.parametrize(("error", "_", "code"), [one for one in ANSWERS if one[2] is not None])
def test_by_grpc_it_has_a_code(error: RouteError, _: int, code: grpc.StatusCode) -> None:
    class Context:
        """What Serve copies of a call's context."""

        def __getattr__(self, _: str) -> Any:
            return lambda: ()

    context = RayServegRPCContext(Context())
    code_of_grpc(RequestMetadata("a", "b", grpc_context=context), error)
    assert context.code() == code
    assert context.details() == str(error)
