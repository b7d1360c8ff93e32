"""The whole of it, clients and router and pods, over a Redis Cluster and through Sentinel."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing

import pytest
from helpers import eventually, own_namespace, unique_name
from servers import ClusterServers, SentinelServers, admin
from services import Counter

import ray_route
from ray_route.client import batch
from ray_route.errors import RouteError
from ray_route.store.embedded import EmbeddedServer

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
        eventually(lambda: servers.primary() is not old, "promoted", within_s=20)
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
        within_s=20,
    )


def test_service_goes_on_after_a_replica_was_promoted(
    client: ray_route.RouteClient, svc: object, servers: Servers
):
    """Last in this module: it takes a server away."""
    uids = [unique_name() for _ in range(40)]
    before = client.compute_linked_pods(uids, "svc")
    assert all(isinstance(link, ray_route.Link) for link in before.values())
    replace_first(servers)

    def placed() -> bool:
        fresh = client.compute_linked_pods([unique_name() for _ in range(40)], "svc", timeout=5)
        return all(isinstance(answer, ray_route.Link) for answer in fresh.values())

    def works() -> bool:
        try:
            return placed()
        except RouteError:
            return False

    eventually(works, "new uids are placed in all shards", within_s=40)

    def kept() -> bool:
        try:
            return {uid: client.get_linked_pod_not_cache(uid, "svc") for uid in uids} == before
        except RouteError:
            return False

    eventually(kept, "every link is where it was", within_s=20)
