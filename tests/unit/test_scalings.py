"""The turn to scale a service."""

from __future__ import annotations

from helpers import ManualClock

from ray_route.router.scalings import Scalings


def test_a_turn_is_one_callers_until_it_is_given_back_or_runs_out() -> None:
    clock = ManualClock()
    scalings = Scalings(clock)
    assert scalings.hold("svc", "first", 10)
    assert not scalings.hold("svc", "second", 10)
    assert scalings.hold("other", "second", 10)

    clock.tick(9)
    assert scalings.hold("svc", "first", 10), "it goes on"
    clock.tick(9)
    assert not scalings.hold("svc", "second", 10)
    scalings.release("svc", "second")
    assert not scalings.hold("svc", "second", 10), "only its holder gives it back"

    clock.tick(1)
    assert scalings.hold("svc", "second", 10)
    assert not scalings.hold("svc", "first", 10)
    scalings.release("svc", "first")
    scalings.release("svc", "second")
    assert scalings.hold("svc", "first", 10)
