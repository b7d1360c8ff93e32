"""Commands start and end in order, however often they are interrupted."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import pytest
from helpers import eventually
from interrupting import at_every_line

from ray_route.clock import Deadline
from ray_route.runtime import bootstrap
from ray_route.runtime.bootstrap import undoing
from ray_route.runtime.given_up import GivenUpError, making
from ray_route.runtime.waiting import Stage, within


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupt_waits_for_what_must_not_be_cut_short():
    done = []

    def work() -> None:
        with bootstrap._interrupts_later():
            interrupt()
            done.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["all of it"]


def test_undoing_goes_on_through_interrupts_and_errors():
    done = []

    def work() -> None:
        with undoing() as undo:
            undo.callback(done.append, "last")
            undo.callback(interrupt)
            undo.callback(done.append, "first")
            raise LookupError

    with pytest.raises(LookupError):
        work()
    assert done == ["first", "last"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("fails", [None, LookupError, KeyboardInterrupt])
def test_all_is_undone_wherever_one_more_interrupt_comes(
    fails: type[BaseException] | None,
) -> None:
    done: list[int] = []
    noted: list[int] = []

    def work() -> None:
        done.clear()
        noted.clear()
        with undoing() as undo:
            for number in (1, 0):
                undo.callback(done.append, number)
                noted.insert(0, number)
            if fails:
                raise fails

    def interrupted() -> None:
        with contextlib.suppress(LookupError):
            work()

    def check() -> None:
        assert noted in (done, done[1:])  # one may just have been noted
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    assert at_every_line(interrupted, check, bootstrap, contextlib) > 10


def test_nothing_is_taken_away_while_what_was_interrupted_may_make_it() -> None:
    """As a connect does, whose router would stay for ever."""
    order: list[str] = []

    def make() -> str:
        interrupt()
        eventually(lambda: signal.getsignal(signal.SIGINT) is signal.SIG_IGN, "the end has begun")
        order.append("made")
        return "undone"

    def work() -> None:
        with undoing() as undo:
            undo.callback(order.append, "taken away")
            within(Deadline.after(60), Stage("pods"), make, undo=order.append, makes=True)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert order == ["made", "undone", "taken away"]


def test_what_was_interrupted_is_not_waited_for_while_it_makes_nothing_and_makes_nothing_more():
    """As a connect whose store does not answer."""
    order: list[str] = []
    answers, ended = threading.Event(), threading.Event()

    def make_a_router() -> None:
        with making():
            order.append("made")

    def connect() -> None:
        interrupt()
        answers.wait(60)
        try:  # in a thread of its own, as all that may wait for Ray
            within(Deadline.after(60), Stage("a router"), make_a_router)
        except GivenUpError:
            ended.set()

    def work() -> None:
        with undoing() as undo:
            undo.callback(order.append, "taken away")
            within(Deadline.after(60), Stage("a store"), connect)

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        work()
    assert time.monotonic() - begun < bootstrap._GIVEN_UP_S / 2
    assert order == ["taken away"]
    answers.set()
    assert ended.wait(20)
    assert order == ["taken away"]
