"""Stores that are refused, and stores that don't answer."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import eventually

from ray_route.errors import ConfigError, RouteError, StoreUnavailableError, UnsafeStoreError
from ray_route.store import clients
from ray_route.store.connect import AsyncStore, Store
from ray_route.store.embedded import EmbeddedServer, free_port
from ray_route.store.namespaces import open_namespace
from ray_route.store.scripts import Call, plain_call
from ray_route.store.url import StoreUrl, parse_url

PING = Call("", ("PING",))
SECRET = "never-show-this-pw"


def _sync(url: StoreUrl) -> Any:
    store = Store(url)
    try:
        return store.one(PING)
    finally:
        store.close()


def _async(url: StoreUrl) -> Any:
    async def ping() -> Any:
        store = AsyncStore(url)
        try:
            return await store.one(PING)
        finally:
            await store.close()

    return asyncio.run(ping())


both = pytest.mark.parametrize("ping", [_sync, _async], ids=["sync", "async"])
Ping = Callable[[StoreUrl], Any]


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and all that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def texts(error: BaseException) -> str:
    return "\n".join(f"{link!s} {link!r}" for link in chain(error))


@both
def test_a_store_answers_through_its_url(server: EmbeddedServer, ping: Ping):
    assert ping(parse_url(server.url)) in (b"PONG", True)


@both
@pytest.mark.parametrize("credentials", [f":{SECRET}", f"somebody:{SECRET}"])
def test_a_wrong_password_is_a_config_error_without_the_password(
    server: EmbeddedServer, ping: Ping, credentials: str
):
    url = parse_url(f"redis://{credentials}@127.0.0.1:{server.port}/0")
    with pytest.raises(ConfigError) as caught:
        ping(url)
    assert caught.value.option == "redis_url"
    assert str(server.port) in str(caught.value)
    assert SECRET not in texts(caught.value)


@both
def test_a_missing_password_is_a_config_error(server: EmbeddedServer, ping: Ping):
    with pytest.raises(ConfigError):
        ping(parse_url(f"redis://127.0.0.1:{server.port}/0"))


@both
def test_a_right_password_is_in_no_error_and_no_repr(ping: Ping):
    url = parse_url(f"redis://:{SECRET}@127.0.0.1:{free_port()}/0")
    with pytest.raises(StoreUnavailableError) as caught:
        ping(url)
    assert SECRET not in texts(caught.value)
    assert SECRET not in repr(Store(url))
    assert SECRET not in repr(AsyncStore(url))


@both
def test_a_port_where_nobody_listens_is_unavailable_within_seconds(ping: Ping):
    port = free_port()
    begun = time.monotonic()
    with pytest.raises(StoreUnavailableError) as caught:
        ping(parse_url(f"redis://:pw@127.0.0.1:{port}/0"))
    assert time.monotonic() - begun < 5
    assert caught.value.address == f"127.0.0.1:{port}"
    assert f"127.0.0.1:{port}" in str(caught.value)


@both
def test_a_cluster_that_is_down_is_unavailable_too(ping: Ping):
    # redis-py's errors about Clusters are none of its RedisErrors.
    port = free_port()
    with pytest.raises(StoreUnavailableError) as caught:
        ping(parse_url(f"redis+cluster://:{SECRET}@127.0.0.1:{port}"))
    assert caught.value.address == f"127.0.0.1:{port}"
    assert SECRET not in texts(caught.value)


@both
def test_a_server_that_accepts_and_never_answers_is_unavailable_within_its_timeout(
    ping: Ping, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(clients, "SOCKET_TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        begun = time.monotonic()
        with pytest.raises(StoreUnavailableError, match="Timeout"):
            ping(parse_url(f"redis://127.0.0.1:{mute.getsockname()[1]}/0"))
    assert time.monotonic() - begun < 3


def test_a_store_works_again_after_its_server_was_away():
    with EmbeddedServer() as away:
        store = Store(parse_url(away.url))
        store.one(PING)
        away.stop()
        with pytest.raises(StoreUnavailableError):
            store.one(PING)
        away.start()

        def answers() -> bool:
            with contextlib.suppress(StoreUnavailableError):
                return bool(store.one(PING))
            return False

        eventually(answers, "the circuit's next look")
        store.close()


def test_a_user_without_the_needed_permissions_is_a_config_error_without_its_name(store: Store):
    store.one(Call("", ("ACL", "SETUSER", "limited", "on", f">{SECRET}", "+ping", "~*")))
    host, port = store.url.nodes[0]
    limited = Store(parse_url(f"redis://limited:{SECRET}@{host}:{port}/0"))
    with pytest.raises(ConfigError) as caught:
        limited.one(plain_call("GET", "k"))
    limited.close()
    store.one(Call("", ("ACL", "DELUSER", "limited")))
    assert SECRET not in texts(caught.value)


def refusal(server: EmbeddedServer) -> UnsafeStoreError:
    """Open a namespace, which must be refused, having written nothing."""
    store = Store(parse_url(server.url))
    with pytest.raises(UnsafeStoreError) as caught:
        open_namespace(store, "refused", {})
    assert store.one(Call("", ("KEYS", "*refused*"))) == []
    store.close()
    assert caught.value.address == f"127.0.0.1:{server.port}"
    assert caught.value.fix in str(caught.value)
    return caught.value


@pytest.mark.parametrize("flavor", ["valkey", "redis"])
@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_a_server_that_may_evict_links_is_refused(flavor: str, policy: str):
    with EmbeddedServer(flavor, settings=(f"maxmemory-policy {policy}",)) as evicting:
        error = refusal(evicting)
    assert policy in error.reason
    assert "noeviction" in error.fix


def test_a_replica_is_refused(server: EmbeddedServer):
    settings = (f"replicaof 127.0.0.1 {server.port}", f"masterauth {server.password}")
    with EmbeddedServer(server.flavor, settings=settings) as replica:
        error = refusal(replica)
    assert "replica" in error.reason
    assert "primary" in error.fix


def test_a_server_that_forbids_config_is_judged_by_its_info(store: Store, namespace: str):
    store.one(Call("", ("ACL", "SETUSER", "managed", "on", ">pw", "~*", "+@all", "-config")))
    host, port = store.url.nodes[0]
    managed = Store(parse_url(f"redis://managed:pw@{host}:{port}/0"))
    try:
        open_namespace(managed, namespace, {})
    finally:
        managed.close()
        store.one(Call("", ("ACL", "DELUSER", "managed")))


def test_an_unreachable_store_is_unavailable_and_not_unsafe():
    store = Store(parse_url(f"redis://127.0.0.1:{free_port()}/0"))
    with pytest.raises(StoreUnavailableError):
        open_namespace(store, "n", {})


def test_every_error_of_a_pipeline_is_one_of_ours(store: Store):
    replies = store.run([PING, Call("", ("NO-SUCH-COMMAND",)), PING])
    assert isinstance(replies[1], RouteError)
    assert replies[0] == replies[2]


def test_a_server_ends_with_its_context():
    with EmbeddedServer() as ended:
        url = parse_url(ended.url)
        _sync(url)
    with pytest.raises(StoreUnavailableError):
        _sync(url)


@pytest.mark.parametrize("flavor", ["valkey", "redis"])
@pytest.mark.parametrize("keeps", [True, False])
def test_a_killed_server_keeps_its_data_only_in_a_folder(tmp_path: Path, flavor: str, keeps):
    with EmbeddedServer(flavor, folder=tmp_path if keeps else None) as server:
        store = Store(parse_url(server.url))
        store.one(plain_call("SET", "k", "v"))
        server.stop()
        server.start()
        assert store.one(plain_call("GET", "k")) == (b"v" if keeps else None)
        store.close()


def test_a_server_that_can_not_start_says_why():
    with pytest.raises(StoreUnavailableError, match="no-such-setting"):
        EmbeddedServer(settings=("no-such-setting 1",)).start()


def test_the_password_of_a_server_is_not_in_its_repr_or_its_command_line(server: EmbeddedServer):
    assert server.password not in repr(server)
    command_line = Path(f"/proc/{server.pid}/cmdline").read_bytes()
    assert b"server" in command_line
    assert server.password.encode() not in command_line


def test_hundreds_of_threads_of_a_process_are_not_too_many(server: EmbeddedServer) -> None:
    client = clients.sync_client(parse_url(server.url), 0)
    taken = [client.connection_pool.get_connection() for _ in range(300)]
    for connection in taken:
        client.connection_pool.release(connection)
    client.close()
