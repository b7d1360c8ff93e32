"""Serve deployments for tests. In a module of their own, so that Serve's replicas can import it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request

from ray_route.serve import current_session, in_session

Here = dict[str, Any]


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

    async def __call__(self, _: Request) -> Here:
        return await self.say()

    async def say(self, seconds: float = 0.0) -> Here:
        session = current_session() or ""
        self.counts[session] = self.counts.get(session, 0) + 1
        await asyncio.sleep(seconds)
        return {"replica": self.replica, "count": self.counts[session], "pid": os.getpid()}

    async def words(self, number: int) -> AsyncIterator[str]:
        for _ in range(number):
            yield self.replica


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
