"""Redis' clock steps under a service with users: no uid has two pods, and nobody loses memory."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import pytest
import ray
from helpers import eventually, own_namespace, router_handle, unique_name
from services import Counter, Other, count_each
from stepping import SteppingServer, stepping_server

import ray_route

pytestmark = pytest.mark.slow

HOUR_S = 3_600.0
USERS = [f"user-{number}" for number in range(30)]


@dataclass
class World:
    clock: SteppingServer
    client: ray_route.RouteClient
    other: Any
    """Another process, with a near cache of its own."""
    calls: int = 0

    def count_everywhere(self) -> dict[str, tuple[int, int, int]]:
        """Count by one process and then by the other; check that they met the same pods."""
        for uid in USERS:
            self.client.cache_expired(uid, "svc")
        mine = count_each(self.client, USERS)
        theirs = ray.get(self.other.count_each.remote(USERS))
        self.calls += 2
        for uid in USERS:
            count, *pod = mine[uid]
            assert theirs[uid] == (count + 1, *pod)
            assert theirs[uid][0] == self.calls, "their memory is what it was"
        return mine


@pytest.fixture(scope="module")
def world(ray_session: None) -> Iterator[World]:
    with stepping_server() as clock, own_namespace() as namespace:
        url = clock.server.url
        options = {"namespace": namespace, "service": "svc", "replicas": 3}
        with (
            ray_route.connect(namespace, redis_url=url) as client,
            ray_route.deploy(Counter, redis_url=url, **options),
        ):
            other = ray.remote(num_cpus=0)(Other).remote(namespace, url)
            yield World(clock, client, other)
            ray.kill(other)


@pytest.mark.parametrize("step_s", [HOUR_S, HOUR_S + 1, -HOUR_S, 310.0])
def test_a_step_moves_nobody_and_costs_no_memory(world: World, step_s: float) -> None:
    before = world.count_everywhere()
    world.clock.step(step_s)
    after = world.count_everywhere()
    assert {uid: its[1:] for uid, its in after.items()} == {
        uid: its[1:] for uid, its in before.items()
    }
    new = world.client.compute_linked_pod(unique_name(), "svc")
    assert new.pod in (0, 1, 2)


def test_all_links_are_back_though_nobody_calls(world: World) -> None:
    world.count_everywhere()
    world.clock.step(HOUR_S)
    eventually(
        lambda: all(world.client.get_linked_pod_not_cache(uid, "svc") for uid in USERS),
        "the router has noticed by itself",
        within_s=30,
    )
    world.count_everywhere()


def test_a_pod_that_misses_a_link_asks_the_router_before_it_gives_anything_up(
    world: World,
) -> None:
    """The pod's own lease on the uid ends in a call, when the router has not looked yet."""
    options = {"ttl_s": 12.0, "margin_s": 10.0, "redis_url": world.clock.server.url}
    with (
        own_namespace() as namespace,
        ray_route.connect(namespace, **options) as client,
        ray_route.deploy(Counter, namespace=namespace, service="svc", replicas=2, **options),
        ThreadPoolExecutor() as threads,
    ):
        client.call("ann", "svc", "add", "ann")
        router, _ = ray.get(router_handle(namespace).whereabouts.remote())
        running = threads.submit(client.call, "ann", "svc", "sleep", 4.0)
        eventually(lambda: client.batch_get_linked_pod(["ann"], "svc"), "it is linked")
        os.kill(router, signal.SIGSTOP)
        try:
            world.clock.step(HOUR_S)
            assert not wait([running], timeout=5.0).done, "it has ended, and asks"
        finally:
            os.kill(router, signal.SIGCONT)
        assert running.result(30) is None
        assert client.call("ann", "svc", "add", "ann") == 2
