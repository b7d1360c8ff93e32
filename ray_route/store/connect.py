"""Connections to the store, sync and async, and the refusal of unsafe ones.

Both kinds share everything but the line that sends: calls are built elsewhere, sent in one
pipeline, and what Redis can't answer becomes one of our errors here.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.cluster import ClusterNode as AsyncClusterNode
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.backoff import ExponentialWithJitterBackoff
from redis.cluster import ClusterNode
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    NoScriptError,
    RedisError,
)
from redis.retry import Retry
from redis.sentinel import Sentinel

from ray_route.config import RouteConfig
from ray_route.errors import ConfigError, RouteError, StoreUnavailableError, UnsafeStoreError
from ray_route.store.keys import Keys
from ray_route.store.scripts import Call, script_call
from ray_route.store.url import StoreUrl

LAYOUT = 1
SOCKET_TIMEOUT_S = 2.0
_RETRIES = 2
_BACKOFF = ExponentialWithJitterBackoff(base=0.02, cap=0.3)


def _options(url: StoreUrl, retry: Any) -> dict[str, Any]:
    # RESP2: every server we support speaks it, and replies look the same on all of them.
    return {
        **url.client_options(),
        "socket_timeout": SOCKET_TIMEOUT_S,
        "socket_connect_timeout": SOCKET_TIMEOUT_S,
        "retry": retry,
        "protocol": 2,
    }


def _sync_client(url: StoreUrl) -> Any:
    options = _options(url, Retry(_BACKOFF, _RETRIES))
    if url.kind == "cluster":
        nodes = [ClusterNode(host, port) for host, port in url.nodes]
        return redis.RedisCluster(startup_nodes=nodes, **options)
    if url.kind == "sentinel":
        finder = Sentinel(list(url.nodes), socket_timeout=SOCKET_TIMEOUT_S)
        return finder.master_for(str(url.service), **options)
    host, port = url.nodes[0]
    return redis.Redis(host=host, port=port, **options)


def _async_client(url: StoreUrl) -> Any:
    options = _options(url, AsyncRetry(_BACKOFF, _RETRIES))
    if url.kind == "cluster":
        nodes = [AsyncClusterNode(host, port) for host, port in url.nodes]
        return redis.asyncio.RedisCluster(startup_nodes=nodes, **options)
    if url.kind == "sentinel":
        finder = AsyncSentinel(list(url.nodes), socket_timeout=SOCKET_TIMEOUT_S)
        return finder.master_for(str(url.service), **options)
    host, port = url.nodes[0]
    return redis.asyncio.Redis(host=host, port=port, **options)


def _translated(url: StoreUrl, error: BaseException) -> RouteError:
    """Say what a driver's error means to the caller. Its text never holds the password."""
    if isinstance(error, AuthenticationError):
        return ConfigError(
            option="redis_url",
            reason=f"{url.address} refused the user name or password ({error})",
        )
    if isinstance(error, NoPermissionError):
        return ConfigError(
            option="redis_url",
            reason=f"the user's ACL at {url.address} lacks a permission ({error})",
        )
    reason = f"{type(error).__name__}: {error}"
    return StoreUnavailableError(address=url.address, reason=reason)


def _unknown_scripts(calls: Sequence[Call], replies: Sequence[Any]) -> list[int]:
    return [
        index
        for index, reply in enumerate(replies)
        if isinstance(reply, NoScriptError) and calls[index].script is not None
    ]


