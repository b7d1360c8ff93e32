"""Scaling: what is wanted is made before anything is taken, and one caller scales at a time."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import ray
from deploying import recipe_of
from helpers import eventually
from services import Counter, Gated, GatedCarrier

import ray_route
from ray_route.controller.upkeep import Upkeep
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


def test_whoever_scales_waits_for_another_and_says_so(client: Any, deploy: Any, go: Path) -> None:
    deployment = deploy(Gated, replicas=1, args=(str(go.parent),))
    other = ray_route.get_deployment(client.namespace, deployment.service)
    go.unlink()
    with ThreadPoolExecutor(1) as pool:
        scaled = pool.submit(deployment.scale, 2)
        eventually(lambda: "wait for pods [1]" in deployment.status().doing, "it waits", 30)
        with pytest.raises(
            ray_route.RouteTimeoutError, match=r"scaling .* \(wait for pods \[1\]\)"
        ):
            other.scale(3, timeout=1)
        go.touch()
        scaled.result(60)
    assert states(client, deployment.service) == {0: "READY", 1: "READY"}
    assert deployment.status().replicas == 2


def test_an_interrupted_scale_ends_what_it_made(client: Any, deploy: Any, go: Path) -> None:
    deployment = deploy(Gated, replicas=1, args=(str(go.parent),))
    go.unlink()

    def interrupt() -> None:
        eventually(lambda: "wait for pods [1]" in deployment.status().doing, "it waits", 30)
        os.kill(os.getpid(), signal.SIGINT)

    with ThreadPoolExecutor(1) as pool:
        interrupted = pool.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            deployment.scale(2)
        interrupted.result(30)
    eventually(lambda: deployment.status().pods == (0,), "pod 1 is ended", 30)
    eventually(lambda: deployment.status().replicas == 1, "and not wanted any more", 30)
    go.touch()


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
    service = deployment.service
    upkeep = Upkeep(recipe_of(GatedCarrier, client, service, str(tmp_path)), [], "")
    pids = {client.compute_linked_pod(u, service).pod: u for u in map(str, range(99))}
    pid = client.call(pids[1], service, "pid")
    go.unlink()
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: 1 not in states(client, service), "its death is known")
    tables, looks = upkeep.pods, count()

    def looked() -> Any:
        if next(looks) == 2:  # it looks again before it kills: now the pod comes back
            go.touch()
            eventually(lambda: 1 in states(client, service), "it serves again", 30)
            client.move("user", service, 1)
            assert client.call("user", service, "add", "user") == 1
        return tables()

    monkeypatch.setattr(upkeep, "pods", looked)
    done = list(upkeep.shrink(1, 60, lambda: None))
    assert "drain pod 1, which has begun another life" in done
    assert client.call("user", service, "add", "user") == 2
    assert states(client, service) == {0: "READY"}
    deployment.scale(1)
