"""How a request that is not run is answered, by HTTP, web socket and gRPC."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import grpc  # type: ignore[import-untyped]

from ray_route.errors import FencedError, RouteError
from ray_route.serve.session_ids import InvalidSessionError

Message = dict[str, Any]
Send = Callable[[Message], Awaitable[None]]

BAD_REQUEST, CONFLICT, UNAVAILABLE = 400, 409, 503
_CLOSE = 4000  # the first of the codes of web sockets that are free for anybody's use
_REASON_BYTES = 123


def status(error: RouteError) -> int:
    """Return the HTTP status: 400 bad id, 409 it lives elsewhere, 503 its home is not known."""
    if isinstance(error, InvalidSessionError):
        return BAD_REQUEST
    return CONFLICT if isinstance(error, FencedError) else UNAVAILABLE


async def answer(scope: Any, send: Send, error: RouteError) -> None:
    """Answer a request of which nothing has been answered yet."""
    if scope["type"] == "websocket":
        reason = str(error).encode()[:_REASON_BYTES].decode(errors="ignore")
        code = _CLOSE + status(error)
        await send({"type": "websocket.close", "code": code, "reason": reason})
        return
    told = {"error": {"type": type(error).__name__, "message": str(error)}}
    body = json.dumps(told).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status(error), "headers": headers})
    await send({"type": "http.response.body", "body": body})


def code_of_grpc(metadata: Any, error: RouteError) -> None:
    """Have Serve answer a gRPC request with what the error means."""
    fenced = isinstance(error, FencedError)
    metadata.grpc_context.set_code(
        grpc.StatusCode.ABORTED if fenced else grpc.StatusCode.UNAVAILABLE
    )
    metadata.grpc_context.set_details(str(error))
