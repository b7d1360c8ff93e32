"""Bad input gets a clear error, and nothing is changed."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from helpers import unique_name

import ray_route
from ray_route.store.connect import Store
from ray_route.store.embedded import EmbeddedServer, free_port
from ray_route.store.namespaces import open_namespace
from ray_route.store.url import parse_url

BAD_UIDS = ["", "x" * 513, "é" * 257, "\ud800", None, 42, b"u", ["u"], {"u": 1}]
BAD_NAMES = ["", "a b", "a:b", "a{b}", "x" * 65, "é", None, 7, "a\n"]
BAD_PODS = [-1, -100, 2**31, 1.0, "0", None, True]
BAD_TIMEOUTS = [0, -1, "1", True, float("nan")]

Ask = Callable[[Any, Any, str], Any]
EVERY_METHOD: dict[str, Ask] = {
    "compute_linked_pod": lambda c, u, s: c.compute_linked_pod(u, s),
    "compute_linked_pods": lambda c, u, s: c.compute_linked_pods(["good", u], s),
    "get_linked_pod": lambda c, u, s: c.get_linked_pod(u, s),
    "get_linked_pod_not_cache": lambda c, u, s: c.get_linked_pod_not_cache(u, s),
    "get_linked_pod_in_cache_or_if_persist": lambda c, u, s: (
        c.get_linked_pod_in_cache_or_if_persist(u, s)
    ),
    "get_linked_in_cache": lambda c, u, s: c.get_linked_in_cache(u, s),
    "cache_expired": lambda c, u, s: c.cache_expired(u, s),
    "set_cache": lambda c, u, s: c.set_cache(u, s, ray_route.Link(0, 1, 1, False, 1.0)),
    "set_linked_pod_if_absent": lambda c, u, s: c.set_linked_pod_if_absent(u, s, 0),
    "batch_get_linked_pod": lambda c, u, s: c.batch_get_linked_pod(["good", u], s),
    "actor": lambda c, u, s: c.actor(u, s),
    "call": lambda c, u, s: c.call(u, s, "add", "u"),
    "call_many": lambda c, u, s: c.call_many([("good", ("good",)), (u, (u,))], s, "add"),
    "explain": lambda c, u, s: c.explain(u, s),
}


def links(client: Any) -> dict[bytes, bytes]:
    store = client._session.namespace.store._client
    keys = store.keys(f"rr:{{{client.namespace}:*}}:l:*")
    return dict(zip(keys, store.mget(keys), strict=True)) if keys else {}


@pytest.fixture
def unchanged(client: Any, svc: Any) -> Iterator[None]:
    before = links(client)
    yield
    assert links(client) == before
    assert client.pods("svc")[0].life is ray_route.Life.ALIVE  # the router lives too


@pytest.mark.slow
@pytest.mark.parametrize("method", EVERY_METHOD)
@pytest.mark.parametrize("uid", BAD_UIDS, ids=repr)
def test_a_bad_uid(client: Any, unchanged: None, method: str, uid: Any) -> None:
    with pytest.raises(ray_route.InvalidInputError) as caught:
        EVERY_METHOD[method](client, uid, "svc")
    assert isinstance(caught.value, ValueError)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("bad", ["", "\ud800", None])
def test_one_bad_uid_among_200000_changes_nothing(client: Any, unchanged: None, bad: Any) -> None:
    uids = [f"crowd-{number}" for number in range(200_000)]
    uids[150_000] = bad
    for ask in (client.compute_linked_pods, client.batch_get_linked_pod):
        with pytest.raises(ray_route.InvalidInputError):
            ask(uids, "svc", timeout=60)
    with pytest.raises(ray_route.InvalidInputError):
        client.call_many([(uid, (uid,)) for uid in uids], "svc", "add", timeout=60)


@pytest.mark.parametrize("method", EVERY_METHOD)
@pytest.mark.parametrize("service", BAD_NAMES, ids=repr)
def test_a_bad_service(client: Any, unchanged: None, method: str, service: Any) -> None:
    with pytest.raises(ray_route.InvalidInputError):
        EVERY_METHOD[method](client, "good", service)


@pytest.mark.parametrize("pod", BAD_PODS, ids=repr)
def test_a_bad_pod(client: Any, unchanged: None, pod: Any) -> None:
    with pytest.raises(ray_route.InvalidInputError):
        client.set_linked_pod_if_absent("good", "svc", pod)


def test_an_unknown_pod_is_refused_with_the_known_ones(client: Any, unchanged: None) -> None:
    with pytest.raises(ray_route.InvalidInputError, match=r"pods \[0, 1, 2\]"):
        client.set_linked_pod_if_absent("good", "svc", 3)


@pytest.mark.parametrize("timeout", BAD_TIMEOUTS, ids=repr)
def test_a_bad_timeout(client: Any, unchanged: None, timeout: Any) -> None:
    with pytest.raises(ray_route.InvalidInputError):
        client.compute_linked_pod("good", "svc", timeout=timeout)


def test_a_uid_of_delimiters_and_nul_is_a_uid(client: Any, svc: Any) -> None:
    for uid in ["a:b", "{x}", "\0", "a\r\nb", "日本", "x" * 512, " "]:
        link = client.compute_linked_pod(uid, "svc")
        assert client.get_linked_pod_not_cache(uid, "svc") == link
        assert client.batch_get_linked_pod([uid], "svc") == {link.pod: [uid]}


def test_an_unknown_service_has_no_pods(client: Any, unchanged: None) -> None:
    with pytest.raises(ray_route.NoAvailablePodError, match="has no pods"):
        client.compute_linked_pod("good", "no-such-service")
    assert client.get_linked_pod("good", "no-such-service") is None


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_a_bad_namespace(ray_session: None, name: Any) -> None:
    with pytest.raises(ray_route.InvalidInputError):
        ray_route.connect(name)


def test_options_must_fit_what_the_namespace_runs_with(client: Any, unchanged: None) -> None:
    with pytest.raises(ray_route.ConfigError, match="shards"):
        ray_route.connect(client.namespace, shards=64)
    with pytest.raises(ray_route.ConfigError, match="ttl_s"):
        ray_route.connect(client.namespace, ttl_s=100)
    with pytest.raises(ray_route.ConfigError, match="no_such_option"):
        ray_route.connect(client.namespace, no_such_option=1)


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer() as running:
        yield running


def test_another_shard_count_is_refused_by_the_store(
    ray_session: None, server: EmbeddedServer
) -> None:
    name = unique_name()
    open_namespace(Store(parse_url(server.url)), name, {"shards": 64})
    with pytest.raises(ray_route.ConfigError, match="shards=64"):
        ray_route.connect(name, server.url, shards=256)


def test_a_wrong_password_is_refused_and_not_repeated(
    ray_session: None, server: EmbeddedServer
) -> None:
    url = f"redis://:s3cret-guess@127.0.0.1:{server.port}"
    with pytest.raises(ray_route.ConfigError) as caught:
        ray_route.connect(unique_name(), url)
    assert f"127.0.0.1:{server.port}" in str(caught.value)
    assert "s3cret" not in repr(caught.value) + str(caught.value)


def test_a_server_that_is_not_there_is_named(ray_session: None) -> None:
    port = free_port()
    started = time.monotonic()
    with pytest.raises(ray_route.StoreUnavailableError) as caught:
        ray_route.connect(unique_name(), f"redis://u:s3cret@127.0.0.1:{port}")
    assert time.monotonic() - started < 20
    assert f"127.0.0.1:{port}" in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.slow
def test_a_server_that_does_not_answer_times_out(ray_session: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        with pytest.raises(ray_route.StoreUnavailableError):
            ray_route.connect(unique_name(), f"redis://127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - started < 20


def test_an_unsafe_server_is_refused_with_the_fix(ray_session: None) -> None:
    with (
        EmbeddedServer(settings=("maxmemory-policy volatile-lru",)) as unsafe,
        pytest.raises(ray_route.UnsafeStoreError, match="set maxmemory-policy to noeviction"),
    ):
        ray_route.connect(unique_name(), unsafe.url)


def test_deploy_refuses_what_is_no_class_or_no_count(client: Any) -> None:
    where = {"namespace": client.namespace, "service": unique_name()}
    for replicas in (0, -1, True, "2", 1.5):
        with pytest.raises(ray_route.InvalidInputError):
            ray_route.deploy(dict, replicas=replicas, **where)
    with pytest.raises(ray_route.InvalidInputError, match="plain class"):
        ray_route.deploy(lambda: 1, replicas=1, **where)  # type: ignore[arg-type]
    with pytest.raises(ray_route.ConfigError, match="name"):
        ray_route.deploy(dict, replicas=1, ray_actor_options={"name": "x"}, **where)
