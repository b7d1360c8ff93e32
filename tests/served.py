"""Serve deployments for tests. In a module of their own, so that Serve's replicas can import it."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from typing import Any

from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.generated import serve_pb2
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import StreamingResponse

from ray_route.runtime.metrics import SERVE_STRAYS, meter
from ray_route.serve import current_session, in_session, is_home, replica_agent
from ray_route.serve.statements import Home

Here = dict[str, Any]


def strays_here(_: Any, namespace: str) -> dict[tuple[str, str], int]:
    """Return how many strays this process has counted, by cause and outcome."""
    counts = meter(namespace).counts.items()
    return {labels[1:]: n for (name, labels), n in counts if name == SERVE_STRAYS.name}  # type: ignore[misc]


def believes_next(_: Any, home: Home) -> None:
    """Have this replica's next look-up say that a session lives where it did."""
    (agent,) = replica_agent._agents.values()
    seen = agent._door._seen
    find = seen.find

    async def once(*_: Any) -> Home:
        seen.find = find  # type: ignore[method-assign]
        return home

    seen.find = once  # type: ignore[method-assign]


def sticky(**kwargs: Any) -> RequestRouterConfig:
    return RequestRouterConfig(
        request_router_class="ray_route.serve.StickyRequestRouter", request_router_kwargs=kwargs
    )


@serve.deployment(
    ray_actor_options={"num_cpus": 0},
    graceful_shutdown_wait_loop_s=0.1,
    graceful_shutdown_timeout_s=10,
    health_check_period_s=1,
    max_ongoing_requests=100,
)
class Chat:
    """State per session: how often it was here."""

    def __init__(self) -> None:
        self.replica = serve.get_replica_context().replica_id.unique_id
        self.counts: dict[str, int] = {}

    async def __call__(self, request: Request) -> Here | StreamingResponse:
        body = await request.body()
        if "words" in request.query_params:
            return StreamingResponse(self.words(int(request.query_params["words"])))
        return {**await self.say(), "body": len(body), "path": request.url.path}

    async def say(self, seconds: float = 0.0) -> Here:
        session = current_session() or ""
        self.counts[session] = self.counts.get(session, 0) + 1
        await asyncio.sleep(seconds)
        here = {"replica": self.replica, "count": self.counts[session], "pid": os.getpid()}
        ended_at = time.monotonic()  # of this machine, for all its processes
        return {**here, "session": session, "is_home": is_home(), "ended_at": ended_at}

    async def fail(self) -> None:
        raise KeyError("what the user's code raises")

    async def words(self, number: int, pause_s: float = 0.0) -> AsyncIterator[str]:
        for _ in range(number):
            yield self.replica
            await asyncio.sleep(pause_s)


@serve.deployment(ray_actor_options={"num_cpus": 0}, graceful_shutdown_wait_loop_s=0.1)
class Front:
    """An ingress that calls another deployment."""

    def __init__(self, chat: DeploymentHandle[Any]) -> None:
        self.chat = chat

    async def __call__(self, _: Request) -> Here:
        return await in_session(self.chat).say.remote()

    async def many(self, sessions: list[str | None]) -> list[str]:
        """Make nested calls at once, all from this one request."""
        calls = [
            (self.chat.options(session_id=session) if session else self.chat).say.remote(0.05)
            for session in sessions
        ]
        return [answer["replica"] for answer in await asyncio.gather(*calls)]


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Picker:
    """An ingress request router: HAProxy asks it for the replica of each POST request."""

    def __init__(self, chat: DeploymentHandle[Any]) -> None:
        self.chat = chat
        self.chat._init()

    async def __call__(self, request: Request) -> Here:
        session = request.headers.get("x-session-id", "")
        chat = self.chat.options(session_id=session) if session else self.chat
        async with chat.choose_replica(_reserve=False) as selection:
            replica = selection._replica
            host, port = replica.backend_http_endpoint
            name = replica.replica_id.to_full_id_str()
            return {"host": host, "port": port, "replica_id": name}


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Greeter:
    """Serve's own example of a gRPC service, which says where it was."""

    async def Method1(self, _: Any) -> serve_pb2.UserDefinedResponse:  # noqa: N802 - its name
        replica = serve.get_replica_context().replica_id.unique_id
        return serve_pb2.UserDefinedResponse(
            greeting=json.dumps({"replica": replica, "is_home": is_home()})
        )
