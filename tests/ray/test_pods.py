from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import ray
from helpers import WITHIN_S, end_router, eventually, router_handle, unique_name
from services import Counter, Waiting, by_last_digit

import ray_route
from ray_route.pod.own_record import OwnRecord
from ray_route.store.embedded import EmbeddedServer
from ray_route.testing.faults import kill_pod

pytestmark = pytest.mark.slow

# From the end of a process to the first served call: 1.5 s at rest, and on a busy machine still
# less than the 10 s of a lease, after which a silent pod is dead too.
FAILOVER_S = 9.0


@pytest.fixture(scope="module")
def mortal(client: Any) -> Iterator[str]:
    """A service of three pods, of which tests end one after the other."""
    where = {"namespace": client.namespace, "service": "mortal", "replicas": 3}
    with ray_route.deploy(Waiting, **where) as deployment:
        yield deployment.service


@pytest.fixture
def service(client: Any, mortal: str) -> str:
    """That service when its pods are alive."""

    def lives() -> list[ray_route.Life]:
        return [pod.life for pod in client.pods(mortal).values()]

    eventually(lambda: lives() == [ray_route.Life.ALIVE] * 3, "all pods are alive")
    return mortal


def end_from_outside(client: Any, uid: str, service: str) -> None:
    kill_pod(client, service, client.compute_linked_pod(uid, service).pod)


def end_from_inside(client: Any, uid: str, service: str) -> None:
    with pytest.raises(ray_route.PodUnavailableError) as caught:
        client.call(uid, service, "exit")
    assert caught.value.may_have_run
    assert caught.value.uid == uid


@pytest.mark.parametrize("end", [end_from_outside, end_from_inside])
def test_a_dead_pod_loses_only_its_own_uids_and_at_once(
    client: Any, service: str, namespace: str, end: Any
) -> None:
    uids = [f"{namespace}-{number}" for number in range(60)]
    before = client.compute_linked_pods(uids, service)
    victim = before[uids[0]].pod

    end(client, uids[0], service)
    ended_at = time.monotonic()
    assert client.call(uids[0], service, "add", uids[0], idempotent=True) == 1
    assert time.monotonic() - ended_at < FAILOVER_S

    after = client.compute_linked_pods(uids, service)
    moved = [uid for uid in uids if after[uid] != before[uid]]
    assert moved == [uid for uid in uids if before[uid].pod == victim]
    assert all(after[uid].epoch > before[uid].epoch for uid in moved)
    assert all(after[uid].incarnation != before[uid].incarnation for uid in moved)


def test_a_call_in_flight_on_a_dying_pod_says_that_it_may_have_run(
    client: Any, service: str, tmp_path: Path
) -> None:
    pid, gate = client.call("u", service, "pid"), tmp_path / "gate"
    failures: list[BaseException] = []

    def call() -> None:
        try:
            client.call("u", service, "wait", "u", str(gate))
        except ray_route.RouteError as error:
            failures.append(error)

    calling = threading.Thread(target=call)
    calling.start()
    eventually(gate.with_suffix(".begun").exists, "the call is under way")
    os.kill(pid, signal.SIGKILL)
    calling.join(WITHIN_S)
    assert isinstance(failures[0], ray_route.PodUnavailableError)
    assert failures[0].may_have_run


def test_a_restarted_pod_takes_part_again_with_a_new_incarnation(client: Any, deploy: Any) -> None:
    service = deploy(replicas=1).service
    first = client.compute_linked_pod("u", service)
    assert client.call("u", service, "add", "u", 5) == 5

    kill_pod(client, service, first.pod)

    assert client.call("u", service, "add", "u", idempotent=True, timeout=20) == 1
    second = client.compute_linked_pod("u", service)
    assert second.pod == first.pod
    assert second.incarnation > first.incarnation
    assert second.epoch > first.epoch
    assert client.call("u", service, "acquisitions") == ["u"]


def test_scaling_out_moves_nobody_and_new_uids_go_to_new_pods(client: Any, deploy: Any) -> None:
    deployment = deploy(replicas=2)
    service = deployment.service
    uids = [f"u{number}" for number in range(100)]
    before = client.compute_linked_pods(uids, service)
    client.call_many([(uid, (uid,)) for uid in uids], service, "add")
    eventually(
        lambda: sum(pod.load for pod in client.pods(service).values()) == 100, "loads are reported"
    )

    deployment.scale(4)

    assert client.compute_linked_pods(uids, service) == before
    fresh = client.compute_linked_pods([f"n{number}" for number in range(60)], service)
    assert {link.pod for link in fresh.values()} == {2, 3}


def test_a_service_can_be_deployed_again_after_its_shutdown(client: Any, deploy: Any) -> None:
    deployment = ray_route.deploy(
        Counter, namespace=client.namespace, service=unique_name(), replicas=1
    )
    deployment.shutdown()
    with pytest.raises(ray_route.NoAvailablePodError):
        client.compute_linked_pod("u", deployment.service)
    again = deploy(replicas=1, service=deployment.service)
    assert client.call("u", again.service, "add", "u") == 1


