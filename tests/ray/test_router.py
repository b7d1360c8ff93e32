from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import ray
from helpers import end_router, eventually, router_handle, unique_name
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

import ray_route
from ray_route.model import Link
from ray_route.protocol.names import RAY_NAMESPACE
from ray_route.protocol.wire import pack_question, unpack_answers
from ray_route.router.actor import Router

pytestmark = [pytest.mark.slow, pytest.mark.own_namespace]


def sets(client: Any, work: Callable[[], Any]) -> int:
    """Count the SETs of this namespace meanwhile: one per link, one per script that writes.

    Not by the server's statistics: the routers of other namespaces write, too.
    """
    redis, end = client._session.namespace.store._client, unique_name()
    with redis.monitor() as monitor:
        work()
        redis.echo(end)
        seen = iter(lambda: monitor.next_command()["command"], f"ECHO {end}")
        written = [words for words in seen if words.upper().startswith("SET ")]
    return sum(client.namespace in words.split()[1] for words in written)


def compute(router: Any, uids: list[str], service: str = "svc") -> Any:
    """Ask a router as clients do."""
    return router.compute.remote(pack_question(service, dict.fromkeys(uids, 0)))


def test_100_requests_for_one_unplaced_uid_cause_one_write(client: Any, u: str) -> None:
    router = router_handle(client.namespace)
    answers: list[Any] = []

    def ask() -> None:
        answers.extend(ray.get([compute(router, [u]) for _ in range(100)]))

    assert sets(client, ask) == 2  # the link, and the shard's counter
    assert len({unpack_answers(answer)[0] for answer in answers}) == 1


def test_many_uids_take_one_script_call_per_shard(client: Any, u: str) -> None:
    uids = [f"{u}-{number}" for number in range(1_500)]
    shards = {client._session.namespace.keys.shard(uid) for uid in uids}
    router = router_handle(client.namespace)
    written = sets(client, lambda: ray.get(compute(router, uids)))
    assert written == len(uids) + len(shards)


def test_there_is_one_router_however_many_clients_connect(client: Any) -> None:
    others = [ray_route.connect(client.namespace) for _ in range(5)]
    assert {other._session.namespace.router for other in others} == {
        router_handle(client.namespace)
    }
    for other in others:
        other.close()
    named = ray.util.list_named_actors(all_namespaces=True)
    assert {"name": f"ray_route:{client.namespace}:router", "namespace": RAY_NAMESPACE} in named


# In one go, since a process takes two seconds of a core to come up.
PROCESSES = 4
PROGRAM = textwrap.dedent("""
    import asyncio, json, logging, sys
    import ray, ray_route

    namespace, address, number = sys.argv[1:]
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)

    async def race(uids):
        async with await ray_route.connect_async(namespace) as client:
            async def worker(start):
                found = {}
                for turn in range(start, start + len(uids)):
                    uid = uids[turn % len(uids)]
                    link = await client.compute_linked_pod(uid, "raced", timeout=60)
                    found[uid] = (link.pod, link.epoch)
                return found
            answers = await asyncio.gather(*(worker(7 * n) for n in range(200)))
            assert all(answer == answers[0] for answer in answers), "tasks disagree"
            return answers[0]

    def place(uids):
        with ray_route.connect(namespace) as client:
            for start in range(0, len(uids), 50):
                client.compute_linked_pods(uids[start : start + 50], "even", timeout=60)

    raced = asyncio.run(race([f"race-{n}" for n in range(500)]))
    place([f"even-{number}-{n}" for n in range(2_500)])
    print(json.dumps(raced, sort_keys=True))
""")


@pytest.fixture(scope="module")
def crowded(ray_session: None) -> Iterator[ray_route.RouteClient]:
    """A client of a namespace of eight equal pods of service "even", and four of "raced"."""
    name = unique_name()
    # Nobody calls these pods, so their heartbeats would tell of no load: none comes meanwhile.
    slow = {"heartbeat_s": 40.0, "pod_lease_s": 200.0, "staleness_s": 200.0}
    indexes = [("even", pod) for pod in range(8)] + [("raced", pod) for pod in range(4)]
    agents = [ray_route.PodAgent(name, *index, **slow).start() for index in indexes]
    with ray_route.connect(name) as client:
        yield client
    for agent in agents:
        agent.stop()
    end_router(name)


