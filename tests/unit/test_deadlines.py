from __future__ import annotations

import asyncio
import time

import pytest

from ray_route import clock
from ray_route.clock import Deadline, backoff_s, now
from ray_route.errors import RouteTimeoutError
from ray_route.router.in_move import InMove
from ray_route.runtime.call_context import (
    DEFAULT_TIMEOUT_S,
    begin_serving,
    end_serving,
    seconds,
)


@pytest.fixture
def moment(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which moves only when a test says so."""
    held = [100.0]
    monkeypatch.setattr(clock, "now", lambda: held[0])
    return held


def test_a_deadline_counts_down_and_is_never_negative(moment: list[float]):
    deadline = Deadline.after(5)
    assert deadline.remaining() == 5
    moment[0] = 103
    assert deadline.remaining() == 2
    moment[0] = 999
    assert deadline.remaining() == 0


def test_a_deadline_that_has_passed_says_what_was_waited_for(moment: list[float]):
    deadline = Deadline.after(5)
    deadline.check("the router")
    moment[0] = 105
    with pytest.raises(RouteTimeoutError, match="after 5 s, waiting for the router") as caught:
        deadline.check("the router")
    assert (caught.value.waiting_for, caught.value.timeout_s) == ("the router", 5)


def test_what_a_call_leaves_behind_inherits_its_deadline_no_more():
    async def check() -> list[float]:
        served = begin_serving(Deadline.after(0.0))
        left_behind, asked = asyncio.Event(), asyncio.Event()

        async def background() -> float:
            asked.set()
            within = seconds(None)
            await left_behind.wait()
            return within or seconds(None)

        task = asyncio.create_task(background())
        await asked.wait()
        end_serving(served)
        left_behind.set()
        return [await task, seconds(None)]

    assert asyncio.run(check()) == [DEFAULT_TIMEOUT_S, DEFAULT_TIMEOUT_S]


def test_the_clock_runs_forward_in_seconds():
    begun, reference = now(), time.monotonic()
    while time.monotonic() - reference < 0.02:
        pass
    assert now() - begun >= 0.02


def test_a_machines_sleep_counts():
    # Elsewhere than on a machine that has slept, the clocks show the same.
    assert (now.func, now.args) == (time.clock_gettime, (time.CLOCK_BOOTTIME,))


def test_pauses_grow_up_to_a_limit_however_often_it_failed():
    assert [backoff_s(failures, 0.5, 3.0) for failures in range(4)] == [0.5, 1.0, 2.0, 3.0]
    assert backoff_s(100_000, 0.5, 3.0) == 3.0


def test_who_waited_until_then_by_another_clock_hears_so_all_the_same(moment: list[float]):
    """The event loop's clock may be ahead of the one that deadlines are on."""

    async def move(turns: InMove, timeout_s: float) -> None:
        async with turns.turn("rooms", "u", Deadline.after(timeout_s)):
            await move(turns, 0.01)

    async def main() -> None:
        with pytest.raises(RouteTimeoutError, match="other moves of uid 'u' of 'rooms'"):
            await move(InMove(), 5)

    assert moment
    asyncio.run(main())
