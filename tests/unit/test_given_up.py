"""What is left of work in threads of its own, wherever who waited for it was interrupted."""

from __future__ import annotations

import contextlib
import time

from helpers import eventually
from interrupting import at_every_line

from ray_route.clock import Deadline
from ray_route.runtime import given_up, waiting
from ray_route.runtime.waiting import Stage, within

LONGEST_S = 10.0


def test_work_that_was_interrupted_before_it_began_is_waited_for_by_nobody() -> None:
    def work() -> None:
        within(Deadline.after(LONGEST_S), Stage("it"), lambda: None, makes=True)

    def check() -> None:
        begun = time.monotonic()
        given_up.await_given_up(LONGEST_S)
        assert time.monotonic() < begun + LONGEST_S

    assert at_every_line(work, check, given_up, waiting, contextlib) > 10


def test_what_is_made_is_undone_wherever_its_maker_is_interrupted() -> None:
    left: list[int] = []
    made: list[int] = []

    def make() -> int:
        left.append(len(left))
        return left[-1]

    def work() -> None:
        made.append(within(Deadline.after(LONGEST_S), Stage("it"), make, undo=left.remove))

    def check() -> None:
        for each in made:
            left.remove(each)
        made.clear()
        eventually(lambda: not left, "what nobody has is undone")

    assert at_every_line(work, check, given_up, waiting, contextlib) > 10
