"""Run as a program: a cluster of three nodes on this machine, and what happens when one goes.

With "told" as its argument: what happens when one is told to end.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from helpers import eventually, router_handle
from ray.cluster_utils import Cluster
from services import Counter
from tallies import Tally

import ray_route
from ray_route.store.embedded import EmbeddedServer

LEASE_S = 3.0
# How long a node that is told to end may take to leave.
DRAIN_S = 12
# Nobody reads the logs, and there is no cloud to ask for nodes.
UNWATCHED = {"include_log_monitor": False, "no_monitor": True, "include_dashboard": False}
QUICK = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 5,
}


def main() -> None:
    head = {"num_cpus": 1, "_system_config": QUICK, **UNWATCHED}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    others = [cluster.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        with EmbeddedServer() as server:
            if "told" in sys.argv:
                a_node_that_is_told_to_end_gives_its_users_away(cluster, server.url)
                return
            pods_spread_and_a_node_may_go(cluster, others, server.url)
            a_node_that_is_drained_gives_its_users_away(cluster, server.url)
            a_router_moves_with_its_node(cluster, server.url)
    finally:
        ray.shutdown()
        cluster.shutdown()


def pods_spread_and_a_node_may_go(cluster: Any, others: list[Any], url: str) -> None:
    """Remove, and take from the list, a node on which there is a pod and not the router."""
    options = {"pod_lease_s": LEASE_S, "heartbeat_s": 0.5}
    spread = {"num_cpus": 1, "max_restarts": 0, "scheduling_strategy": "SPREAD"}
    with (
        ray_route.connect("nodes", url, **options) as client,
        ray_route.deploy(
            Counter,
            namespace="nodes",
            service="svc",
            replicas=3,
            redis_url=url,
            ray_actor_options=spread,
        ),
    ):
        uids = [f"u{number}" for number in range(30)]
        before = client.compute_linked_pods(uids, "svc")
        pods = client.pods("svc")
        node = next(node for node in others if node.node_id != home("nodes"))
        others.remove(node)
        assert len({pod.node for pod in pods.values()}) == 3, pods
        (lost,) = [index for index, pod in pods.items() if pod.node == node.node_id]

        cluster.remove_node(node, allow_graceful=False)
        removed_at = time.monotonic()
        longest = 0.0
        # The node's workers outlive its raylet for a moment, and may serve until they end.
        while client.pods("svc")[lost].life is ray_route.Life.ALIVE:
            assert age(removed_at) < LEASE_S + 10, "the lost pod is declared gone"
            longest = max(longest, call_all(client, uids))
        longest = max(longest, call_all(client, uids))
        after = client.compute_linked_pods(uids, "svc")
        moved = [uid for uid in uids if after[uid] != before[uid]]
        expected = [uid for uid in uids if before[uid].pod == lost]
        assert moved == expected, (moved, expected, before, after, client.pods("svc"))
        assert longest < LEASE_S + 5, longest
        print(f"a node with 1 of 3 pods removed: all 30 uids served, each within {longest:.2f} s")


def a_node_that_is_drained_gives_its_users_away(cluster: Any, url: str) -> None:
    """Have Ray drain a node, as KubeRay does before it goes, and kill it at its deadline."""
    nodes = [cluster.add_node(num_cpus=1, resources={"site": 1}) for _ in range(2)]
    options = {"num_cpus": 0, "resources": {"site": 1}, "max_restarts": 0}
    place: dict[str, Any] = {"namespace": "leaving", "service": "svc", "redis_url": url}
    with (
        ray_route.connect("leaving", url) as client,
        ray_route.deploy(Tally, replicas=2, ray_actor_options=options, **place),
    ):
        uids = [f"u{number}" for number in range(30)]
        assert {client.call(uid, "svc", "add", uid) for uid in uids} == {1}
        node = next(node for node in nodes if node.node_id == client.pods("svc")[0].node)
        drain_by_command(cluster, node.node_id)
        eventually(lambda: pods_of(client, uids) == {1}, "its uids have moved", 25)
        cluster.remove_node(node, allow_graceful=False)
        assert {client.call(uid, "svc", "add", uid) for uid in uids} == {2}
        print("a node that Ray had drained was removed: no uid has lost its state")


def a_node_that_is_told_to_end_gives_its_users_away(cluster: Any, url: str) -> None:
    """Send SIGTERM to a machine's `ray start`, as KubeRay does, while users are called."""
    rest = cluster.add_node(num_cpus=1, resources={"told": 1})
    options = {"num_cpus": 0, "resources": {"told": 1}, "max_restarts": 0}
    place: dict[str, Any] = {"namespace": "told", "service": "svc", "redis_url": url}
    with (
        started(cluster, {"told": 1}) as program,
        ray_route.connect("told", url) as client,
        ray_route.deploy(Tally, replicas=2, ray_actor_options=options, **place),
    ):
        uids = [f"u{number}" for number in range(30)]
        (left,) = [index for index, it in client.pods("svc").items() if it.node == rest.node_id]
        with called_on(client, uids) as counts:
            assert len(pods_of(client, uids)) == 2
            program.terminate()
            told_at = time.monotonic()
            program.wait(DRAIN_S + 60)
            took_s = age(told_at)
        assert pods_of(client, uids) == {left}
        assert {uid: client.call(uid, "svc", "add", uid) for uid in uids} == counts
        print(f"a node that was told to end has ended after {took_s:.1f} s: no call failed")
        ended_at = time.monotonic()
    print(f"and its service, one of whose pods has no node any more, after {age(ended_at):.1f} s")


