"""How a client is made: `connect`, and the same awaited."""

from __future__ import annotations

from typing import Any

from ray_route.client.async_client import AsyncRouteClient
from ray_route.client.base import seconds
from ray_route.client.sessions import open_client, open_client_async
from ray_route.client.sync_client import RouteClient
from ray_route.clock import Deadline

# What is wrong is said at once. What is slow is a new Ray: 35 s were seen on a busy machine.
CONNECT_TIMEOUT_S = 120.0


def connect(
    namespace: str,
    redis_url: str | None = None,
    *,
    timeout: float = CONNECT_TIMEOUT_S,
    **options: Any,
) -> RouteClient:
    """Open a namespace, starting Ray, the embedded server and the router where they are missing.

    [Which Ray](howto/which_ray.md) that is: the one that this process has joined, else the one at
    `RAY_ADDRESS`, else what `ray start` has started last on this machine, else your one here in
    which ray_route is used, else a new one.

    Args:
        namespace: must match `[A-Za-z0-9_.-]{1,64}`.
        redis_url: `redis://`, `rediss://`, `redis+cluster://`, `redis+sentinel://` (also
            `rediss+…`); by default `RAY_ROUTE_REDIS_URL`, else an embedded server.
        timeout: seconds for all of this. What has not ended by then goes on in the background,
            and serves a later `connect`.
        options: of `RouteConfig`. The first client of a namespace decides them.

    Raises `InvalidInputError`, `ConfigError` (bad option or URL, wrong password, options other
    than those in force, several Rays to choose from), `UnsafeStoreError`, `RayUnavailableError`,
    `StoreUnavailableError`, `RouteTimeoutError`.

    """
    deadline = Deadline.after(seconds(timeout))
    return open_client(RouteClient, namespace, redis_url, options, deadline)


async def connect_async(
    namespace: str,
    redis_url: str | None = None,
    *,
    timeout: float = CONNECT_TIMEOUT_S,
    **options: Any,
) -> AsyncRouteClient:
    """Do the same as `connect` without blocking the event loop."""
    deadline = Deadline.after(seconds(timeout))
    return await open_client_async(AsyncRouteClient, namespace, redis_url, options, deadline)
