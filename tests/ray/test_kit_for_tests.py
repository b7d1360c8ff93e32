"""What users' tests get: namespaces of their own, warm before they ask, and faults to be had."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from helpers import eventually, unique_name

import ray_route
from ray_route.errors import InvalidInputError, RouteError
from ray_route.protocol.names import RAY_NAMESPACE, router_name
from ray_route.store.scripts import plain_call
from ray_route.testing import faults
from ray_route.testing.spares import Spares, _named

pytestmark = pytest.mark.slow

pytest_plugins = ["ray_route.testing.plugin"]


@pytest.fixture(scope="module")
def ray_route_spares(ray_session: None, ray_route_redis_url: str) -> Iterator[Spares]:
    """Those of this module, since none may leave a router behind."""
    spares = Spares(ray_route_redis_url)
    yield spares
    spares.close()


def room_class() -> type:
    class Room:  # in here, so that pods get it by value
        def __init__(self, room: str) -> None:
            self.room = room
            self.said: list[str] = []

        def say(self, text: str) -> list[str]:
            self.said.append(text)
            return self.said

        def pid(self) -> int:
            return os.getpid()

    return Room


@pytest.fixture
def rooms(
    ray_route_client: ray_route.RouteClient, ray_route_namespace: str, ray_route_redis_url: str
) -> Any:
    where: dict[str, Any] = {"namespace": ray_route_namespace, "redis_url": ray_route_redis_url}
    ray_route.deploy(room_class(), service="rooms", replicas=2, per_uid=True, **where).close()
    return ray_route_client.service("rooms")


given_back: list[str] = []


@pytest.fixture
def noted(ray_route_client: ray_route.RouteClient) -> ray_route.RouteClient:
    given_back.append(ray_route_client.namespace)
    return ray_route_client


def process_of(router: Any) -> int | None:
    try:
        pid: int = ray.get(router.__ray_call__.remote(lambda _: os.getpid()))
    except ray.exceptions.RayActorError:  # it is being restarted
        return None
    return pid


def ended(namespace: str) -> None:
    eventually(lambda: not _named(namespace), f"no actor of {namespace} is left", 60)


def test_spares_are_made_before_anybody_asks_and_ended_for_good(
    ray_route_spares: Spares, ray_route_redis_url: str
) -> None:
    eventually(lambda: len(ray_route_spares) >= 2, "two are in stock", 60)
    first, second = ray_route_spares.take(), ray_route_spares.take()
    assert first.namespace != second.namespace
    for client in (first, second):
        assert client.get_linked_pod("ann", "rooms") is None
        assert _named(client.namespace) == {router_name(client.namespace)}
        ray_route_spares.give_back(client)
    for client in (first, second):
        ended(client.namespace)
        assert client.closed


def test_faults_of_a_real_service(rooms: Any, noted: ray_route.RouteClient) -> None:
    client, ann = noted, rooms["ann"]
    ann.say.remote("hi").result()
    pod, pid = client.compute_linked_pod("ann", "rooms").pod, ann.pid.remote().result()
    assert faults.pid_of(client, "rooms", pod) == pid

    with faults.frozen_pod(client, "rooms", pod) as frozen:
        assert frozen == pid
        with pytest.raises(RouteError):
            ann.options(timeout_s=0.5).say.remote("ho").result()
    assert ann.say.remote("ha").result()[-1] == "ha"

    store = client._session.namespace.store
    mine, others = f"rr:{{{client.namespace}}}:stray", f"rr:{{{unique_name()}}}:stray"
    for key in (mine, others):
        store.one(plain_call("SET", key, 1))
    faults.wipe_store(client)
    assert [store.one(plain_call("GET", key)) for key in (mine, others)] == [None, b"1"]
    assert ann.options(timeout_s=60).say.remote("he").result()[-1] == "he"
    link = client.compute_linked_pod("ann", "rooms")

    router = ray.get_actor(router_name(client.namespace), namespace=RAY_NAMESPACE)
    before = process_of(router)
    faults.restart_router(client)
    eventually(
        lambda: process_of(router) not in (before, None), "the router is another process", 60
    )
    assert ann.options(timeout_s=60).say.remote("ho").result()[-1] == "ho"

    faults.kill_pod(client, "rooms", pod)
    again = rooms["ann"].options(timeout_s=60, idempotent=True)
    assert again.say.remote("new").result() == ["new"]
    assert client.compute_linked_pod("ann", "rooms").epoch > link.epoch

    with pytest.raises(InvalidInputError, match="no pod"):
        faults.kill_pod(client, "rooms", 7)
    with pytest.raises(InvalidInputError, match="no pod"):
        faults.kill_pod(client, unique_name(), 0)


def test_what_a_test_has_left_deployed_is_ended_too(ray_session: None) -> None:
    for namespace in given_back:  # by the test before, whose service had a controller and pods
        ended(namespace)