def test_pods_that_fail_to_start_leave_nothing_behind(client: Any, deploy: Any) -> None:
    service = unique_name()
    with pytest.raises(ray_route.PodUnavailableError, match="failed to start"):
        deploy(service=service, replicas=2, kwargs={"no_such": 1})
    names = {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)}
    assert not [name for name in names if service in name]
    assert client.call("u", deploy(service=service, replicas=1).service, "add", "u") == 1


def test_options_for_ray_pass_through(client: Any, deploy: Any) -> None:
    service = deploy(
        replicas=1, args=(7,), ray_actor_options={"num_cpus": 0.5, "max_restarts": 0}
    ).service
    assert client.call("u", service, "add", "u") == 8
    kill_pod(client, service, 0)
    eventually(
        lambda: client.pods(service)[0].life is ray_route.Life.GONE, "the pod is declared gone"
    )
    with pytest.raises(ray_route.NoAvailablePodError):
        client.compute_linked_pod("new", service)


def test_an_agent_by_hand_refuses_what_it_does_not_own(client: Any) -> None:
    service = unique_name()
    agent = ray_route.PodAgent(client.namespace, service, 0).start()
    link = client.compute_linked_pod("u", service)

    agent.admit("u", link.epoch, link.incarnation)
    for epoch, incarnation in [
        (link.epoch - 1, link.incarnation),
        (link.epoch + 1, link.incarnation),
        (link.epoch, link.incarnation - 1),
    ]:
        with pytest.raises(ray_route.FencedError):
            agent.admit("u", epoch, incarnation)
    with pytest.raises(ray_route.FencedError):
        agent.admit("another", link.epoch, link.incarnation)
    agent.stop()
    with pytest.raises(ray_route.FencedError):
        agent.admit("u", link.epoch, link.incarnation)
    assert client.pods(service)[0].life is ray_route.Life.RESIGNED