@contextmanager
def started(cluster: Any, resources: dict[str, int]) -> Iterator[subprocess.Popen[bytes]]:
    """Start a node as a machine does, by a program that stays; end it, if it is there yet."""
    before = nodes()
    words = ["start", "--address", cluster.address, "--block", "--num-cpus", "1"]
    environment = {**os.environ, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(DRAIN_S)}
    program = subprocess.Popen(
        [ray_program(), *words, "--resources", json.dumps(resources)],
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    try:
        eventually(lambda: nodes() - before, "the node is there")
        yield program
    finally:
        program.kill()


def nodes() -> set[str]:
    """Return the ids of the nodes that are alive."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


@contextmanager
def called_on(client: Any, uids: list[str]) -> Iterator[dict[str, int]]:
    """Call all uids, again and again; give what each call is to return next."""
    counts, stop = dict.fromkeys(uids, 1), threading.Event()

    def go_on() -> None:
        while not stop.is_set():
            for uid in uids:
                assert client.call(uid, "svc", "add", uid, timeout=60) == counts[uid], uid
                counts[uid] += 1

    with ThreadPoolExecutor(1) as pool:
        calls = pool.submit(go_on)
        try:
            eventually(lambda: calls.done() or min(counts.values()) > 1, "each was called")
            yield counts
        finally:
            stop.set()
        calls.result(60)


def ray_program() -> str:
    return str(Path(sysconfig.get_path("scripts")) / "ray")


def drain_by_command(cluster: Any, node: str) -> None:
    """Run the line of the page, for half a minute."""
    page = (Path(__file__).parents[2] / "docs/howto/remove_node.md").read_text()
    line = next(line for line in page.splitlines() if line.startswith("ray drain-node"))
    words = shlex.split(line.replace("NODE_ID", node).replace("300", "30"))
    subprocess.run(
        [ray_program(), *words[1:], "--address", cluster.address], check=True, timeout=120
    )


def pods_of(client: Any, uids: list[str]) -> set[int]:
    return {link.pod for link in client.compute_linked_pods(uids, "svc").values()}


def call_all(client: Any, uids: list[str]) -> float:
    """Call every uid; return the longest wait in seconds."""
    waits = []
    for uid in uids:
        asked_at = time.monotonic()
        client.call(uid, "svc", "add", uid, idempotent=True, timeout=30)
        waits.append(age(asked_at))
    return max(waits)


def a_router_moves_with_its_node(cluster: Any, url: str) -> None:
    """Remove the node of a router: Ray places it anywhere, and the head's node has to stay."""
    workers = {node.node_id: node for node in cluster.worker_nodes}
    for number in range(30):
        name = f"router-{number}"
        with ray_route.connect(name, url) as client:
            router = client._session.namespace.router
            _, where = ray.get(router.whereabouts.remote())
            if where not in workers:
                ray.kill(router, no_restart=True)
                continue
            agent = ray_route.PodAgent(name, "svc", 0, redis_url=url).start()
            link = client.compute_linked_pod("u", "svc")
            cluster.remove_node(workers[where], allow_graceful=False)
            removed_at = time.monotonic()
            wait_until_elsewhere(name, where)
            assert client.compute_linked_pod("fresh", "svc", timeout=60).pod == 0
            print(f"the router's node removed: a miss is answered after {age(removed_at):.2f} s")
            client.cache_expired("u", "svc", timeout=60)
            assert client.compute_linked_pod("u", "svc") == link
            eventually(lambda: client.pods("svc")[0].heartbeat_age_s < 2, "the agent goes on")
            agent.stop()
            return
    sys.exit("no router came up on the node")


def wait_until_elsewhere(namespace: str, node: str) -> None:
    eventually(lambda: home(namespace) not in (None, node), "it is restarted elsewhere", 60)


def home(namespace: str) -> str | None:
    """Return the node where a namespace's router answers from; None if it does not answer."""
    try:
        return str(ray.get(router_handle(namespace).whereabouts.remote(), timeout=5)[1])
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
        return None


def age(since: float) -> float:
    return time.monotonic() - since


if __name__ == "__main__":
    main()
