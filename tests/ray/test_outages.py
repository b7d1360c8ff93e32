"""Outages of the store that are longer than the pods' leases: nobody's memory is lost."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import redis
from diaries import Book, Diary
from helpers import eventually, own_namespace, router_handle
from proxy import TcpProxy
from servers import admin
from services import Counter

import ray_route
from ray_route.store.embedded import EmbeddedServer

pytestmark = pytest.mark.slow

LEASE_S = 2.0
OUTAGE_S = 3 * LEASE_S
OPTIONS = {"shards": 16, "pod_lease_s": LEASE_S, "heartbeat_s": 0.4, "staleness_s": 2.0}
USERS = [f"user-{number}" for number in range(30)]


@dataclass
class World:
    """A service whose users have state in memory, and the store that it needs."""

    server: EmbeddedServer
    proxy: TcpProxy
    client: ray_route.RouteClient
    pods: ray_route.Deployment
    count: int = 0

    def call_all(self) -> None:
        """Count every user once more: each is where they were, with what they had."""
        self.count += 1
        for uid in USERS:
            assert self.client.call(uid, "svc", "add", uid, timeout=20) == self.count, uid

    def lives(self) -> dict[int, tuple[int, str]]:
        return {pod: (it.incarnation, it.life.value) for pod, it in self.pods.pods().items()}

    def pids(self) -> dict[int, int]:
        uids = {self.client.compute_linked_pod(uid, "svc").pod: uid for uid in USERS}
        return {pod: self.client.call(uid, "svc", "pid") for pod, uid in uids.items()}

    def admin(self) -> redis.Redis:
        return admin(self.server)

    def serves_again(self, within_s: float = 10.0) -> None:
        def serves() -> bool:
            try:
                return all(self.client.call(uid, "svc", "pid", timeout=2) for uid in USERS[:3])
            except ray_route.RouteError:
                return False

        eventually(serves, "the service serves again, by itself", within_s)


@pytest.fixture(scope="module")
def shared(ray_session: None) -> Iterator[World]:
    with EmbeddedServer() as server, TcpProxy(server.port) as proxy, own_namespace() as namespace:
        url = server.url.replace(str(server.port), str(proxy.port))
        options: dict[str, Any] = {"namespace": namespace, "service": "svc", "replicas": 3}
        with (
            ray_route.deploy(Counter, redis_url=url, **options, **OPTIONS) as pods,
            ray_route.connect(namespace, redis_url=url) as client,
        ):
            made = World(server, proxy, client, pods)
            made.call_all()
            yield made


@pytest.fixture
def world(shared: World) -> Iterator[World]:
    """One service for all outages: each finds what the last one left."""
    yield shared
    shared.proxy.heal()


def pass_time(seconds: float, meanwhile: Callable[[], Any] = lambda: None) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        meanwhile()
        time.sleep(0.1)  # the pace of what goes on meanwhile


def cut_off(world: World) -> None:
    world.proxy.cut()
    pass_time(OUTAGE_S)
    world.proxy.heal()


def black_hole(world: World) -> None:
    world.proxy.stall()
    pass_time(OUTAGE_S)
    world.proxy.heal()


def killed_and_back_empty(world: World) -> None:
    world.server.stop()
    pass_time(OUTAGE_S)
    world.server.start()


def frozen(world: World) -> None:
    os.kill(world.server.pid, signal.SIGSTOP)
    pass_time(OUTAGE_S)
    os.kill(world.server.pid, signal.SIGCONT)


def refuses_writes(world: World) -> None:
    world.admin().config_set("min-replicas-to-write", 1)
    pass_time(OUTAGE_S)
    world.admin().config_set("min-replicas-to-write", 0)


@pytest.mark.parametrize(
    "strike", [cut_off, black_hole, killed_and_back_empty, frozen, refuses_writes]
)
def test_an_outage_longer_than_the_lease_costs_nobody_their_memory(
    world: World, strike: Callable[[World], None]
) -> None:
    before, pids = world.lives(), world.pids()
    strike(world)
    world.serves_again()
    world.call_all()
    assert world.lives() == before, "every pod goes on in the life that it had"
    assert world.pids() == pids


def test_a_pod_past_its_lease_serves_nobody(world: World) -> None:
    uid = USERS[0]
    link = world.client.compute_linked_pod(uid, "svc")
    pod = world.client.actor(uid, "svc")
    owner = (uid, link.epoch, link.incarnation)

    def answer() -> Any:
        return ray.get(pod._ray_route_call.remote([*owner, "pid"]), timeout=10)

    pid = answer()
    assert isinstance(pid, int)
    world.proxy.cut()
    eventually(lambda: answer() != pid, "it refuses", LEASE_S + 5)
    refused = answer()
    assert "lapsed" in str(refused.error)
    assert not refused.error.may_have_run
    world.proxy.heal()
    world.serves_again()
    assert answer() == pid
    world.call_all()


def test_a_full_store_goes_on_with_what_is_there(world: World) -> None:
    server = world.admin()
    server.config_set("maxmemory", "1mb")
    try:
        before = world.lives()
        pass_time(OUTAGE_S, world.call_all)
        with pytest.raises(ray_route.StoreUnavailableError):
            world.client.compute_linked_pod("a newcomer", "svc", timeout=5)
        assert world.lives() == before
    finally:
        server.config_set("maxmemory", 0)
    assert world.client.compute_linked_pod("a newcomer", "svc").pod in before


def test_an_outage_in_which_the_router_dies_costs_nobody_their_memory(world: World) -> None:
    before = world.lives()
    world.proxy.cut()
    pass_time(LEASE_S)
    pid, _ = ray.get(router_handle(world.client.namespace).whereabouts.remote(), timeout=10)
    os.kill(pid, signal.SIGKILL)
    pass_time(OUTAGE_S - LEASE_S)
    world.proxy.heal()
    world.serves_again(20)
    world.call_all()
    assert world.lives() == before, "the servers are the same: nothing can have been lost"


def test_a_pod_that_dies_in_an_outage_loses_its_own_users_alone(world: World) -> None:
    victim = world.client.compute_linked_pod(USERS[0], "svc").pod
    home = {uid: world.client.compute_linked_pod(uid, "svc").pod for uid in USERS}
    pid = world.pids()[victim]
    world.proxy.cut()
    pass_time(LEASE_S / 2)
    os.kill(pid, signal.SIGKILL)
    pass_time(OUTAGE_S)
    world.proxy.heal()
    world.serves_again(20)
    world.count += 1
    for uid in USERS:
        count = world.client.call(uid, "svc", "add", uid, timeout=20, idempotent=True)
        assert count == (1 if home[uid] == victim else world.count), uid
    eventually(
        lambda: all(pod.life is ray_route.Life.ALIVE for pod in world.pods.pods().values()),
        "the dead one is made again",
        20,
    )


@dataclass
class Lone:
    """A service of one pod, which holds one user."""

    proxy: TcpProxy
    client: ray_route.RouteClient
    book: Book
    pid: int

    def has_ended(self) -> bool:
        return not Path(f"/proc/{self.pid}").exists()

    def is_served(self) -> bool:
        try:
            self.client.call("ann", "svc", "add", "ann", idempotent=True, timeout=2)
        except ray_route.RouteError:
            return False
        return True


@pytest.fixture
def lone(ray_session: None, tmp_path: Path) -> Iterator[Callable[..., Lone]]:
    """Deploys one pod that writes a diary, on a store of its own behind a proxy."""
    with ExitStack() as stack:

        def make(**options: Any) -> Lone:
            server = stack.enter_context(EmbeddedServer())
            proxy = stack.enter_context(TcpProxy(server.port))
            where = {
                "namespace": stack.enter_context(own_namespace()),
                "redis_url": server.url.replace(str(server.port), str(proxy.port)),
            }
            how = {"kwargs": {"folder": str(tmp_path)}, "service": "svc", "replicas": 1}
            stack.enter_context(ray_route.deploy(Diary, **where, **how, **options, **OPTIONS))
            client = stack.enter_context(ray_route.connect(**where))
            assert client.call("ann", "svc", "add", "ann") == 1
            return Lone(proxy, client, Book(str(tmp_path)), client.call("ann", "svc", "pid"))

        yield make


@pytest.mark.parametrize("exits", [True, False])
def test_a_pod_exits_in_an_outage_if_it_is_to(lone: Any, exits: bool) -> None:
    pod = lone(exit_when_fenced=exits)
    pod.proxy.cut()
    if exits:
        eventually(pod.has_ended, "its lease has run out")
    else:
        pass_time(OUTAGE_S)
        assert not pod.has_ended()
    pod.proxy.heal()
    eventually(pod.is_served, "by its next life, or by this one")
    assert pod.book.count("acquire", "ann") == (2 if exits else 1)


def test_a_pod_told_to_end_in_a_lapse_releases_what_it_holds_if_the_store_is_back(
    lone: Any,
) -> None:
    pod = lone(grace_s=30.0)
    pod.proxy.cut()
    pass_time(OUTAGE_S)
    os.kill(pod.pid, signal.SIGTERM)
    pass_time(1.0)
    pod.proxy.heal()
    eventually(pod.has_ended, "its process ends", 60)
    first = [event.what for event in pod.book.events("ann") if event.pid == pod.pid]
    assert first.count("release-end") == 1
    assert "lost" not in first
    eventually(pod.is_served, "by its next life")
    assert pod.book.load("ann") == 1, "it was saved, and is loaded again"
    assert pod.client.call("ann", "svc", "add", "ann") == 3
