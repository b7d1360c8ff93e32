"""Scaling: what is wanted is made before anything is taken, and one caller scales at a time."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
from helpers import eventually, router_handle
from services import Counter, Gated, GatedCarrier

import ray_route
from ray_route.protocol.names import RAY_NAMESPACE


def states(client: Any, service: str) -> dict[int, str]:
    """Return the states of the pods that live."""
    return {
        index: pod.state.value
        for index, pod in client.pods(service).items()
        if pod.life is ray_route.Life.ALIVE
    }


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file without which no pod of `gated` comes to its end of starting."""
    go = tmp_path_factory.mktemp("gate") / "go"
    go.touch()
    return go


@pytest.fixture(scope="module")
def gated(client: Any, go: Path) -> Iterator[ray_route.Deployment]:
    """Two pods, that tests leave as they are or, the last one, scale in."""
    where = {"namespace": client.namespace, "service": "gated", "replicas": 2}
    with ray_route.deploy(Gated, args=(str(go.parent),), **where) as deployment:
        yield deployment


def kill_and_hold_back(client: Any, service: str, go: Path) -> None:
    """Kill pod 1, and let its restart wait."""
    uid = next(u for u in map(str, range(99)) if client.compute_linked_pod(u, service).pod == 1)
    pid = client.call(uid, service, "pid")
    go.unlink()
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: 1 not in states(client, service), "its death is known")


def test_a_drained_pod_that_is_wanted_again_is_made_before_others_are_drained(
    client: Any, deploy: Any
) -> None:
    deployment = deploy(Counter, replicas=2)
    service = deployment.service
    uids = [f"u{number}" for number in range(20)]
    client.call_many([(uid, (uid,)) for uid in uids], service, "add")
    *_, last = deployment.drain(0)
    assert last.problem is None

    deployment.scale(1)

    assert states(client, service) == {0: "READY"}
    results = client.call_many([(uid, (uid,)) for uid in [*uids, "new"]], service, "add")
    assert not [result for result in results if isinstance(result, Exception)]


def test_a_scale_that_fails_ends_no_pod_that_it_did_not_make(
    client: Any, gated: ray_route.Deployment, go: Path
) -> None:
    service = gated.service
    kill_and_hold_back(client, service, go)

    with pytest.raises(ray_route.RouteTimeoutError, match=r"pods \[1, 2\]"):
        gated.scale(3, timeout=8)

    go.touch()
    eventually(lambda: states(client, service) == {0: "READY", 1: "READY"}, "Ray's own restart", 20)
    with pytest.raises(ValueError, match="Failed to look up"):
        ray.get_actor(f"ray_route:{client.namespace}:{service}:2", namespace=RAY_NAMESPACE)


def test_two_that_scale_at_once_do_so_one_after_the_other(client: Any, deploy: Any) -> None:
    deployment = deploy(Counter, replicas=2)
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(deployment.scale, wanted) for wanted in (4, 1)]:
            done.result(60)
    assert sorted(states(client, deployment.service)) in ([0], [0, 1, 2, 3])


def test_whoever_scales_waits_for_another_and_says_so(client: Any, deploy: Any) -> None:
    deployment = deploy(Counter, replicas=1)
    service, router = deployment.service, router_handle(client.namespace)
    assert ray.get(router.hold_scaling.remote(service, "another", 30.0))
    with pytest.raises(ray_route.RouteTimeoutError, match="another caller that is scaling"):
        deployment.scale(2, timeout=3)
    assert states(client, service) == {0: "READY"}

    assert ray.get(router.hold_scaling.remote(service, "another", 2.0)), "it dies in its turn"
    asked_at = time.monotonic()
    deployment.scale(2)
    assert time.monotonic() - asked_at > 0.5
    assert states(client, service) == {0: "READY", 1: "READY"}
    assert ray.get(router.hold_scaling.remote(service, "another", 0.1)), "it was given back"


def test_scaling_in_ends_pods_that_are_just_being_restarted(
    client: Any, gated: ray_route.Deployment, go: Path
) -> None:
    service = gated.service
    kill_and_hold_back(client, service, go)

    gated.scale(1)
    go.touch()

    with pytest.raises(ValueError, match="Failed to look up"):
        ray.get_actor(f"ray_route:{client.namespace}:{service}:1", namespace=RAY_NAMESPACE)


def test_a_pod_that_comes_back_while_it_is_scaled_away_hands_its_users_over(
    client: Any, deploy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = tmp_path / "go"
    go.touch()
    deployment = deploy(GatedCarrier, replicas=2, args=(str(tmp_path),))
    service, tables = deployment.service, deployment.pods
    pids = {client.compute_linked_pod(u, service).pod: u for u in map(str, range(99))}
    pid = client.call(pids[1], service, "pid")
    go.unlink()
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: 1 not in states(client, service), "its death is known")
    looks: list[int] = []

    def looked(*args: Any) -> Any:
        looks.append(len(looks))
        if len(looks) == 4:  # it looks again before it kills: now the pod comes back
            go.touch()
            eventually(lambda: 1 in states(client, service), "it serves again", 30)
            client.move("user", service, 1)
            assert client.call("user", service, "add", "user") == 1
        return tables(*args)

    monkeypatch.setattr(deployment, "pods", looked)
    deployment.scale(1)
    assert len(looks) > 4
    assert client.call("user", service, "add", "user") == 2
    assert states(client, service) == {0: "READY"}
