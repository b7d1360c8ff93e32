"""What an error says of a call: whether it has run, and whose error it is."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from helpers import eventually, router_handle, unique_name
from services import AsyncBank, Bank

import ray_route


@pytest.fixture(scope="module", params=[Bank, AsyncBank])
def bank(request: pytest.FixtureRequest, client: Any) -> Iterator[str]:
    name = request.param.__name__
    with ray_route.deploy(request.param, namespace=client.namespace, service=name, replicas=1):
        yield name


@pytest.fixture
def debits(client: Any, bank: str) -> Iterator[list[int]]:
    """At the end of a test, one debit for each that it says there was."""
    before, expected = client.call("ann", bank, "count"), [1]
    yield expected
    assert client.call("ann", bank, "count") - before == sum(expected)


NESTED = [
    ray_route.PodUnavailableError(
        reason="it drains", may_have_run=False, namespace="n", service="other", uid="bob", pod=7
    ),
    ray_route.FencedError(reason="moved", may_have_run=False, service="other", uid="bob", pod=7),
    ray_route.RouteTimeoutError(waiting_for="bob's pod", timeout_s=1, uid="bob"),
]


@pytest.mark.slow
@pytest.mark.parametrize("met", NESTED, ids=lambda error: type(error).__name__)
def test_an_error_of_a_nested_call_is_no_verdict_on_the_outer_one(
    client: Any, bank: str, debits: list[int], met: ray_route.RouteError
) -> None:
    with pytest.raises(ray_route.NestedCallError) as caught:
        client.call("ann", bank, "ask_itself", met)
    error = caught.value
    assert f"ask_itself raised {type(met).__name__}" in str(error)
    assert error.may_have_run
    assert (error.service, error.uid, error.pod) == (bank, "ann", 0)
    assert (str(error.error), type(error.error)) == (str(met), type(met))
    assert error.error.uid == "bob"
    assert "ask_itself" in str(error.__cause__), "the user's own traceback"


def test_a_nested_call_that_finds_no_pod_is_told_apart_too(
    client: Any, bank: str, debits: list[int]
) -> None:
    with pytest.raises(ray_route.NestedCallError) as caught:
        client.call("ann", bank, "ask_nobody", client.namespace)
    assert isinstance(caught.value.error, ray_route.NoAvailablePodError)
    assert (caught.value.service, caught.value.error.service) == (bank, "no-such-service")


def test_no_method_can_have_itself_sent_again(client: Any, bank: str, debits: list[int]) -> None:
    with pytest.raises(ray_route.NestedCallError, match="mine"):
        client.call("ann", bank, "refuse_itself")


def test_it_is_so_in_a_batch_and_for_an_awaited_client(
    client: Any, bank: str, debits: list[int]
) -> None:
    (outcome,) = client.call_many([("ann", (NESTED[0],))], bank, "ask_itself")
    assert isinstance(outcome, ray_route.NestedCallError)
    assert (outcome.uid, outcome.error.uid) == ("ann", "bob")

    async def awaited() -> None:
        async with await ray_route.connect_async(client.namespace) as awaiting:
            with pytest.raises(ray_route.NestedCallError, match="it drains"):
                await awaiting.call("ann", bank, "ask_itself", NESTED[0])

    asyncio.run(awaited())
    debits.append(1)


def test_other_errors_of_users_are_as_they_were(client: Any, bank: str, debits: list[int]) -> None:
    with pytest.raises(LookupError, match="mine"):
        client.call("ann", bank, "ask_itself", LookupError("mine"))


def test_a_call_that_was_late_may_run_still_and_says_so(
    client: Any, bank: str, debits: list[int], tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    with pytest.raises(ray_route.RouteTimeoutError, match="may run still") as caught:
        client.call("ann", bank, "fail_at", str(gate), timeout=0.3)
    assert caught.value.may_have_run is True
    assert (caught.value.service, caught.value.uid) == (bank, "ann")
    (outcome,) = client.call_many([("ann", (str(gate),))], bank, "fail_at", timeout=0.3)
    assert isinstance(outcome, ray_route.RouteTimeoutError)
    assert (outcome.may_have_run, outcome.uid) == (True, "ann")
    gate.touch()
    if bank == "AsyncBank":  # else the second one waited for its turn, and did not begin
        debits.append(1)


def test_a_call_that_was_never_sent_says_so(client: Any, bank: str) -> None:
    pid, _ = ray.get(router_handle(client.namespace).whereabouts.remote())
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(ray_route.RouteTimeoutError, match="the call did not run") as caught:
            client.call(unique_name(), bank, "count", timeout=0.3)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert caught.value.may_have_run is False


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """What Ray complains of in this process."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    listener = Listener()
    logging.getLogger("ray").addHandler(listener)
    yield said
    logging.getLogger("ray").removeHandler(listener)


def test_what_comes_after_a_caller_has_given_up_is_complained_of_by_nobody(
    client: Any, bank: str, debits: list[int], tmp_path: Path, complaints: list[str]
) -> None:
    gate = tmp_path / "gate"

    async def awaited() -> None:
        async with await ray_route.connect_async(client.namespace) as awaiting:
            with pytest.raises(ray_route.RouteTimeoutError):
                await awaiting.call("ann", bank, "fail_at", str(gate), timeout=0.3)

    with pytest.raises(ray_route.RouteTimeoutError):
        client.call("ann", bank, "fail_at", str(gate), timeout=0.3)
    asyncio.run(awaited())
    gate.touch()
    client.actor("ann", bank).fail_at.remote(str(gate))
    eventually(lambda: complaints, "Ray complains of one that nobody ever waited for")
    assert len([said for said in complaints if "Unhandled error" in said]) == 1
    debits.extend([1, 1] if bank == "AsyncBank" else [1])  # who waited for his turn gave up
