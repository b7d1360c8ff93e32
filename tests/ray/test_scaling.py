"""Scaling: what is wanted is made before anything is taken, and one caller scales at a time."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import ray
from deploying import recipe_of
from helpers import eventually
from services import Counter, Gated, GatedCarrier
from upgraded import Old

import ray_route
from ray_route.controller.actor import THREADS
from ray_route.controller.draining import is_draining
from ray_route.controller.upkeep import Upkeep
from ray_route.pod import stopping
from ray_route.protocol.names import RAY_NAMESPACE

pytestmark = pytest.mark.slow

SOON_S = 120.0
"""For what takes a second or two where the machine has time."""


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


@contextmanager
def shut(go: Path) -> Iterator[None]:
    """Let what starts wait, until the end of the block, however that ends."""
    go.unlink()
    try:
        yield
    finally:
        go.touch()


def kill(client: Any, service: str) -> None:
    """Kill pod 1, which Ray restarts."""
    uid = next(u for u in map(str, range(99)) if client.compute_linked_pod(u, service).pod == 1)
    os.kill(client.call(uid, service, "pid"), signal.SIGKILL)
    eventually(lambda: 1 not in states(client, service), "its death is known", SOON_S)


def scaled_in_vain(deployment: ray_route.Deployment, replicas: int, while_in: str) -> None:
    """Have a scaling run out of time while it is in a certain step.

    How long it takes until it comes there is the machine's affair.
    """
    for timeout in (5, 30, SOON_S):
        with pytest.raises(ray_route.RouteTimeoutError) as caught:
            deployment.scale(replicas, timeout=timeout)
        if re.search(while_in, str(caught.value)):
            return
    raise caught.value


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
    with shut(go):
        kill(client, service)
        scaled_in_vain(gated, 3, r"pods \[1, 2\]")
    both = {0: "READY", 1: "READY"}
    eventually(lambda: states(client, service) == both, "Ray's own restart", SOON_S)
    with pytest.raises(ValueError, match="Failed to look up"):
        ray.get_actor(f"ray_route:{client.namespace}:{service}:2", namespace=RAY_NAMESPACE)


def test_two_that_scale_at_once_do_so_one_after_the_other(client: Any, deploy: Any) -> None:
    deployment = deploy(Counter, replicas=2)
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(deployment.scale, wanted) for wanted in (4, 1)]:
            done.result(2 * SOON_S)
    assert sorted(states(client, deployment.service)) in ([0], [0, 1, 2, 3])


def test_whoever_scales_waits_for_another_and_says_so(client: Any, deploy: Any, go: Path) -> None:
    deployment = deploy(Gated, replicas=1, args=(str(go.parent),))
    other = ray_route.get_deployment(client.namespace, deployment.service)
    with ThreadPoolExecutor(1) as pool:
        with shut(go):
            scaled = pool.submit(deployment.scale, 2, timeout=4 * SOON_S)
            eventually(lambda: "wait for pods [1]" in deployment.status().doing, "it waits", SOON_S)
            scaled_in_vain(other, 3, r"the turn at .* \(wait for pods \[1\]\)")
        scaled.result(4 * SOON_S)
    assert states(client, deployment.service) == {0: "READY", 1: "READY"}
    assert deployment.status().replicas == 2


def test_an_interrupted_scale_ends_what_it_made(client: Any, deploy: Any, go: Path) -> None:
    deployment = deploy(Gated, replicas=1, args=(str(go.parent),))

    def interrupt() -> None:
        eventually(lambda: "wait for pods [1]" in deployment.status().doing, "it waits", SOON_S)
        os.kill(os.getpid(), signal.SIGINT)

    with shut(go), ThreadPoolExecutor(1) as pool:
        interrupted = pool.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            deployment.scale(2, timeout=2 * SOON_S)
        interrupted.result(SOON_S)
        eventually(lambda: deployment.status().pods == (0,), "pod 1 is ended", SOON_S)
        eventually(lambda: deployment.status().replicas == 1, "and not wanted any more", SOON_S)


def test_a_scaling_that_was_given_up_before_it_came_does_not_begin(
    client: Any, deploy: Any, go: Path
) -> None:
    """What is given up overtakes what was asked for, where all threads wait for their turns."""
    deployment = deploy(Gated, replicas=1, args=(str(go.parent),))
    controller = deployment._controller.found()
    with ThreadPoolExecutor(1) as pool:
        with shut(go):
            scaled = pool.submit(deployment.scale, 2, timeout=4 * SOON_S)
            eventually(lambda: "wait for pods [1]" in deployment.status().doing, "it waits", SOON_S)
            waiting = [controller.keep_even.remote(None, SOON_S) for _ in range(THREADS)]
            in_vain = controller.scale.remote("asked", 3, SOON_S, SOON_S)
            ray.get(controller.give_up.remote("asked"))
        scaled.result(4 * SOON_S)
    ray.get(waiting)
    with pytest.raises(ray_route.CallCancelledError):
        ray.get(in_vain)
    assert deployment.status().pods == (0, 1)


def test_an_interrupted_scale_in_gives_the_pod_back_that_was_being_drained(
    client: Any, deploy: Any, tmp_path: Path
) -> None:
    deployment = deploy(Old, replicas=2, args=(str(tmp_path),), per_uid=True)
    service, session = deployment.service, client._session
    uid = {client.compute_linked_pod(u, service).pod: u for u in map(str, range(99))}[1]
    held = client.service(service)[uid].hold.options(timeout_s=4 * SOON_S).remote()
    eventually((tmp_path / "held").exists, "a call runs", SOON_S)

    def interrupt() -> None:
        eventually(lambda: is_draining(session, service, 1), "pod 1 is drained", SOON_S)
        os.kill(os.getpid(), signal.SIGINT)

    with ThreadPoolExecutor(1) as pool:
        interrupted = pool.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            deployment.scale(1, timeout=2 * SOON_S)
        interrupted.result(SOON_S)
    eventually(lambda: deployment.status().replicas == 2, "both are wanted", SOON_S)
    eventually(lambda: not is_draining(session, service, 1), "the drain has stopped", SOON_S)
    (tmp_path / "go").touch()
    held.result(timeout_s=SOON_S)
    assert client.compute_linked_pod(uid, service).pod == 1
    assert states(client, service) == {0: "READY", 1: "READY"}


def test_scaling_in_ends_pods_that_are_just_being_restarted(
    client: Any, gated: ray_route.Deployment, go: Path
) -> None:
    service = gated.service
    with shut(go):
        kill(client, service)
        gated.scale(1, timeout=SOON_S)

    with pytest.raises(ValueError, match="Failed to look up"):
        ray.get_actor(f"ray_route:{client.namespace}:{service}:1", namespace=RAY_NAMESPACE)


@pytest.mark.parametrize("when", ["before it is asked", "after it was asked"])
def test_a_pod_that_comes_back_while_it_is_scaled_away_hands_its_users_over(
    client: Any, deploy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
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
    eventually(lambda: 1 not in states(client, service), "its death is known", SOON_S)
    tables, looks = upkeep.pods, count()

    def comes_back() -> None:
        go.touch()
        eventually(lambda: 1 in states(client, service), "it serves again", SOON_S)
        client.move("user", service, 1)
        assert client.call("user", service, "add", "user") == 1

    def looked() -> Any:
        look, found = next(looks), tables()
        if (when, look) == ("before it is asked", 1):
            comes_back()
        elif (when, look) == ("after it was asked", 2):  # it looks again before it kills
            comes_back()
            return tables()
        return found

    monkeypatch.setattr(upkeep, "pods", looked)
    if when == "after it was asked":  # it ran when that was looked at, and has died since
        monkeypatch.setattr(stopping, "end_unbegun", lambda _: False)
    done = list(upkeep.shrink([0], 60, lambda: None))
    assert "drain pod 1, which has begun another life" in done
    assert client.call("user", service, "add", "user") == 2
    assert states(client, service) == {0: "READY"}
    deployment.scale(1)
