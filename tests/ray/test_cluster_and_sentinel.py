"""The whole of it, clients and router and pods, over a Redis Cluster and through Sentinel."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import Counter as Counts
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field

import pytest
from helpers import eventually, own_namespace, unique_name
from servers import ClusterServers, SentinelServers, admin
from services import Counter

import ray_route
from ray_route.client import batch
from ray_route.errors import RouteError
from ray_route.runtime.metrics import LOOKUPS
from ray_route.store.embedded import EmbeddedServer

pytestmark = pytest.mark.slow

Servers = ClusterServers | SentinelServers


@pytest.fixture(
    scope="module",
    params=[(kind, flavor) for kind in ("cluster", "sentinel") for flavor in ("valkey", "redis")],
    ids="-".join,
)
def servers(request: pytest.FixtureRequest, ray_session: None) -> Iterator[Servers]:
    kind, flavor = request.param
    made = ClusterServers(flavor, replicas=1) if kind == "cluster" else SentinelServers(flavor)
    with made as running:
        yield running


@pytest.fixture(scope="module")
def client(servers: Servers) -> Iterator[ray_route.RouteClient]:
    with own_namespace() as name, ray_route.connect(name, servers.url, shards=32) as connected:
        yield connected


@pytest.fixture(scope="module")
def svc(client: ray_route.RouteClient, servers: Servers) -> Iterator[ray_route.Deployment]:
    options = {"namespace": client.namespace, "service": "svc", "replicas": 2}
    with ray_route.deploy(Counter, redis_url=servers.url, **options) as deployment:
        yield deployment


def test_a_uid_is_placed_found_and_called(client: ray_route.RouteClient, svc: object):
    uid = unique_name()
    link = client.compute_linked_pod(uid, "svc")
    assert client.get_linked_pod_not_cache(uid, "svc") == link
    assert client.get_link_service(uid) == {"svc": link}
    assert client.call(uid, "svc", "add", uid) == 1
    assert client.call(uid, "svc", "add", uid) == 2
    assert client.explain(uid, "svc").link == link


def test_an_async_client_agrees_with_a_sync_one(
    client: ray_route.RouteClient, svc: object, servers: Servers
):
    uid = unique_name()

    async def ask() -> ray_route.Link:
        other = await ray_route.connect_async(client.namespace, servers.url)
        try:
            return await other.compute_linked_pod(uid, "svc")
        finally:
            other.close()

    assert asyncio.run(ask()) == client.compute_linked_pod(uid, "svc")


@pytest.mark.parametrize("limit", [10**9, 0], ids=["here", "tasks"])
def test_many_uids_are_placed_and_read_back(
    client: ray_route.RouteClient, svc: object, monkeypatch: pytest.MonkeyPatch, limit: int
):
    monkeypatch.setattr(batch, "IN_PROCESS", limit)
    uids = [f"{unique_name()}-{number}" for number in range(1_500)]
    links = client.compute_linked_pods(uids, "svc")
    found = client.batch_get_linked_pod([*uids, "nobody"], "svc")
    assert found.missing == ["nobody"]
    for pod, some in found.items():
        assert some == [uid for uid in uids if links[uid].pod == pod]
    assert sum(map(len, found.values())) == len(uids)


def test_the_near_cache_hears_the_change_stream(client: ray_route.RouteClient, svc: object):
    uid = unique_name()
    link = client.compute_linked_pod(uid, "svc")
    eventually(lambda: client.get_linked_in_cache(uid, "svc") == link, "the stream is heard")


def keys_of(server: EmbeddedServer) -> set[bytes]:
    with closing(admin(server)) as client:
        return set(client.keys("*"))


def replace_first(servers: Servers) -> None:
    """Kill a primary that has a replica, and wait until the replica has its place."""
    if isinstance(servers, SentinelServers):
        old = servers.primary()
        replica = next(server for server in servers.servers if server is not old)
        eventually(lambda: keys_of(replica) == keys_of(old), "the replica has everything")
        old.stop()
        eventually(lambda: servers.primary() is not old, "promoted")
        return
    first, replica = servers.nodes[0], servers.nodes[-1]
    eventually(lambda: keys_of(replica) == keys_of(first), "the replica has everything")
    first.stop()
    others = servers.nodes[1:]
    eventually(
        lambda: (
            {servers.info(node)["cluster_state"] for node in others} == {"ok"}
            and servers.command(replica, "ROLE")[0] in (b"master", "master")
        ),
        "promoted",
    )


@dataclass
class Traffic:
    """Threads that look uids up, past the near cache, and call them; what they met that is wrong.

    No pod ends, so nobody's link may be another, and no count may begin anew.
    """

    client: ray_route.RouteClient
    links: dict[str, ray_route.Link]
    wrong: list[str] = field(default_factory=list)
    answered: int = 0
    _ended: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Traffic:
        works = [self._look_up] * 3 + [self._call]
        self._threads = [threading.Thread(target=work, daemon=True) for work in works]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(60)

    def _look_up(self) -> None:
        near = self.client._session.near
        for uid in itertools.cycle(self.links):
            if self._ended.is_set():
                return
            near.drop("svc", uid)
            with suppress(RouteError):
                found, meant = (
                    self.client.compute_linked_pod(uid, "svc", timeout=5),
                    self.links[uid],
                )
                self.answered += 1
                if (found.pod, found.epoch) != (meant.pod, meant.epoch):
                    self.wrong.append(f"{uid}: {found} instead of {meant}")

    def _call(self) -> None:
        counts: Counts[str] = Counts()
        for uid in itertools.cycle(self.links):
            if self._ended.is_set():
                return
            with suppress(RouteError):
                count = self.client.call(uid, "svc", "add", uid, timeout=5)
                if count <= counts[uid]:
                    self.wrong.append(f"{uid}: {count} after {counts[uid]}")
                counts[uid] = count


def read_from_redis(client: ray_route.RouteClient) -> int:
    counts = client._session.meter.counts
    return sum(
        count
        for (name, labels), count in list(counts.items())
        if name == LOOKUPS.name and labels[:2] == ("redis", "link")
    )


def test_nobody_reads_a_wrong_owner_while_a_replica_is_promoted(
    client: ray_route.RouteClient, svc: object, servers: Servers
):
    """Last in this module, with the next: it takes a server away."""
    uids = [unique_name() for _ in range(40)]
    links = client.compute_linked_pods(uids, "svc")
    for uid in uids[:10]:  # of these a replica that lags knows the pod that they have left
        links[uid] = client.move(uid, "svc", 1 - links[uid].pod)
    eventually(client._session.may_read, "links are read from Redis")
    with Traffic(client, links) as traffic:
        eventually(lambda: traffic.answered > 200, "there is some load")
        replace_first(servers)

        def all_are_read_again() -> bool:
            before = read_from_redis(client)
            client._session.near.flush()
            try:
                return client.compute_linked_pods(
                    uids, "svc", timeout=5
                ).keys() == links.keys() and (read_from_redis(client) - before >= len(uids))
            except RouteError:
                return False

        eventually(all_are_read_again, "all servers are believed again")
    assert traffic.wrong == []


def test_service_goes_on_after_a_replica_was_promoted(
    client: ray_route.RouteClient, svc: object, servers: Servers
):
    """It has been taken away in the last test."""
    uids = [unique_name() for _ in range(40)]
    before = client.compute_linked_pods(uids, "svc", timeout=60)
    assert all(isinstance(link, ray_route.Link) for link in before.values())

    def placed() -> bool:
        fresh = client.compute_linked_pods([unique_name() for _ in range(40)], "svc", timeout=5)
        return all(isinstance(answer, ray_route.Link) for answer in fresh.values())

    def works() -> bool:
        try:
            return placed()
        except RouteError:
            return False

    eventually(works, "new uids are placed in all shards")

    def kept() -> bool:
        try:
            return {uid: client.get_linked_pod_not_cache(uid, "svc") for uid in uids} == before
        except RouteError:
            return False

    eventually(kept, "every link is where it was")