class Store:
    """A blocking connection pool to one store. Thread-safe.

    Raises `StoreUnavailableError` where Redis does not answer, within `SOCKET_TIMEOUT_S` times
    the few retries, and `ConfigError` where it refuses the credentials or a permission.
    """

    def __init__(self, url: StoreUrl) -> None:
        self.url = url
        try:
            self._client = _sync_client(url)
        except (RedisError, OSError) as error:
            raise _translated(url, error) from error

    def __repr__(self) -> str:
        return f"Store({self.url.address})"

    def run(self, calls: Sequence[Call]) -> list[Any]:
        """Send all calls in one pipeline; return each reply, an error where one failed."""
        try:
            replies = self._send([call.words for call in calls])
            again = _unknown_scripts(calls, replies)
            if again:
                resent = self._send([calls[index].with_source() for index in again])
                for index, reply in zip(again, resent, strict=True):
                    replies[index] = reply
        except (RedisError, OSError) as error:
            raise _translated(self.url, error) from error
        return [self._translate(reply) for reply in replies]

    def _translate(self, reply: Any) -> Any:
        return _translated(self.url, reply) if isinstance(reply, Exception) else reply

    def one(self, call: Call) -> Any:
        """Send one call; return its reply or raise its error."""
        (reply,) = self.run([call])
        if isinstance(reply, RouteError):
            raise reply
        return reply

    def _send(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for words in commands:
            pipeline.execute_command(*words)
        replies: list[Any] = pipeline.execute(raise_on_error=False)
        return replies

    def info(self) -> dict[str, Any]:
        """Read the server's INFO."""
        try:
            info: dict[str, Any] = self._client.info()
        except (RedisError, OSError) as error:
            raise _translated(self.url, error) from error
        return info

    def close(self) -> None:
        """Close all connections."""
        self._client.close()


class AsyncStore:
    """The same as `Store`, awaited. Belongs to one event loop."""

    def __init__(self, url: StoreUrl) -> None:
        self.url = url
        self._client = _async_client(url)

    def __repr__(self) -> str:
        return f"AsyncStore({self.url.address})"

    async def run(self, calls: Sequence[Call]) -> list[Any]:
        """Send all calls in one pipeline; return each reply, an error where one failed."""
        try:
            replies = await self._send([call.words for call in calls])
            again = _unknown_scripts(calls, replies)
            if again:
                resent = await self._send([calls[index].with_source() for index in again])
                for index, reply in zip(again, resent, strict=True):
                    replies[index] = reply
        except (RedisError, OSError) as error:
            raise _translated(self.url, error) from error
        return [
            _translated(self.url, reply) if isinstance(reply, Exception) else reply
            for reply in replies
        ]

    async def one(self, call: Call) -> Any:
        """Send one call; return its reply or raise its error."""
        (reply,) = await self.run([call])
        if isinstance(reply, RouteError):
            raise reply
        return reply

    async def _send(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for words in commands:
            pipeline.execute_command(*words)
        replies: list[Any] = await pipeline.execute(raise_on_error=False)
        return replies

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()


def open_namespace(store: Store, namespace: str, config: RouteConfig) -> tuple[Keys, str]:
    """Refuse an unsafe store, fix the namespace's layout at first use, and return its id.

    Raises `UnsafeStoreError` for a server that could lose or refuse links, or that holds this
    namespace in another layout; `ConfigError` for another shard count. Nothing is written to an
    unsafe server.
    """
    check_safe(store.url.address, store.info())
    keys = Keys(namespace, config.shards)
    args = [LAYOUT, config.shards, uuid.uuid4().hex]
    layout, shards, name = store.one(script_call("open_namespace", [keys.meta], args))
    if int(layout) != LAYOUT:
        raise UnsafeStoreError(
            address=store.url.address,
            reason=f"namespace {namespace!r} has data layout {int(layout)}, not {LAYOUT}",
            fix="use the ray_route version that wrote it, or another namespace",
        )
    if int(shards) != config.shards:
        raise ConfigError(
            option="shards",
            reason=f"the namespace has {int(shards)} shards for ever, not {config.shards}",
            namespace=namespace,
        )
    return keys, name.decode()


def check_safe(address: str, info: dict[str, Any]) -> None:
    """Raise `UnsafeStoreError` if a server with this INFO would lose or refuse links.

    INFO says it all and is allowed where CONFIG is not, as on managed servers.
    """

    def refuse(reason: str, fix: str) -> None:
        raise UnsafeStoreError(address=address, reason=reason, fix=fix)

    version = str(info.get("redis_version", "0"))
    major, minor = (int(part) for part in re.findall(r"\d+", f"{version}.0")[:2])
    if (major, minor) < (6, 2):
        refuse(f"it is Redis {version}", "upgrade to Redis 6.2 or Valkey 7.2 at least")
    if info.get("role") != "master":
        refuse("it is a read-only replica", "connect to its primary, or through Sentinel")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        refuse(
            f"its eviction policy {policy} may evict links", "set maxmemory-policy to noeviction"
        )
