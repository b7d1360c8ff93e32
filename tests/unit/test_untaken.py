"""Answers that nobody takes are looked at now and then, also on a machine that is busy."""

from __future__ import annotations

import time
from typing import Any

import pytest
from helpers import eventually

from ray_route.client.call_loop import CallLoop
from ray_route.client.outgoing import Outgoing
from ray_route.client.untaken import Untaken
from ray_route.clock import Deadline


@pytest.mark.slow
def test_a_look_that_waits_for_a_busy_machine_puts_the_next_off_no_longer() -> None:
    looks: list[int] = []

    def slow(calls: list[Outgoing]) -> None:
        looks.append(len(calls))
        if len(looks) == 1:
            time.sleep(2)  # others have the processor

    loop = CallLoop()
    try:
        outcomes: Any = None
        untaken = Untaken(outcomes, loop, outcomes)
        untaken.look = slow  # type: ignore[method-assign]
        call = Outgoing("ns", "rooms", "ann", "say", (), {}, False, Deadline.after(60))
        untaken.add(call)
        # A tenth of the time, were waiting a cost: the next would come after 20 s.
        eventually(lambda: len(looks) >= 2, "it was looked at again")
        untaken.discard(call)
    finally:
        loop.stop()