def test_a_stopped_agent_does_not_bring_its_router_back(
    ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The router is too busy to hear of the stop, so the agent's last call ends with it."""
    name, before = unique_name(), set(threading.enumerate())
    agent = ray_route.PodAgent(name, "svc", 0).start()
    monkeypatch.setattr(OwnRecord, "ask_router", lambda *_: None)
    agent.stop()
    end_router(name)

    def threads() -> list[str]:
        names = [thread.name for thread in set(threading.enumerate()) - before]
        return [name for name in names if name.startswith("ray_route-command")]

    eventually(lambda: not threads(), "the agent's threads end")
    with pytest.raises(ValueError, match=name):
        router_handle(name)


def test_a_claim_waits_for_the_present_owner(client: Any) -> None:
    service = unique_name()
    first = ray_route.PodAgent(client.namespace, service, 0).start()
    with pytest.raises(ray_route.RouteTimeoutError, match="present owner"):
        ray_route.PodAgent(client.namespace, service, 0).start(timeout=1.0)
    first.stop()
    second = ray_route.PodAgent(client.namespace, service, 0).start()
    assert second.incarnation > first.incarnation
    second.stop()


def test_a_sweep_moves_the_uids_of_dead_pods_at_once(client: Any, deploy: Any) -> None:
    deployment = deploy(replicas=3, ray_actor_options={"max_restarts": 0})
    service = deployment.service
    uids = [f"u:{number}" for number in range(90)]
    before = client.compute_linked_pods(uids, service)
    victim = before[uids[0]]
    kill_pod(client, service, victim.pod)
    eventually(
        lambda: client.pods(service)[victim.pod].life is ray_route.Life.GONE, "it is declared gone"
    )
    assert client.sweep(service) == sum(link.pod == victim.pod for link in before.values())
    assert client.sweep(service) == 0
    stored = client.batch_get_linked_pod(uids, service)
    assert victim.pod not in stored
    assert stored.unroutable == frozenset()


def test_a_restarting_pod_gets_its_grace_and_keeps_its_uids(ray_session: None) -> None:
    name = unique_name()
    with ray_route.connect(name, restart_grace_s=15.0) as client:
        options = {"namespace": name, "service": "svc", "replicas": 2}
        with ray_route.deploy(Counter, **options):
            before = client.compute_linked_pod("u", "svc")
            kill_pod(client, "svc", before.pod)
            assert client.call("u", "svc", "add", "u", idempotent=True) == 1
            after = client.compute_linked_pod("u", "svc")
            assert after.pod == before.pod
            assert after.incarnation > before.incarnation
    end_router(name)


def test_placement_evens_out_the_loads_that_pods_report(client: Any) -> None:
    service = unique_name()
    agents = [ray_route.PodAgent(client.namespace, service, n).start() for n in range(4)]
    for agent in agents:
        agent.set_load_state(100.0 * agent.pod)
    eventually(
        lambda: [round(pod.load) for pod in client.pods(service).values()] == [0, 100, 200, 300],
        "loads are reported",
    )
    links = client.compute_linked_pods([f"u{n}" for n in range(1000)], service)
    totals = [100 * pod + sum(link.pod == pod for link in links.values()) for pod in range(4)]
    assert max(totals) <= 1.1 * min(totals)
    for agent in agents:
        agent.stop()


def test_a_user_placement_decides_and_its_mistakes_are_named(ray_session: None) -> None:
    name = unique_name()
    with ray_route.connect(name, placement=by_last_digit) as client:
        agents = [ray_route.PodAgent(name, "svc", n).start() for n in range(3)]
        links = client.compute_linked_pods([f"u{n}" for n in range(30)], "svc")
        assert all(link.pod == int(uid[-1]) % 3 for uid, link in links.items())
        with pytest.raises(ray_route.ConfigError, match="not an available pod"):
            client.compute_linked_pod("nowhere", "svc")
        for agent in agents:
            agent.stop()
    end_router(name)


def test_agents_without_an_index_of_their_own_share_out_the_free_ones(client: Any) -> None:
    service = unique_name()
    made = [ray_route.PodAgent(client.namespace, service, None) for _ in range(6)]
    with pytest.raises(ray_route.PodUnavailableError):
        _ = made[0].pod
    with ThreadPoolExecutor(len(made)) as pool:
        agents = list(pool.map(lambda agent: agent.start(), made))
    assert sorted(agent.pod for agent in agents) == list(range(6))
    leaver = agents.pop(2)
    leaver.stop()
    agents.append(ray_route.PodAgent(client.namespace, service, None).start())
    assert agents[-1].pod == leaver.pod, "the lowest that nobody holds"
    assert agents[-1].incarnation > leaver.incarnation
    for agent in agents:
        agent.stop()


def test_an_agent_that_never_got_an_index_can_be_stopped(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = ray_route.PodAgent(client.namespace, unique_name(), None)
    late = ray_route.RouteTimeoutError(waiting_for="an index", timeout_s=1.0)
    monkeypatch.setattr(agent._index_lease, "begin", Mock(side_effect=late))
    with pytest.raises(ray_route.RouteTimeoutError):
        agent.start()
    monkeypatch.setattr(agent._namespace, "close", closed := Mock())
    agent.stop()
    closed.assert_called_once()


def test_fast_failover_takes_rays_word_for_a_death(ray_session: None) -> None:
    name = unique_name()
    with ray_route.connect(name, fast_failover=True, pod_lease_s=60) as client:
        options = {"namespace": name, "service": "svc", "replicas": 2}
        with ray_route.deploy(Counter, **options):
            before = client.compute_linked_pod("u", "svc")
            pid = client.call("u", "svc", "pid")
            handle = client.actor("u", "svc")
            os.kill(pid, signal.SIGSTOP)  # it can't end, and Ray calls it dead all the same
            try:
                ray.kill(handle, no_restart=True)
                asked_at = time.monotonic()
                assert client.call("u", "svc", "add", "u", idempotent=True) == 1
                assert time.monotonic() - asked_at < 30  # the lease is 60 s
                assert client.compute_linked_pod("u", "svc").pod != before.pod
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    end_router(name)


def test_agents_put_one_small_command_per_heartbeat_on_redis(ray_session: None) -> None:
    name, beats_s, pods = unique_name(), 0.5, 4
    with (
        EmbeddedServer() as server,
        ray_route.connect(name, server.url, heartbeat_s=beats_s, pod_lease_s=3.0) as client,
    ):
        agents = [
            ray_route.PodAgent(name, "svc", pod, redis_url=server.url).start()
            for pod in range(pods)
        ]
        redis = client._session.namespace.store._client
        # Scripts alone: reading the tables and the stream is the router's and the clients'.
        before, began = redis.info("commandstats")["cmdstat_evalsha"]["calls"], time.monotonic()
        eventually(lambda: time.monotonic() - began >= 3.0, "six heartbeats pass")
        scripts = redis.info("commandstats")["cmdstat_evalsha"]["calls"] - before
        beats = (time.monotonic() - began) / beats_s
        print(f"{scripts} scripts in {beats:.1f} heartbeats of {pods} idle pods")
        by_router = 2  # a heartbeat: its look, and its beat to the change stream
        assert pods * (beats - 2) <= scripts <= (pods + by_router) * (beats + 1)
        for agent in agents:
            agent.stop()
    end_router(name)


@pytest.mark.parametrize(("asked", "got"), [(5, 5), (None, 0)])
def test_log_records_say_whose_they_are_as_attributes(
    client: Any, caplog: Any, asked: int | None, got: int
) -> None:
    service = unique_name()
    with caplog.at_level("INFO", logger="ray_route"):
        agent = ray_route.PodAgent(client.namespace, service, asked).start()
        agent.stop()
    record = next(entry for entry in caplog.records if "is incarnation" in entry.message)
    assert record.name == "ray_route.pod.agent"
    assert (record.namespace, record.service, record.pod) == (client.namespace, service, got)
