"""A local Ray with the embedded server, links in it, and the peers to compare with."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import hiredis
import ray
import redis

import ray_route
from ray_route.store.connect import Store
from ray_route.store.embedded import EmbeddedServer
from ray_route.store.keys import Keys
from ray_route.store.url import parse_url

SERVICE = "bench"
PODS = 4
_AT_ONCE = 5_000
_LIFE_MS = 3_600_000


class Pod:
    """A service that does nothing."""


@contextmanager
def local_client(namespace: str, **options: Any) -> Iterator[ray_route.RouteClient]:
    """Open a namespace on a Ray of its own, on a server of its own."""
    ray.init("local", num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False)
    try:
        with EmbeddedServer() as server, ray_route.connect(namespace, server.url, **options) as it:
            yield it
            ray.kill(it._session.namespace.router, no_restart=True)
    finally:
        ray.shutdown()


@contextmanager
def deployed(
    client: ray_route.RouteClient,
    cls: type = Pod,
    replicas: int = PODS,
    service: str = SERVICE,
    **options: Any,
) -> Iterator[ray_route.Deployment]:
    """Deploy a service on a local client's own server."""
    with ray_route.deploy(
        cls,
        namespace=client.namespace,
        service=service,
        replicas=replicas,
        redis_url=address(client),
        **options,
    ) as deployment:
        yield deployment


def address(client: ray_route.RouteClient) -> str:
    """Return a client's own URL, for other processes, password included."""
    return _address(client._session.namespace.store)


def store_of(client: ray_route.RouteClient) -> tuple[Store, Keys]:
    """Return what a client reads from."""
    return client._session.namespace.store, client._session.namespace.keys


def plain(store: Store) -> redis.Redis:
    """Open a plain redis-py client, as a user without this library would."""
    return redis.Redis.from_url(_address(store), protocol=2)


def _address(store: Store) -> str:
    host, port = store.url.nodes[0]
    return f"redis://:{store.url.password}@{host}:{port}/0"


def empty(server: EmbeddedServer) -> Store:
    """Open a server that nothing else uses."""
    return Store(parse_url(server.url))


def names(count: int) -> list[str]:
    """Make uids whose order is not that of their storing."""
    return [f"user-{number * 7919 % count}" for number in range(count)]


def fill(store: Store, keys: Keys, uids: Sequence[str]) -> None:
    """Write links as the scripts write them, but faster."""
    incarnation = 1_795_483_922_349_900
    connection = store.pool("").get_connection()
    for start in range(0, len(uids), _AT_ONCE):
        commands = [
            ("SET", keys.link(keys.shard(uid), SERVICE, uid), value, "PX", _LIFE_MS)
            for place, uid in enumerate(uids[start : start + _AT_ONCE], start)
            for value in [f"{place % PODS}:{incarnation + place % PODS}:{incarnation + place}"]
        ]
        connection.send_packed_command([b"".join(map(hiredis.pack_command, commands))])
        for _ in commands:
            connection.read_response()
    store.pool("").release(connection)
    counters = [
        ("SET", keys.counter(shard), f"{2 * incarnation}:1") for shard in range(keys.shards)
    ]
    client = plain(store)
    for words in counters:
        client.execute_command(*words)
    client.close()


def one_by_one(client: redis.Redis, keys: Keys, uids: Sequence[str]) -> dict[int, list[str]]:
    """Read as the reference does: one GET per uid."""
    pods: dict[int, list[str]] = {}
    for uid in uids:
        value = client.get(keys.link(keys.shard(uid), SERVICE, uid))
        if value is not None:
            pods.setdefault(int(value.split(b":", 1)[0]), []).append(uid)
    return pods


def chunked(
    client: redis.Redis, keys: Keys, uids: Sequence[str], size: int = 500
) -> dict[int, list[str]]:
    """Read by MGETs of many in one process, which a single server answers for any keys."""
    pods: dict[int, list[str]] = {}
    for start in range(0, len(uids), size):
        some = uids[start : start + size]
        values = client.mget([keys.link(keys.shard(uid), SERVICE, uid) for uid in some])
        for uid, value in zip(some, values, strict=True):
            if value is not None:
                pods.setdefault(int(value.split(b":", 1)[0]), []).append(uid)
    return pods


class RawSocket:
    """Sends MGETs that were packed before, and counts the bytes that come back."""

    def __init__(self, store: Store, keys: Keys, uids: Sequence[str]) -> None:
        self._pool = store.pool("")
        self._connection = self._pool.get_connection()
        self._requests = [
            hiredis.pack_command(("MGET", *some))
            for start in range(0, len(uids), 500)
            for some in [
                [keys.link(keys.shard(uid), SERVICE, uid) for uid in uids[start : start + 500]]
            ]
        ]
        self._bytes = sum(map(self._reply_size, self._requests))

    def _reply_size(self, request: bytes) -> int:
        self._connection.send_packed_command([request])
        values = self._connection.read_response(disable_decoding=True)
        sizes = [len(f"${len(value)}\r\n") + len(value) + 2 for value in values]
        return len(f"*{len(values)}\r\n") + sum(sizes)

    def read(self) -> None:
        """Read everything once."""
        socket = self._connection._sock
        sender = threading.Thread(target=lambda: [socket.sendall(some) for some in self._requests])
        sender.start()
        buffer, left = memoryview(bytearray(1 << 20)), self._bytes
        while left:
            left -= socket.recv_into(buffer)
        sender.join()

    def close(self) -> None:
        """Give the connection back."""
        self._pool.release(self._connection)
