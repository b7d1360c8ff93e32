"""A service's end does not wait for a controller that has not begun, or not begun again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import ray
from gated_controllers import Gate, GatedController
from helpers import eventually, unique_name
from lives import SOON_S
from services import Carrier

import ray_route
from ray_route.clock import Deadline
from ray_route.controller import handle
from ray_route.controller.making import named_pods
from ray_route.controller.recipes import holders_of, make_holder
from ray_route.protocol.names import RAY_NAMESPACE, controller_name
from ray_route.runtime import head_notes
from ray_route.runtime.scheduling import ALIVE, DEAD, state_of
from ray_route.runtime.waiting import run

pytestmark = pytest.mark.slow

# What a controller that runs may be given, and one that does not is not waited for.
LONG_S = 60.0


class Held:
    """A service with a user, whose controller does not begin again before it is let go on."""

    def __init__(self, client: Any, deployment: ray_route.Deployment, gate: Gate) -> None:
        self.client, self.deployment, self.gate = client, deployment, gate
        self.service = deployment.service
        name = controller_name(client.namespace, self.service)
        self.controller = ray.get_actor(name, namespace=RAY_NAMESPACE)
        self.process = deployment.status().process

    def let_die(self) -> None:
        self.gate.shut()
        os.kill(self.process, signal.SIGKILL)
        eventually(self.gate.waits, "its next life is at its constructor", SOON_S)

    def check_ended(self) -> None:
        """Check that nothing is left of it, now or soon, and that its user was released."""
        where, actor = (self.client.namespace, self.service), self.controller._actor_id.hex()
        eventually(lambda: state_of(self.controller) == DEAD, "its controller is ended", SOON_S)
        assert (named_pods(*where), holders_of(*where)) == ({}, [])
        assert head_notes.names(actor) == []
        assert (Carrier().shelf / f"{'-'.join(where)}-ann").read_text() == "1"


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    monkeypatch.setattr(handle, "Controller", GatedController)
    made = Gate(unique_name())
    yield made
    made.open()


@pytest.fixture
def held(client: Any, deploy: Any, gate: Gate) -> Held:
    found = Held(client, deploy(Carrier, replicas=2, service=gate.service), gate)
    assert client.call("ann", found.service, "add", "ann") == 1
    return found


def test_a_shutdown_does_not_wait_for_a_controller_that_is_being_made(
    client: Any, deploy: Any, gate: Gate
) -> None:
    gate.shut()
    with ThreadPoolExecutor(1) as driver:
        deploying = driver.submit(deploy, Carrier, 2, service=gate.service, timeout=2 * LONG_S)
        eventually(gate.waits, "its constructor runs", SOON_S)
        eventually(
            lambda: len(named_pods(client.namespace, gate.service)) == 2, "its pods are made"
        )
        began = time.monotonic()
        ray_route.get_deployment(client.namespace, gate.service).shutdown(LONG_S)
        assert time.monotonic() - began < LONG_S / 2
        with pytest.raises(ray_route.RouteError):
            deploying.result(LONG_S)
    assert named_pods(client.namespace, gate.service) == {}
    gate.open()
    assert deploy(Carrier, 1, service=gate.service).status().pods == (0,)


def test_nor_for_one_that_is_being_made_again_and_users_are_released(held: Held) -> None:
    recipe = run(held.deployment._controller.ask("recipe"), Deadline.after(SOON_S))
    make_holder(recipe, [], unique_name())
    held.let_die()
    began = time.monotonic()
    held.deployment.shutdown(LONG_S)
    assert time.monotonic() - began < LONG_S / 2
    held.check_ended()


@pytest.mark.parametrize("when", ["before pods end", "after that"])
def test_one_that_begins_meanwhile_makes_nothing_anew(
    held: Held, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    held.let_die()
    stop = handle.stop_found

    def begins() -> bool:
        held.gate.open()
        eventually(lambda: state_of(held.controller) in (ALIVE, DEAD), "it begins", SOON_S)
        return True

    def slow(*given: Any) -> bool:
        return begins() and stop(*given) if when == "before pods end" else stop(*given) and begins()

    monkeypatch.setattr(handle, "stop_found", slow)
    held.deployment.shutdown(LONG_S)
    held.check_ended()


def keeps(deployment: ray_route.Deployment) -> bool:
    return deployment.status(timeout=SOON_S).wanted == (0, 1)


def dies(*_: Any) -> bool:
    raise LookupError("here")


def test_one_whose_ender_died_goes_on_with_it_when_it_begins(
    held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    held.let_die()
    with monkeypatch.context() as patched:
        patched.setattr(handle, "stop_found", dies)
        with pytest.raises(LookupError, match="here"):
            held.deployment._controller.end(LONG_S)
    assert len(named_pods(held.client.namespace, held.service)) == 2
    held.gate.open()
    held.check_ended()


def test_so_does_one_that_begins_as_its_ender_has_found_that_it_has_not(
    held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    held.let_die()
    has_ended = handle.ControllerHandle._has_ended

    def begins_then(*given: Any) -> bool:
        found = has_ended(*given)
        held.gate.open()
        eventually(lambda: keeps(held.deployment), "it begins, and keeps its service", SOON_S)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(handle.ControllerHandle, "_has_ended", begins_then)
        patched.setattr(handle, "stop_found", dies)
        with pytest.raises(LookupError, match="here"):
            held.deployment._controller.end(LONG_S)
    held.check_ended()
