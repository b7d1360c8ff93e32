"""Pods start, and start again, whatever is in the way; their own code may end them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers import end_router, eventually, own_namespace, unique_name
from proxy import TcpProxy
from services import (
    AsyncCounter,
    Counter,
    ExitsInAsyncHook,
    ExitsInHook,
    FailsToRestart,
    Gated,
)

import ray_route
from ray_route.errors import UnsafeStoreError
from ray_route.pod.actor_name import leads_here
from ray_route.pod.hooks import Hooks
from ray_route.pod.index_lease import OfPod
from ray_route.protocol.names import pod_name
from ray_route.store.connect import Store
from ray_route.store.embedded import EmbeddedServer
from ray_route.store.scripts import Call
from ray_route.store.url import parse_url
from ray_route.testing.faults import frozen_pod

pytestmark = pytest.mark.slow

# Leases outlive the outages here, so that each test has one cause.
OPTIONS = {"shards": 16, "pod_lease_s": 60.0}
SERVED_WITHIN_S = 5.0


def served(client: Any, service: str, uid: str) -> Callable[[], Any]:
    """Return a condition: a call for a uid is served; its result."""

    def attempt() -> Any:
        try:
            return client.call(uid, service, "add", uid, idempotent=True, timeout=2)
        except (ray_route.RouteError, KeyError):
            return None

    return attempt


def test_a_pod_that_dies_in_an_outage_serves_soon_after_it(ray_session: None) -> None:
    outage_s = 8.0
    with EmbeddedServer() as server, TcpProxy(server.port) as proxy, own_namespace() as name:
        url = server.url.replace(str(server.port), str(proxy.port))
        with (
            ray_route.deploy(
                Counter, namespace=name, service="svc", replicas=1, redis_url=url, **OPTIONS
            ),
            ray_route.connect(name, redis_url=url) as client,
        ):
            assert client.call("u", "svc", "add", "u") == 1
            pid = client.call("u", "svc", "pid")
            proxy.cut()
            ends_at = time.monotonic() + outage_s
            os.kill(pid, signal.SIGKILL)
            eventually(lambda: not Path(f"/proc/{pid}").exists(), "the pod's process has ended")
            while time.monotonic() < ends_at:
                asked_at = time.monotonic()
                with pytest.raises(ray_route.RouteError):
                    client.call("u", "svc", "add", "u", timeout=1)
                assert time.monotonic() - asked_at < 20, "a caller waits no longer than it said"
            proxy.heal()
            assert eventually(served(client, "svc", "u"), "served", SERVED_WITHIN_S) == 1


def test_a_deployment_without_a_store_ends_at_its_deadline_and_says_why(
    ray_session: None, tmp_path: Path
) -> None:
    name = unique_name()
    with EmbeddedServer() as server, TcpProxy(server.port) as proxy:
        url = server.url.replace(str(server.port), str(proxy.port))

        def strike() -> None:
            eventually((tmp_path / "made").exists, "the constructor runs", 60)
            proxy.cut()
            (tmp_path / "go").touch()

        with ray_route.connect(name, redis_url=url, **OPTIONS):
            striking = threading.Thread(target=strike)
            striking.start()
            with pytest.raises(ray_route.RouteTimeoutError, match=r"pod 0 can't join.*unavailable"):
                ray_route.deploy(
                    Gated,
                    namespace=name,
                    service="svc",
                    replicas=1,
                    args=(str(tmp_path),),
                    redis_url=url,
                    timeout=8,
                )
            striking.join()
            proxy.heal()
            end_router(name)


def test_a_deployment_on_a_store_that_became_unsafe_fails_at_once(
    ray_session: None, tmp_path: Path
) -> None:
    name = unique_name()
    with EmbeddedServer() as server:

        def strike() -> None:
            eventually((tmp_path / "made").exists, "the constructor runs", 60)
            redis = Store(parse_url(server.url))
            redis.one(Call("", ("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")))
            redis.close()
            (tmp_path / "go").touch()

        with ray_route.connect(name, redis_url=server.url, **OPTIONS):
            striking = threading.Thread(target=strike)
            striking.start()
            asked_at = time.monotonic()
            with pytest.raises(UnsafeStoreError, match="allkeys-lru"):
                ray_route.deploy(
                    Gated,
                    namespace=name,
                    service="svc",
                    replicas=1,
                    args=(str(tmp_path),),
                    redis_url=server.url,
                    timeout=60,
                )
            assert time.monotonic() - asked_at < 30
            striking.join()
            end_router(name)


def test_a_pod_whose_constructor_fails_at_restarts_is_made_again(
    client: Any, deploy: Any, tmp_path: Path
) -> None:
    service = deploy(FailsToRestart, replicas=1, args=(str(tmp_path / "starts"), 2)).service
    assert client.call("u", service, "add", "u") == 1
    os.kill(client.call("u", service, "pid"), signal.SIGKILL)
    assert eventually(served(client, service, "u"), "it starts at last", 30) == 1
    assert (tmp_path / "starts").read_text() == "...."


@pytest.fixture(scope="module")
def mortal(client: Any) -> Iterator[dict[type, str]]:
    """Services of one pod, which many tests end: another life serves after each."""
    with ExitStack() as ends:
        for cls in (ExitsInHook, ExitsInAsyncHook):
            where = {"namespace": client.namespace, "service": cls.__name__, "replicas": 1}
            ends.enter_context(ray_route.deploy(cls, **where))
        yield {Counter: ExitsInHook.__name__, AsyncCounter: ExitsInAsyncHook.__name__}


@pytest.fixture
def u(namespace: str) -> str:
    return namespace


EXITS = [("sys_exit", "SystemExit"), ("interrupt", "KeyboardInterrupt")]
KINDS = pytest.mark.parametrize("kind", [Counter, AsyncCounter])


@KINDS
@pytest.mark.parametrize(("method", "raised"), EXITS)
def test_code_that_ends_its_process_is_followed_by_another_life(
    client: Any, mortal: dict[type, str], u: str, kind: type, method: str, raised: str
) -> None:
    service = mortal[kind]
    before = client.compute_linked_pod(u, service)
    assert client.call(u, service, "add", u) == 1
    with pytest.raises(ray_route.PodUnavailableError, match=raised) as caught:
        client.call(u, service, method)
    assert caught.value.may_have_run
    assert (caught.value.uid, caught.value.pod) == (u, 0)
    assert_another_life(client, service, u, before)


@KINDS
def test_code_that_ends_its_process_is_one_outcome_of_a_batch(
    client: Any, mortal: dict[type, str], u: str, kind: type
) -> None:
    service = mortal[kind]
    before = client.compute_linked_pod(u, service)
    (outcome,) = client.call_many([(u, ())], service, "sys_exit")
    assert isinstance(outcome, ray_route.PodUnavailableError)
    assert outcome.may_have_run
    assert_another_life(client, service, u, before)


@KINDS
def test_a_hook_that_ends_its_process_is_followed_by_another_life(
    client: Any, mortal: dict[type, str], u: str, kind: type
) -> None:
    service = mortal[kind]
    before = client.compute_linked_pod(u, service)
    with pytest.raises(ray_route.PodUnavailableError, match="on_acquire") as caught:
        client.call("poison", service, "add", "poison")
    assert not caught.value.may_have_run
    assert_another_life(client, service, u, before)


def test_a_pod_whose_event_loop_has_ended_does_not_look_alive(
    client: Any, mortal: dict[type, str], u: str
) -> None:
    service = mortal[AsyncCounter]
    before = client.compute_linked_pod(u, service)
    client.call(u, service, "interrupt_loop")
    assert_another_life(client, service, u, before)


@pytest.mark.parametrize("whose", ["another pod's", "nobody's"])
def test_a_process_that_its_actors_name_does_not_lead_to_claims_nothing(
    client: Any, mortal: dict[type, str], whose: str
) -> None:
    service = mortal[Counter]
    name = pod_name(client.namespace, service, 0 if whose == "another pod's" else 9)
    ended: list[str] = []
    way = OfPod(Hooks(), None, lambda: ended.append(name), partial(leads_here, name))
    agent = ray_route.PodAgent(client.namespace, service, 1, actor=name, _of_pod=way)
    agent.start(10)
    assert ended == [name]
    assert not agent.joined
    assert set(client.pods(service)) == {0}
    agent.stop()


def test_whether_a_name_leads_here_is_not_guessed(
    client: Any, mortal: dict[type, str], u: str
) -> None:
    service = mortal[Counter]
    client.call(u, service, "add", u)
    with frozen_pod(client, service, 0), pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray_route.pod.actor_name._ASK_S", 0.5)
        with pytest.raises(ray_route.PodUnavailableError, match="does not tell"):
            leads_here(pod_name(client.namespace, service, 0))


def assert_another_life(client: Any, service: str, uid: str, before: ray_route.Link) -> None:
    eventually(
        lambda: client.pods(service)[before.pod].incarnation > before.incarnation,
        "its process is another",
        20,
    )
    assert eventually(served(client, service, uid), "the next life serves", 20)
