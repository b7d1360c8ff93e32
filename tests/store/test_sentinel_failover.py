"""Sentinel: who it lets in, and what happens when it promotes the replica."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from helpers import eventually
from servers import SentinelServers

from ray_route.clock import Deadline
from ray_route.errors import RouteError, StoreUnavailableError
from ray_route.store.bulk import BulkReader
from ray_route.store.connect import AsyncStore, Store
from ray_route.store.keys import Keys
from ray_route.store.namespaces import open_namespace
from ray_route.store.owner_codes import FAILED
from ray_route.store.scripts import plain_call
from ray_route.store.url import parse_url


@pytest.fixture(scope="module", params=["valkey", "redis"])
def servers(request: pytest.FixtureRequest) -> Iterator[SentinelServers]:
    with SentinelServers(request.param) as running:
        yield running


def chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def test_a_sentinel_with_a_password_lets_nobody_in_without_it(servers: SentinelServers):
    store = Store(parse_url(servers.url_without_sentinel_password))
    with pytest.raises(RouteError) as caught:
        store.one(plain_call("GET", "k"))
    store.close()
    texts = "\n".join(f"{link!s} {link!r}" for link in chain(caught.value))
    assert servers.password not in texts


def test_no_password_is_in_the_store_or_its_url(servers: SentinelServers):
    store = Store(servers.store_url())
    shown = f"{store!r} {store.url!r} {store.url.address}"
    store.close()
    assert servers.password not in shown
    assert servers.sentinel_password not in shown


def test_the_primary_is_found_and_a_replica_is_never_read(servers: SentinelServers, namespace: str):
    store = Store(servers.store_url())
    open_namespace(store, namespace, {})
    assert [info["role"] for info in store.infos()] == ["master"]
    store.close()


def test_a_promoted_replica_takes_the_place_of_its_primary(servers: SentinelServers):
    store = Store(servers.store_url())
    keys = Keys("promotion", 4)
    links = [keys.link(keys.shard(uid), "chat", uid) for uid in ("a", "b", "c")]
    store.run([plain_call("SET", link, "1:7:8") for link in links])
    replica = next(server for server in servers.servers if server is not servers.primary())
    own = Store(parse_url(replica.url))
    eventually(lambda: own.one(plain_call("GET", links[-1])), "the replica has everything")
    own.close()
    servers.primary().stop()
    eventually(lambda: servers.primary() is replica, "the replica is promoted")

    def writes() -> bool:
        try:
            return bool(store.one(plain_call("SET", "after", "1")))
        except StoreUnavailableError:
            return False

    eventually(writes, "the same store writes to the promoted replica")
    reader = BulkReader(store, keys, "chat", [0] * 4)
    owned = reader.read([b"a", b"b", b"c", b"d"], Deadline.after(10))
    assert [code > FAILED for code in owned.codes] == [True, True, True, False]

    async def ask() -> Any:
        asynchronous = AsyncStore(store.url)
        try:
            return await asynchronous.one(plain_call("GET", links[0]))
        finally:
            await asynchronous.close()

    assert asyncio.run(ask()) == b"1:7:8"
    store.close()
