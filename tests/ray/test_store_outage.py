"""Redis out of reach or slow, by a real proxy in between: errors come fast, nobody moves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import pytest
from helpers import eventually, own_namespace, unique_name
from proxy import TcpProxy
from services import Counter

import ray_route
from ray_route.store.embedded import EmbeddedServer

pytestmark = pytest.mark.slow

PASSWORD = "pw-of-a-store-that-is-away"
USERS = [f"user-{number}" for number in range(50)]
# Pods and near caches outlive the outages of these tests.
OPTIONS = {"shards": 16, "pod_lease_s": 30.0, "staleness_s": 30.0}


@dataclass
class World:
    """A service behind a proxy, its users known to the near cache."""

    proxy: TcpProxy
    client: ray_route.RouteClient
    pods: ray_route.Deployment
    links: dict[str, Any]

    def counts(self) -> dict[str, int]:
        return {uid: self.client.call(uid, "svc", "add", uid, 0, idempotent=True) for uid in USERS}


@pytest.fixture(scope="module")
def world(ray_session: None) -> Iterator[World]:
    with (
        EmbeddedServer(password=PASSWORD) as server,
        TcpProxy(server.port) as proxy,
        own_namespace() as namespace,
    ):
        url = server.url.replace(str(server.port), str(proxy.port))
        options = {"namespace": namespace, "service": "svc", "replicas": 2, **OPTIONS}
        with (
            ray_route.deploy(Counter, redis_url=url, **options) as pods,
            ray_route.connect(namespace, redis_url=url) as client,
        ):
            made = World(proxy, client, pods, client.compute_linked_pods(USERS, "svc"))
            assert {link.pod for link in made.links.values()} == {0, 1}
            for uid in USERS:
                client.call(uid, "svc", "add", uid, 7)
            yield made
            proxy.heal()


def half_close_and_cut(proxy: TcpProxy) -> None:
    proxy.half_close()
    proxy.cut()


FAULTS = pytest.mark.parametrize("strike", [TcpProxy.cut, TcpProxy.stall, half_close_and_cut])


@FAULTS
def test_an_outage_is_an_error_at_once_and_never_a_miss_and_ends_by_itself(
    world: World, strike: Callable[[TcpProxy], None]
) -> None:
    client, new = world.client, unique_name()
    eventually(lambda: share_of_hits(client) > 0.5, "the change stream is heard")
    assert world.counts() == dict.fromkeys(USERS, 7)
    strike(world.proxy)
    try:
        # At once: a near cache serves for `staleness_s` without word from a router, and a pod for
        # what is left of a lease.
        assert share_of_hits(client) > 0.5, "near hits don't need Redis"
        assert world.counts() == dict.fromkeys(USERS, 7), "nor do calls"
        for ask in (client.get_linked_pod_not_cache, client.get_linked_pod):
            with pytest.raises(
                (ray_route.StoreUnavailableError, ray_route.RouteTimeoutError)
            ) as caught:
                ask(new, "svc", timeout=1.5)
            assert PASSWORD not in f"{caught.value} {caught.value!r} {caught.value.__cause__}"
            assert str(world.proxy.port) in str(caught.value) or "router" in str(caught.value)
        with pytest.raises(ray_route.RouteError) as partial:
            client.batch_get_linked_pod([*USERS, new], "svc", timeout=1.5)
        assert partial.value.partial.missing == []  # type: ignore[attr-defined]
        assert fast_failures_s(client, new) < 0.5
    finally:
        world.proxy.heal()

    def works_again() -> bool:
        try:
            link = client.compute_linked_pod(new, "svc", timeout=5)
            return client.get_linked_pod_not_cache(new, "svc", timeout=5) == link
        except ray_route.RouteError:
            return False

    eventually(works_again, "the service, without any restart")
    assert client.compute_linked_pods(USERS, "svc") == world.links
    stored = {uid: client.get_linked_pod_not_cache(uid, "svc") for uid in USERS}
    assert stored == world.links, "an outage moved somebody"
    assert world.counts() == dict.fromkeys(USERS, 7)


def share_of_hits(client: ray_route.RouteClient) -> float:
    """Of the second look-ups of two, since a lost stream empties the cache again and again, and the
    first is then the router's.
    """
    near, hits = client._session.near, 0
    for uid in USERS * 4:
        assert client.compute_linked_pod(uid, "svc")
        before = near.hits
        assert client.compute_linked_pod(uid, "svc")
        hits += near.hits > before
    return hits / (4 * len(USERS))


def fast_failures_s(client: ray_route.RouteClient, uid: str) -> float:
    """Median time of a failure while it is known that the store is down."""
    took = []
    for _ in range(21):
        began = time.perf_counter()
        with pytest.raises(ray_route.StoreUnavailableError):
            client.get_linked_pod_not_cache(uid, "svc", timeout=60)
        took.append(time.perf_counter() - began)
    return median(took)


def test_a_slow_network_is_slow_and_nothing_else(world: World) -> None:
    world.proxy.delay_s = 0.1
    try:
        uids = [unique_name() for _ in range(20)]
        links = world.client.compute_linked_pods(uids, "svc")
        assert all(isinstance(link, ray_route.Link) for link in links.values())
        assert world.client.batch_get_linked_pod(uids, "svc").missing == []
        assert world.counts() == dict.fromkeys(USERS, 7)
    finally:
        world.proxy.heal()
