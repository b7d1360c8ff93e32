"""Pods are ended: those that have not begun at once, one that just begins in order, all in time."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
from deploying import recipe_of
from helpers import eventually
from lives import SOON_S, Life, Service
from services import Counter, GatedCarrier, made_in

import ray_route
from ray_route.clock import Deadline
from ray_route.controller import upkeep
from ray_route.controller.making import named_pods
from ray_route.pod import unbegun
from ray_route.pod.unbegun import end_unbegun
from ray_route.protocol.names import RAY_NAMESPACE, pod_name
from ray_route.runtime import head_notes
from ray_route.runtime.scheduling import DEAD, state_of
from ray_route.runtime.waiting import no_check

pytestmark = pytest.mark.slow

# Of the 8 CPUs of the tests' Ray: a second pod has no room.
TOO_MANY = {"num_cpus": 5}
# What a pod that runs may be given, and one that does not is not waited for.
LONG_S = 60.0


class Stuck:
    """A service whose pod 1 died, and begins again when it is told to; its controller sleeps."""

    def __init__(self, client: Any, deployment: ray_route.Deployment, folder: Path) -> None:
        self.client, self.service = client, deployment.service
        self.folder = folder
        self.of = Service(client, deployment)
        self.before = client.pods(self.service)[1].incarnation
        name = pod_name(client.namespace, self.service, 1)
        self.handle = ray.get_actor(name, namespace=RAY_NAMESPACE)
        client.move("ann", self.service, 1)
        pid = client.call("ann", self.service, "pid")
        (folder / "go").unlink()
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: len(made_in(folder)) == 3, "its __init__ runs again")
        eventually(lambda: not self.lives(), "the pod table has its death")

    def lives(self) -> bool:
        return bool(self.client.pods(self.service)[1].life is ray_route.Life.ALIVE)

    def let_begin(self) -> None:
        """Let pod 1 begin, and wait until it has, or is no more."""
        (self.folder / "go").touch()
        eventually(lambda: self.lives() or state_of(self.handle) == DEAD, "it begins, or ends")

    def made_anew(self) -> Life:
        """Have pod 1 be made for the first time, as it were; return the life that made it."""
        ray.kill(self.handle, no_restart=True)
        where = (self.client, self.service, str(self.folder))
        self.of.recipe = recipe_of(GatedCarrier, *where)
        life = self.of.life()
        eventually(lambda: 1 not in life.upkeep.named(), "its name is free")
        deadline = Deadline.after(SOON_S)
        life.upkeep.recipes.make(life.upkeep.recipes.name, [1], self.of.actor, deadline)
        (self.handle,) = life.upkeep.handles([1]).values()
        eventually(lambda: len(made_in(self.folder)) == 4, "its __init__ runs")
        return life

    def add(self, uid: str) -> int:
        return int(self.client.call(uid, self.service, "add", uid))


@pytest.fixture
def stuck(client: Any, deploy: Any, tmp_path: Path) -> Iterator[Stuck]:
    (tmp_path / "go").touch()
    found = Stuck(client, deploy(GatedCarrier, replicas=2, args=(str(tmp_path),)), tmp_path)
    yield found
    (tmp_path / "go").touch()
    os.kill(found.of.pid, signal.SIGKILL)  # its next life goes on


def took_s(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def test_a_shutdown_does_not_wait_for_a_pod_that_has_nowhere_to_begin(
    client: Any, deploy: Any
) -> None:
    deployment = deploy(Counter, replicas=1, ray_actor_options=TOO_MANY)
    with ThreadPoolExecutor(1) as driver:
        scaling = driver.submit(deployment.scale, 2, timeout=LONG_S)
        eventually(lambda: deployment.status().pods == (0, 1), "it is made")
        assert took_s(lambda: deployment.shutdown(LONG_S)) < LONG_S / 2
        with pytest.raises(ray_route.RouteError):
            scaling.result(LONG_S)


def test_a_pod_that_does_not_answer_is_waited_for_no_longer_than_a_shutdown_may_take(
    client: Any, deploy: Any
) -> None:
    deployment = deploy(Counter, replicas=2)
    client.move("ann", deployment.service, 1)
    os.kill(client.call("ann", deployment.service, "pid"), signal.SIGSTOP)
    deployment.shutdown(grace_s=1.0)
    assert named_pods(client.namespace, deployment.service) == {}


def test_a_pod_that_has_not_begun_is_scaled_down_at_once(
    stuck: Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = stuck.made_anew()
    assert state_of(stuck.handle) == "PENDING_CREATION"
    monkeypatch.setattr(upkeep, "_NO_USERS_GRACE_S", LONG_S)
    assert took_s(lambda: list(life.upkeep.shrink([0], SOON_S, no_check))) < LONG_S / 2
    assert list(life.upkeep.named()) == [0]
    constructing = made_in(stuck.folder)[-1]
    eventually(lambda: not Path(f"/proc/{constructing}").exists(), "nor is its process there")


def test_a_pod_that_begins_as_it_is_ended_serves_nobody(
    stuck: Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_for_good = unbegun._end_for_good

    def late(pod: Any) -> bool:
        stuck.let_begin()
        return end_for_good(pod)

    monkeypatch.setattr(unbegun, "_end_for_good", late)
    assert end_unbegun(stuck.handle)
    assert stuck.client.pods(stuck.service)[1].incarnation == stuck.before
    assert noted(stuck) == []


def test_a_pod_that_has_begun_by_then_is_not_ended_and_serves_on(
    stuck: Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = head_notes.put

    def late(name: str, value: bytes) -> None:
        stuck.let_begin()
        stuck.client.move("bob", stuck.service, 1)
        assert stuck.add("bob") == 1
        put(name, value)

    monkeypatch.setattr(head_notes, "put", late)
    assert not end_unbegun(stuck.handle)
    assert stuck.add("bob") == 2
    assert noted(stuck) == []


def test_a_pod_whose_ender_died_ends_itself_and_is_made_anew_where_it_is_wanted(
    stuck: Stuck,
) -> None:
    head_notes.put(f"{unbegun._notes_of(stuck.handle)}of who died", b"ends")
    stuck.let_begin()
    assert state_of(stuck.handle) == DEAD
    assert stuck.client.pods(stuck.service)[1].incarnation == stuck.before
    life = stuck.of.life()
    eventually(lambda: life.looked(2), "it is made anew", SOON_S)
    eventually(stuck.lives, "and serves", SOON_S)


def noted(stuck: Stuck) -> list[str]:
    return head_notes.names(stuck.handle._actor_id.hex())


def test_what_was_made_in_vain_and_serves_by_now_hands_its_users_over(
    stuck: Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = stuck.of.life()
    pods = life.upkeep.pods

    def late(*args: float) -> Any:
        found = pods(*args)
        monkeypatch.undo()
        stuck.let_begin()
        stuck.client.move("bob", stuck.service, 1)
        assert stuck.add("bob") == 1
        return found

    monkeypatch.setattr(life.upkeep, "pods", late)
    life.upkeep.undo({1: stuck.handle}, SOON_S)
    assert list(life.upkeep.named()) == [0]
    assert stuck.add("bob") == 2
