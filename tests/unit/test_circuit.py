from __future__ import annotations

import pytest
from helpers import ManualClock

from ray_route.errors import ConfigError, StoreUnavailableError
from ray_route.store.circuit import PROBE_S, Circuit


def fail(circuit: Circuit, reason: str = "refused") -> None:
    with circuit.attempt():
        raise StoreUnavailableError(address="10.0.0.7:6379", reason=reason)


@pytest.fixture
def circuit(clock: ManualClock) -> Circuit:
    return Circuit(clock)


def test_a_closed_circuit_lets_everything_through(circuit: Circuit):
    for _ in range(3):
        with circuit.attempt():
            pass
    circuit.check()


def test_after_a_failure_others_fail_at_once_and_say_why(circuit: Circuit):
    with pytest.raises(StoreUnavailableError):
        fail(circuit)
    ran = []
    with (
        pytest.raises(StoreUnavailableError, match=r"10\.0\.0\.7:6379.*refused"),
        circuit.attempt(),
    ):
        ran.append(1)
    with pytest.raises(StoreUnavailableError):
        circuit.check()
    assert ran == []


def test_one_attempt_now_and_then_looks_while_others_go_on_failing(
    circuit: Circuit, clock: ManualClock
):
    with pytest.raises(StoreUnavailableError):
        fail(circuit)
    clock.tick(PROBE_S)
    circuit.check()
    with circuit.attempt():
        for _ in range(2):
            with pytest.raises(StoreUnavailableError), circuit.attempt():
                pytest.fail("two looked at once")
    with circuit.attempt():
        pass


def test_a_look_that_fails_says_what_it_saw_and_the_next_has_to_wait(
    circuit: Circuit, clock: ManualClock
):
    with pytest.raises(StoreUnavailableError):
        fail(circuit)
    clock.tick(PROBE_S)
    with pytest.raises(StoreUnavailableError, match="stalled"):
        fail(circuit, "stalled")
    with pytest.raises(StoreUnavailableError, match="stalled"), circuit.attempt():
        pytest.fail("it looked again at once")
    clock.tick(PROBE_S)
    with circuit.attempt():
        pass


def test_other_errors_do_not_open_it(circuit: Circuit):
    with pytest.raises(ConfigError), circuit.attempt():
        raise ConfigError(option="redis_url", reason="wrong password")
    with circuit.attempt():
        pass


def test_an_error_of_another_kind_ends_a_look(circuit: Circuit, clock: ManualClock):
    with pytest.raises(StoreUnavailableError):
        fail(circuit)
    clock.tick(PROBE_S)
    with pytest.raises(ConfigError), circuit.attempt():
        raise ConfigError(option="redis_url", reason="wrong password")
    with circuit.attempt():
        pass
