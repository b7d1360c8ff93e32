"""redis-py's clients of one store, and what their errors mean."""

from __future__ import annotations

import socket
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.cluster import ClusterNode as AsyncClusterNode
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.cluster import ClusterNode
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    RedisClusterException,
    RedisError,
)
from redis.retry import Retry
from redis.sentinel import Sentinel

from ray_route.errors import ConfigError, DamagedKeyError, RouteError, StoreUnavailableError
from ray_route.store.url import StoreUrl

try:
    from redis.driver_info import DriverInfo
except ImportError:  # a redis-py that finds its own version once, when it is imported
    _DRIVER: dict[str, Any] = {}
else:  # others look through all that is installed for each client and each connection: 4 ms
    _DRIVER = {"driver_info": DriverInfo(lib_version=redis.__version__)}

SOCKET_TIMEOUT_S = 2.0
RETRIES = 2
# What stands between, as in clouds, forgets connections that are silent for minutes; the first read
# after that would wait for its time-out. Seconds of silence, between questions, and how many.
_KEEP_ALIVE = {socket.TCP_KEEPIDLE: 20, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}
_BACKOFF = ExponentialWithJitterBackoff(base=0.02, cap=0.3)

_WRONG_TYPE = "WRONGTYPE"  # scripts wrap it

# redis-py's root error for Clusters is not a RedisError.
DRIVER_ERRORS = (RedisError, RedisClusterException, OSError)


# Of one process to one server: as many as it has threads that read. redis-py 8 takes 100, and has
# whoever comes next told that there are too many, as if the store were away.
_MAX_CONNECTIONS = 10_000


def _options(url: StoreUrl, retry: Any) -> dict[str, Any]:
    # RESP2: every server we support speaks it, and replies look the same on all of them.
    return {
        **url.client_options(),
        "socket_timeout": SOCKET_TIMEOUT_S,
        "socket_connect_timeout": SOCKET_TIMEOUT_S,
        "socket_keepalive": True,
        "socket_keepalive_options": _KEEP_ALIVE,
        "max_connections": _MAX_CONNECTIONS,
        "retry": retry,
        "protocol": 2,
        **_DRIVER,
    }


def _sentinel_options(url: StoreUrl, retry: Any) -> dict[str, Any]:
    # No retries of its own: finding the primary is part of a connection, which has some.
    return {
        **url.sentinel_options(),
        "socket_timeout": SOCKET_TIMEOUT_S,
        "socket_connect_timeout": SOCKET_TIMEOUT_S,
        "retry": retry,
        "protocol": 2,
        **_DRIVER,
    }


def sync_client(url: StoreUrl, retries: int) -> Any:
    """Make a blocking client."""
    options = _options(url, Retry(_BACKOFF, retries))
    if url.kind == "cluster":
        nodes = [ClusterNode(host, port) for host, port in url.nodes]
        return redis.RedisCluster(startup_nodes=nodes, **options)
    if url.kind == "sentinel":
        finding = _sentinel_options(url, Retry(NoBackoff(), 0))
        finder = Sentinel(list(url.nodes), sentinel_kwargs=finding)
        return finder.master_for(str(url.service), **options)
    host, port = url.nodes[0]
    return redis.Redis(host=host, port=port, **options)


def async_client(url: StoreUrl) -> Any:
    """Make a client for asyncio."""
    options = _options(url, AsyncRetry(_BACKOFF, RETRIES))
    if url.kind == "cluster":
        nodes = [AsyncClusterNode(host, port) for host, port in url.nodes]
        return redis.asyncio.RedisCluster(startup_nodes=nodes, **options)
    if url.kind == "sentinel":
        finding = _sentinel_options(url, AsyncRetry(NoBackoff(), 0))
        finder = AsyncSentinel(list(url.nodes), sentinel_kwargs=finding)
        return finder.master_for(str(url.service), **options)
    host, port = url.nodes[0]
    return redis.asyncio.Redis(host=host, port=port, **options)


def sentinels_of(client: Any) -> list[Any]:
    """Return the clients of the Sentinels that a client asks; it does not close them itself."""
    manager = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
    return list(manager.sentinels) if manager is not None else []


def translated(url: StoreUrl, error: BaseException, key: str = "") -> RouteError:
    """Say what a driver's error means to the caller. Its text never holds the password.

    `key` is the one that the command was about.
    """
    if key and _WRONG_TYPE in str(error):
        return DamagedKeyError(key=key, reason="a value of another type")
    # redis-py wraps what the nodes of a Cluster said.
    if isinstance(error, AuthenticationError) or isinstance(error.__cause__, AuthenticationError):
        return ConfigError(
            option="redis_url",
            reason=f"{url.address} refused the user name or password ({error})",
        )
    if isinstance(error, NoPermissionError):
        return ConfigError(
            option="redis_url",
            reason=f"the user's ACL at {url.address} lacks a permission ({error})",
        )
    reason = f"{type(error).__name__}: {error}".partition(" : <redis")[0]
    return StoreUnavailableError(address=url.address, reason=reason)
