"""What other drivers ask for while an upgrade goes its way back: done in time, or refused aloud."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
from deploying import drive
from helpers import eventually
from upgraded import New, Old, OneWay, Refusing

import ray_route
from ray_route.clock import Deadline
from ray_route.controller.recipe import Given
from ray_route.controller.recipes import holders_of
from ray_route.protocol.names import RAY_NAMESPACE
from ray_route.runtime.waiting import run
from ray_route.store.wanted import Upgrade

pytestmark = pytest.mark.slow

SOON_S = 120.0
SHORT_S = 3.0
BUSY_S = 30.0
"""So much later an answer may come where the machine has no time; it would wait for longer."""


@pytest.fixture
def rooms(deploy: Any, tmp_path: Path) -> ray_route.Deployment:
    """Two pods of the old version."""
    deployment: ray_route.Deployment = deploy(Old, replicas=2, args=(str(tmp_path),), per_uid=True)
    return deployment


def said(client: Any, service: str, *uids: str, number: int = 0) -> dict[str, Any]:
    return {uid: client.call(uid, service, "say", number) for uid in uids}


def by_another_driver(deployment: ray_route.Deployment, *asks: str) -> list[dict[str, Any]]:
    """Have a driver of its own ask for things at once; return what it was told, and how late."""
    code = f"""
import json, time
from concurrent.futures import ThreadPoolExecutor
deployment = ray_route.get_deployment(namespace, service)

def ask(what):
    begun, kind, said = time.monotonic(), None, ""
    try:
        eval(f"deployment.{{what}}")
    except ray_route.RouteError as error:
        kind, said = type(error).__name__, str(error)
    return {{"kind": kind, "said": said, "after_s": time.monotonic() - begun}}

with ThreadPoolExecutor() as asks:
    print(json.dumps(list(asks.map(ask, {asks!r}))))
