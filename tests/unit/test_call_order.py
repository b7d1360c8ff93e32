"""Calls of one caller begin in the order sent, also where they arrive in another."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest
from helpers import ManualClock, eventually

from ray_route.errors import FencedError, InvalidInputError
from ray_route.pod.call_order import CallOrder, Place
from ray_route.protocol.calls import Order, SendAgain

HEADER = ("ann", 7, 1, "say")


async def begin_all(order: CallOrder, arrivals: list[Order]) -> list[Order]:
    begun: list[Order] = []

    async def call(place: Order) -> None:
        if await order.turn_async(place):
            begun.append(place)
        order.begins(place)

    await asyncio.gather(*map(call, arrivals))
    return begun


def begin_all_in_threads(order: CallOrder, arrivals: list[Order]) -> list[Order]:
    begun: list[Order] = []

    def call(place: Order) -> None:
        if order.turn(place):
            begun.append(place)
        order.begins(place)

    threads = [threading.Thread(target=call, args=(place,)) for place in arrivals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return begun


def on_a_loop(order: CallOrder, arrivals: list[Order]) -> list[Order]:
    return asyncio.run(begin_all(order, arrivals))


ways = pytest.mark.parametrize("begin", [on_a_loop, begin_all_in_threads])
Begin = Callable[[CallOrder, list[Order]], list[Order]]


@ways
def test_they_begin_in_order_however_they_arrive(begin: Begin) -> None:
    order = CallOrder(keeps_order=False)
    sent = [(5, place) for place in range(20)]
    assert begin(order, [*sent[::-2], *sent[::2]]) == sent


@ways
def test_runs_do_not_wait_for_each_other(begin: Begin) -> None:
    order = CallOrder(keeps_order=False)
    assert set(begin(order, [(1, 0), (2, 0), (3, 0)])) == {(1, 0), (2, 0), (3, 0)}


@ways
def test_one_that_never_comes_is_skipped(begin: Begin) -> None:
    order = CallOrder(keeps_order=False)
    assert begin(order, [(1, 3), (1, 2), (1, 0)]) == [(1, 0), (1, 2), (1, 3)]


def test_one_that_has_come_and_takes_long_is_not_skipped() -> None:
    order, entered, begun = CallOrder(keeps_order=False), threading.Event(), threading.Event()

    def first() -> None:
        order.turn((1, 0))
        entered.set()
        begun.wait(10)
        order.begins((1, 0))

    def second() -> None:
        order.turn((1, 1))
        assert begun.is_set()

    threads = [threading.Thread(target=first)]
    threads[0].start()
    entered.wait(10)
    failed: list[BaseException] = []

    def checked() -> None:
        try:
            second()
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    threads.append(threading.Thread(target=checked))
    threads[1].start()
    threads[1].join(0.6)  # longer than a missing one is waited for
    begun.set()
    for thread in threads:
        thread.join()
    assert not failed


@ways
def test_what_is_behind_a_refused_one_is_refused(begin: Begin) -> None:
    order = CallOrder(keeps_order=False)
    place = Place(order, [*HEADER, 1, 0])
    assert place.turn()
    place.refused(FencedError(reason="moved", may_have_run=False))
    place.leave()
    assert begin(order, [(1, 1), (2, 0), (1, 2)]) == [(2, 0)]


def test_an_error_that_is_the_callers_own_refuses_nobody_else() -> None:
    order = CallOrder(keeps_order=True)
    place = Place(order, [*HEADER, 1, 0])
    assert place.turn()
    place.refused(InvalidInputError(argument="method", value="sey", reason="is no method"))
    place.leave()
    assert order.turn((1, 1))


def test_where_an_argument_is_no_value_those_behind_are_sent_again_too() -> None:
    order = CallOrder(keeps_order=True)
    place = Place(order, [*HEADER, 1, 0])
    assert place.turn()
    assert isinstance(place.send_again(), SendAgain)
    place.leave()
    assert not order.turn((1, 1))


def test_where_calls_come_in_order_nobody_waits() -> None:
    order = CallOrder(keeps_order=True)
    assert order.turn((1, 5))


def test_a_call_without_a_place_waits_for_nobody() -> None:
    order = CallOrder(keeps_order=False)
    place = Place(order, HEADER)
    assert place.turn()
    place.leave()
    assert len(order) == 0


def test_a_run_whose_call_takes_long_to_begin_is_not_forgotten() -> None:
    clock = ManualClock()
    order = CallOrder(keeps_order=False, clock=clock)
    order.turn((1, 0))
    begun = threading.Event()

    def second() -> None:
        order.turn((1, 1))
        begun.set()

    thread = threading.Thread(target=second, daemon=True)
    thread.start()
    eventually(lambda: 1 in order._runs[1].come, "it waits for the first")
    clock.tick(100)
    order.turn((2, 0))
    order.begins((2, 0))
    order.begins((1, 0))
    assert begun.wait(10)
    thread.join()


def test_refused_runs_are_forgotten_too() -> None:
    clock = ManualClock()
    order = CallOrder(keeps_order=True, clock=clock)
    for run in range(100):
        order.begins((run, 0), refused=True)
        clock.tick(1)
    assert len(order) <= 12


def test_runs_are_forgotten_when_they_are_idle() -> None:
    clock = ManualClock()
    order = CallOrder(keeps_order=False, clock=clock)
    for run in range(100):
        assert order.turn((run, 0))
        order.begins((run, 0))
        clock.tick(1)
    eventually(lambda: len(order) <= 12, "old runs are forgotten")