@pytest.fixture(scope="module")
def outputs(crowded: ray_route.RouteClient, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What some processes said that raced for the same uids, and then placed others."""
    script = tmp_path_factory.mktemp("router") / "program.py"
    script.write_text(PROGRAM)
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, str(script), crowded.namespace, address]
    started = [
        subprocess.Popen(
            [*command, str(number)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for number in range(PROCESSES)
    ]
    said = [process.communicate(timeout=110) for process in started]
    assert [process.returncode for process in started] == [0] * PROCESSES, said[0][1][-2000:]
    return [output.strip().splitlines()[-1] for output, _ in said]


def test_4_processes_of_200_tasks_agree_on_500_fresh_uids(
    crowded: ray_route.RouteClient, outputs: list[str]
) -> None:
    assert len(set(outputs)) == 1
    links = crowded.compute_linked_pods([f"race-{n}" for n in range(500)], "raced")
    assert json.loads(outputs[0]) == {uid: [link.pod, link.epoch] for uid, link in links.items()}
    per_pod = [sum(link.pod == pod for link in links.values()) for pod in range(4)]
    assert max(per_pod) - min(per_pod) <= 50


def test_4_processes_spread_10000_uids_evenly_over_8_pods(
    crowded: ray_route.RouteClient, outputs: list[str]
) -> None:
    uids = [f"even-{number}-{n}" for number in range(PROCESSES) for n in range(2_500)]
    stored = crowded.batch_get_linked_pod(uids, "even")
    sizes = [len(stored[pod]) for pod in range(8)]
    print(f"10,000 uids over 8 pods from 4 processes: {sizes}")
    assert stored.missing == []
    assert max(sizes) <= 1.1 * 1250
    assert min(sizes) >= 0.9 * 1250


def test_a_killed_router_is_restarted_and_no_link_moves(deploy: Any, client: Any, u: str) -> None:
    uids = [f"{u}-{number}" for number in range(50)]
    links = client.compute_linked_pods(uids, "svc")
    pid, _ = ray.get(router_handle(client.namespace).whereabouts.remote())
    os.kill(pid, signal.SIGKILL)

    assert client.get_linked_in_cache(uids[0], "svc") == links[uids[0]]
    assert client.batch_get_linked_pod(uids, "svc").missing == []
    assert client.compute_linked_pod(f"{u}-new", "svc", timeout=30).pod in {0, 1, 2}
    for uid in uids:
        client.cache_expired(uid, "svc")
    assert client.compute_linked_pods(uids, "svc") == links


def test_while_the_router_is_away_hits_and_batches_go_on_and_newcomers_wait(
    client: Any, u: str
) -> None:
    uids = [f"{u}-{number}" for number in range(200)]
    links = client.compute_linked_pods(uids, "svc")
    namespace, ends = client.namespace, threading.Event()

    def hit() -> int:
        hits = 0
        while not ends.is_set():
            for uid in uids:
                hits += client.get_linked_in_cache(uid, "svc") == links[uid]
        return hits

    def read() -> int:
        batches = 0
        while not ends.is_set():
            stored = client.batch_get_linked_pod(uids, "svc")
            assert stored.missing == []
            assert sum(map(len, stored.values())) == len(uids)
            batches += 1
        return batches

    @ray.remote(num_cpus=0)
    def come() -> Any:
        with ray_route.connect(namespace, timeout=60) as newcomer:
            return newcomer.compute_linked_pods(uids, "svc", timeout=60)

    ray.get(come.remote())  # a worker is up that has imported everything
    with ThreadPoolExecutor(3) as pool:
        others = [pool.submit(hit), pool.submit(read)]
        ray.kill(router_handle(namespace), no_restart=False)
        newcomer = come.remote()
        fresh = client.compute_linked_pod(f"{u}-fresh", "svc", timeout=30)
        assert ray.get(newcomer, timeout=60) == links
        ends.set()
        assert all(other.result(30) > 0 for other in others)
    assert fresh.pod in {0, 1, 2}
    assert client.compute_linked_pods(uids, "svc") == links


def test_a_router_that_is_gone_for_good_is_made_anew(client: Any, u: str) -> None:
    link = client.compute_linked_pod(u, "svc")
    ray.kill(router_handle(client.namespace), no_restart=True)
    client._session.near.flush()

    assert client.compute_linked_pod(u, "svc", timeout=30) == link
    assert client.compute_linked_pod(f"{u}-new", "svc", timeout=30).pod in {0, 1, 2}


def test_an_older_router_changes_nothing_and_exits(client: Any, u: str) -> None:
    link = client.compute_linked_pod(u, "svc")
    older = router_handle(client.namespace)
    session = client._session
    younger = (
        ray.remote(Router)
        .options(name=unique_name(), namespace=RAY_NAMESPACE, num_cpus=0)
        .remote(client.namespace, session.namespace.url, session.namespace.config)
    )
    assert unpack_answers(ray.get(compute(younger, [u]))) == [link]
    # Its own look may have told it before: then it is on its way out, or gone.
    with pytest.raises((ray_route.RouterUnavailableError, ray.exceptions.RayActorError)):
        ray.get(compute(older, [f"{u}-2"]))
    assert client.get_linked_pod_not_cache(f"{u}-2", "svc") is None

    def has_exited() -> bool:
        try:
            ray.get(older.whereabouts.remote(), timeout=5)
        except ray.exceptions.RayActorError:
            return True
        except ray.exceptions.GetTimeoutError:
            return False
        return False

    eventually(has_exited, "the older router exits")
    ray.kill(younger)
    assert client.compute_linked_pod(u, "svc", timeout=30) == link


def test_a_stale_reply_of_the_table_moves_nobody(client: Any, u: str) -> None:
    """A link made for a life that the router's table does not know yet is not relinked."""
    link = client.compute_linked_pod(u, "svc")
    session = client._session
    future = Link(link.pod, link.incarnation + 10**12, 0, persistent=False, lease_s=0)
    assert not session.table.has_ended("svc", future)
    past = Link(link.pod, link.incarnation - 1, 0, persistent=False, lease_s=0)
    assert session.table.has_ended("svc", past)


@ray.remote(num_cpus=0)
class Newcomer:
    def connect(self, namespace: str) -> None:
        ray_route.connect(namespace).close()


def test_a_router_outlives_the_placement_group_of_who_made_it(ray_session: None) -> None:
    name = unique_name()
    group = ray.util.placement_group([{"CPU": 1}])
    inside = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)
    newcomer = Newcomer.options(scheduling_strategy=inside).remote()
    ray.get(newcomer.connect.remote(name))
    pid, _ = ray.get(router_handle(name).whereabouts.remote())
    ray.util.remove_placement_group(group)
    eventually(lambda: ray.util.placement_group_table(group)["state"] == "REMOVED", "it is removed")
    assert ray.get(router_handle(name).whereabouts.remote(), timeout=60)[0] == pid
    end_router(name)
