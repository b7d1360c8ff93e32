"""Redis loses what it had: nobody who was being served moves, and nothing is read as missing."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import ray
from helpers import eventually, own_namespace, router_handle, unique_name
from proxy import TcpProxy
from services import Counter

import ray_route
from ray_route.clock import Deadline
from ray_route.runtime.waiting import run
from ray_route.store.connect import Store
from ray_route.store.embedded import EmbeddedServer
from ray_route.store.scripts import Call, plain_call
from ray_route.store.url import parse_url
from ray_route.testing.faults import frozen_pod

pytestmark = pytest.mark.slow

USERS = [f"user-{number}" for number in range(300)]
SHARDS = 16
OPTIONS = {"shards": SHARDS, "heartbeat_s": 0.3, "pod_lease_s": 3.0}


@dataclass
class World:
    """A service whose users have all been served, on a server that keeps nothing on disk."""

    server: EmbeddedServer
    client: ray_route.RouteClient
    pods: ray_route.Deployment
    links: dict[str, ray_route.Link]
    rounds: int = 0

    def check(self) -> None:
        """Every user is where they were, under the same epoch, and their pod remembers them."""
        assert set(self.call_all()) == {self.rounds}, "a call met other memory"
        assert self.stored() == self.links

    def call_all(self) -> list[int]:
        calls = [(uid, (uid,)) for uid in USERS]
        outcomes = self.client.call_many(calls, "svc", "add", idempotent=True, timeout=60)
        failed = [outcome for outcome in outcomes if not isinstance(outcome, int)]
        assert not failed, failed[0]
        self.rounds += 1
        return outcomes

    def stored(self) -> dict[str, ray_route.Link]:
        links = {uid: self.client.get_linked_pod_not_cache(uid, "svc") for uid in USERS}
        return {uid: link for uid, link in links.items() if link is not None}

    def redis(self) -> Store:
        return Store(parse_url(self.server.url))

    def counters(self) -> list[int]:
        return list(ray.get(router_handle(self.client.namespace).hello.remote()).seen)


@pytest.fixture(scope="module")
def world(ray_session: None) -> Iterator[World]:
    with EmbeddedServer() as server, own_namespace() as namespace:
        options = {"namespace": namespace, "service": "svc", "replicas": 3, **OPTIONS}
        with (
            ray_route.deploy(Counter, redis_url=server.url, **options) as pods,
            ray_route.connect(namespace, redis_url=server.url) as client,
        ):
            made = World(server, client, pods, {})
            made.call_all()
            made.links = made.stored()
            assert made.links.keys() == set(USERS)
            yield made


def flush(world: World) -> None:
    redis = world.redis()
    redis.one(Call("", ("FLUSHALL",)))
    redis.close()


def kill_and_restart_empty(world: World) -> None:
    world.server.stop()
    world.server.start()
    # Whoever met it away fails at once for a moment more, but for one who looks.
    eventually(lambda: _answers(world), "it is known to be back")


def _answers(world: World) -> bool:
    try:
        return world.client.get_link_service(USERS[0]) is not None
    except ray_route.StoreUnavailableError:
        return False


LOSSES = pytest.mark.parametrize("lose", [flush, kill_and_restart_empty])


@LOSSES
def test_every_link_is_back_as_it_was_and_every_user_has_their_state(
    world: World, lose: Callable[[World], None]
) -> None:
    before = world.counters()
    lose(world)

    world.check()
    assert all(now > then for now, then in zip(world.counters(), before, strict=True))
    fresh = world.client.compute_linked_pod("a newcomer", "svc")
    assert fresh.epoch > max(link.epoch for link in world.links.values())
    assert {pod.life.value for pod in world.pods.pods().values()} == {"alive"}


def test_a_loss_is_noticed_without_anyone_asking(world: World) -> None:
    flush(world)
    redis = world.redis()
    names = [
        world.client._session.namespace.keys.link(
            world.client._session.namespace.keys.shard(u), "svc", u
        )
        for u in USERS
    ]

    def restored() -> bool:
        return all(redis.run([plain_call("GET", name) for name in names]))

    eventually(restored, "the replay")
    redis.close()


def test_a_new_router_learns_from_the_pods_what_was_lost_with_the_old_one(world: World) -> None:
    before = world.counters()
    held = [world.client._session.namespace.seen(shard) for shard in range(SHARDS)]
    router = router_handle(world.client.namespace)
    pid, _ = ray.get(router.whereabouts.remote())
    world.server.stop()
    os.kill(pid, signal.SIGKILL)
    world.server.start()

    world.client._session.near.flush()
    world.check()
    after = world.counters()
    assert all(now > then for now, then in zip(after, before, strict=True))
    assert all(now > then for now, then in zip(after, held, strict=True))


def test_a_replica_that_lacks_the_last_writes_is_promoted(ray_session: None) -> None:
    """The proxy to the replica stalls, so that it lacks what the primary took afterwards."""
    with (
        EmbeddedServer() as primary,
        TcpProxy(primary.port) as line,
        EmbeddedServer(
            password=primary.password,
            settings=(f"replicaof 127.0.0.1 {line.port}", f'masterauth "{primary.password}"'),
        ) as replica,
        TcpProxy(primary.port) as front,
        own_namespace() as namespace,
    ):
        url = primary.url.replace(str(primary.port), str(front.port))
        copies = Store(parse_url(replica.url))

        def copied() -> Any:
            return copies.one(plain_call("EXISTS", f"rr:{{{namespace}}}:meta"))

        with (
            ray_route.deploy(
                Counter, namespace=namespace, service="svc", replicas=3, redis_url=url, **OPTIONS
            ) as pods,
            ray_route.connect(namespace, redis_url=url) as client,
        ):
            early = client.compute_linked_pods(USERS[:100], "svc")
            keys = client._session.namespace.keys
            last = keys.link(keys.shard(USERS[99]), "svc", USERS[99])
            eventually(lambda: copied() and copies.one(plain_call("EXISTS", last)), "the copy")
            line.stall()
            world = World(primary, client, pods, {})
            client.move(USERS[0], "svc", (early[USERS[0]].pod + 1) % 3)
            world.call_all()
            world.links = world.stored()
            lacking = [
                uid
                for uid in USERS
                if not copies.one(plain_call("EXISTS", keys.link(keys.shard(uid), "svc", uid)))
            ]
            assert len(lacking) > 150, "the replica lags behind"
            copies.one(Call("", ("REPLICAOF", "NO", "ONE")))
            front.retarget(replica.port)

            world.check()
        copies.close()
        line.heal()


@LOSSES
def test_a_batch_never_takes_an_emptied_shard_for_users_without_a_pod(
    world: World, lose: Callable[[World], None]
) -> None:
    lose(world)
    stored = world.client.batch_get_linked_pod(USERS, "svc", timeout=60)
    assert stored.missing == []
    assert sorted(uid for uids in stored.values() for uid in uids) == sorted(USERS)
    assert {uid: pod for pod, uids in stored.items() for uid in uids} == {
        uid: link.pod for uid, link in world.links.items()
    }


def test_a_newcomer_does_not_take_an_emptied_shard_for_the_truth(world: World) -> None:
    """A process that has seen nothing yet learns from the router what the shards have counted."""
    world.client._session.near.flush()
    namespace, url = world.client.namespace, world.server.url

    @ray.remote(num_cpus=0)
    def look(uids: list[str]) -> list[str]:
        with ray_route.connect(namespace, redis_url=url) as client:
            missing = list(client.batch_get_linked_pod(uids, "svc", timeout=60).missing)
            return missing + [
                uid for uid in uids[:20] if client.get_linked_pod_not_cache(uid, "svc") is None
            ]

    asked = look.remote(USERS)
    while not ray.wait([asked], timeout=0.05)[0]:
        flush(world)
    assert ray.get(asked) == []


def test_what_was_removed_stays_removed(world: World) -> None:
    """A promoted replica may still hold a link that was removed in the last second."""
    redis, uid = world.redis(), unique_name()
    world.client.compute_linked_pod(uid, "svc")
    keys = world.client._session.namespace.keys
    name, counter = keys.link(keys.shard(uid), "svc", uid), keys.counter(keys.shard(uid))
    old = redis.run([plain_call("GET", name), plain_call("GET", counter)])
    assert old[0]

    @ray.remote(num_cpus=0)
    def remove(namespace: str, url: str) -> bool:
        agent = ray_route.PodAgent(namespace, "other", 0, redis_url=url).start()
        try:
            asked = agent._namespace.ask("remove_link", "svc", uid, None, after_s=0, timeout_s=5)
            return run(asked, Deadline.after(60))
        finally:
            agent.stop()

    assert ray.get(remove.remote(world.client.namespace, world.server.url))
    redis.run([plain_call("SET", name, old[0]), plain_call("SET", counter, old[1])])
    eventually(lambda: redis.one(plain_call("GET", name)) is None, "the removal's replay")
    assert world.client.get_linked_pod(uid, "svc") is None
    redis.close()


def test_a_frozen_pod_is_heard_or_dead_before_its_users_can_move(world: World) -> None:
    """The router has forgotten the user, Redis too; the one pod that knows does not answer."""
    uid = USERS[0]
    asked: list[ray_route.Link] = []
    with frozen_pod(world.client, "svc", world.links[uid].pod):
        world.client.cache_expired(uid, "svc")
        flush(world)
        ask = threading.Thread(
            target=lambda: asked.append(world.client.compute_linked_pod(uid, "svc", timeout=30))
        )
        ask.start()
        ask.join(1.0)
        assert not asked, "a user was placed whom a silent pod may hold"
    ask.join(30)
    assert asked == [world.links[uid]]
    world.check()


def test_indexes_can_not_be_claimed_unseen_while_the_pod_table_is_lost(world: World) -> None:
    """A flush must not let another process take the index of a living pod."""
    namespace, url = world.client.namespace, world.server.url

    @ray.remote(num_cpus=0)
    def claim() -> str:
        intruder = ray_route.PodAgent(namespace, "svc", 0, redis_url=url)
        try:
            intruder.start(timeout=1.5)
        except ray_route.RouteTimeoutError as refused:
            return str(refused)
        intruder.stop()
        return "claimed"

    asked = claim.remote()
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        flush(world)
        time.sleep(0.01)  # the pace of the fault
    assert "pod 0" in ray.get(asked) or "write back" in ray.get(asked)
    world.check()