"""
    told: list[dict[str, Any]] = drive(code, deployment.namespace, service=deployment.service)
    return told


@pytest.fixture
def going_back(
    client: Any, rooms: ray_route.Deployment, tmp_path: Path
) -> Iterator[Callable[[], None]]:
    """An upgrade on its way back, which a call of a user of a new pod holds up; lets it go on.

    User "odd", whose state the new class can't read, is at pod 1, "held" was at pod 0.
    """
    service, until = rooms.service, tmp_path / "end"
    for pod, uid in enumerate(("held", "odd")):
        client.set_linked_pod_if_absent(uid, service, pod)
    said(client, service, "held", "odd")
    odd = client.service(service)["odd"].hold.options(timeout_s=4 * SOON_S).remote()
    eventually((tmp_path / "held").exists, "a call runs", SOON_S)
    failed: list[Exception] = []

    def upgrade() -> None:
        try:
            rooms.upgrade(Refusing)
        except ray_route.RouteError as error:
            failed.append(error)

    upgrading = threading.Thread(target=upgrade)
    upgrading.start()
    eventually(lambda: client.compute_linked_pod("held", service).pod == 2, "it moves", SOON_S)
    (tmp_path / "held").unlink()
    held = client.service(service)["held"].hold.options(timeout_s=4 * SOON_S).remote("end")
    eventually((tmp_path / "held").exists, "a call runs at the new pod", SOON_S)
    (tmp_path / "go").touch()
    odd.result(timeout_s=SOON_S)
    eventually(lambda: rooms.status().doing == "drain pod 2", "it is on its way back", SOON_S)
    assert rooms.status().generation == 1

    def go_on() -> None:
        until.touch()
        held.result(timeout_s=SOON_S)
        upgrading.join(SOON_S)
        assert [type(error) for error in failed] == [ray_route.UpgradeError]

    yield go_on
    until.touch()
    upgrading.join(SOON_S)


def test_what_has_to_wait_for_it_is_refused_at_its_deadline_with_the_reason(
    rooms: ray_route.Deployment, going_back: Callable[[], None]
) -> None:
    within = f"timeout={SHORT_S}"
    of_one = (f"scale(3, {within})", f"rebalance(deadline_s={SHORT_S})")
    of_other = (f"cordon(1, {within})", f"uncordon(1, {within})", f"keep_even(0.5, {within})")
    with ThreadPoolExecutor(2) as drivers:
        asked = [drivers.submit(by_another_driver, rooms, *asks) for asks in (of_one, of_other)]
        told = [each for one in asked for each in one.result(2 * SOON_S)]
    assert len(told) == 5
    for each in told:
        assert each["kind"] == "RouteTimeoutError"
        assert "on its way back to generation 1 (drain pod 2)" in each["said"]
        assert each["after_s"] < SHORT_S + BUSY_S
    going_back()
    status = rooms.status()
    assert (status.replicas, status.cordons, status.tolerance) == (2, (), None)


def test_what_waits_for_long_enough_is_done_afterwards(
    client: Any, rooms: ray_route.Deployment, going_back: Callable[[], None]
) -> None:
    asks = (f"scale(3, timeout={SOON_S})", f"cordon(1, timeout={SOON_S})")
    with ThreadPoolExecutor(2) as drivers:
        asked = [drivers.submit(by_another_driver, rooms, ask) for ask in asks]
        time.sleep(SHORT_S)  # they wait: nothing tells of that
        assert not any(it.done() for it in asked)
        going_back()
        told = [each["said"] for it in asked for each in it.result(2 * SOON_S)]
    assert told == ["", ""]
    status = rooms.status()
    assert (status.generation, status.pods, status.cordons) == (1, (0, 1, 2), (1,))
    assert said(client, rooms.service, "held", "odd", number=1) == {
        "held": (1, [0, 1]),
        "odd": (1, [0, 1]),
    }


def test_a_shutdown_does_not_wait_for_it(
    rooms: ray_route.Deployment, going_back: Callable[[], None]
) -> None:
    del going_back
    (told,) = by_another_driver(rooms, "shutdown(1.0)")
    assert (told["kind"], told["said"]) == (None, "")
    assert told["after_s"] < BUSY_S
    with pytest.raises(ray_route.ClosedError):
        rooms.status()


def test_where_the_way_back_is_stuck_a_cordon_is_taken_and_a_scaling_is_told_why_it_waits(
    client: Any, rooms: ray_route.Deployment
) -> None:
    uids = [f"u{number}" for number in range(10)]
    said(client, rooms.service, *uids, "odd")
    with pytest.raises(ray_route.UpgradeError, match="what is this") as caught:
        rooms.upgrade(OneWay)
    assert not caught.value.undone
    (told,) = by_another_driver(rooms, f"cordon(1, timeout={SOON_S})")
    assert (told["said"], rooms.status().cordons) == ("", (1,))
    (told,) = by_another_driver(rooms, f"scale(3, timeout={SHORT_S})")
    assert told["kind"] == "RouteTimeoutError"
    assert "on its way back to generation 1, which is tried again, and stops:" in told["said"]
    assert told["after_s"] < SHORT_S + BUSY_S
    assert rooms.status().replicas == 2


def test_an_upgrade_that_is_given_up_before_its_class_is_there_does_not_begin(
    rooms: ray_route.Deployment,
) -> None:
    """The holder of its class is let go by who awaits it alone: else it may be wanted by then."""
    asked = rooms._controller
    making = asked._make_holder(New, Given(), "asked")
    name = run(making, Deadline.after(SOON_S))
    holder: Any = ray.get_actor(name, namespace=RAY_NAMESPACE)
    process = ray.get(holder.__ray_call__.remote(lambda _: os.getpid()))
    os.kill(process, signal.SIGSTOP)
    try:
        controller = asked.found()
        begun = controller.begin_upgrade.remote(name, Upgrade(0, 0, "", request="asked"), SOON_S)
        awaits = lambda it: it._upgrades._awaited and it._turn.lock.locked()  # noqa: E731 - sent there
        waits = lambda: ray.get(controller.__ray_call__.remote(awaits))  # noqa: E731
        eventually(waits, "its class is awaited", SOON_S)
        ray.get(controller.give_up.remote("asked"))
    finally:
        os.kill(process, signal.SIGCONT)
    with pytest.raises(ray_route.CallCancelledError):
        ray.get(begun, timeout=SOON_S)
    assert rooms.status().generation == 1
    eventually(lambda: name not in holders_of(rooms.namespace, rooms.service), "it is let go")
