"""Calls of one caller begin in the order sent, also where they arrive in another."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from helpers import eventually

from ray_route.errors import FencedError, InvalidInputError
from ray_route.pod import call_order
from ray_route.pod.call_order import ArrivalOrder, CallOrder, Orders, Place, TurnPlace
from ray_route.protocol.calls import Order, Refused, SendAgain

HEADER = ("ann", 7, 1, "say")


def place_of(orders: Orders, order: Order) -> Place:
    return Place(orders, [*HEADER, *order])


async def begin_all(orders: CallOrder, arrivals: list[Order]) -> list[Order]:
    begun: list[Order] = []

    async def call(order: Order) -> None:
        place = place_of(orders, order)
        try:
            if await place.turn_async():
                begun.append(order)
            else:
                place.send_again()
        finally:
            place.leave()

    await asyncio.gather(*map(call, arrivals))
    return begun


def begin_all_in_threads(orders: CallOrder, arrivals: list[Order]) -> list[Order]:
    begun: list[Order] = []

    def call(order: Order) -> None:
        place = place_of(orders, order)
        if place.turn():
            begun.append(order)
        else:
            place.send_again()
        place.leave()

    threads = [threading.Thread(target=call, args=(order,)) for order in arrivals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return begun


def on_a_loop(orders: CallOrder, arrivals: list[Order]) -> list[Order]:
    return asyncio.run(begin_all(orders, arrivals))


Begin = Callable[[CallOrder, list[Order]], list[Order]]
ways = pytest.mark.parametrize("begin", [on_a_loop, begin_all_in_threads])


@ways
def test_they_begin_in_order_however_they_arrive(begin: Begin, monkeypatch: Any) -> None:
    monkeypatch.setattr(call_order, "_MISSING_S", 60.0)
    sent = [(5, place) for place in range(20)]
    assert begin(CallOrder(), [*sent[::-2], *sent[::2]]) == sent


@ways
def test_runs_do_not_wait_for_each_other(begin: Begin) -> None:
    assert set(begin(CallOrder(), [(1, 0), (2, 0), (3, 0)])) == {(1, 0), (2, 0), (3, 0)}


@ways
def test_behind_one_that_does_not_come_all_are_sent_again(begin: Begin) -> None:
    orders = CallOrder()
    passed(orders, (1, 0))
    assert begin(orders, [(1, 3), (1, 2)]) == []
    # What has been waited for in vain comes after all: those behind it are on their way again.
    assert begin(orders, [(1, 1)]) == []


def test_what_is_sent_again_says_how_many_have_begun(monkeypatch: Any) -> None:
    monkeypatch.setattr(call_order, "_MISSING_S", 0.01)
    orders = CallOrder()
    passed(orders, (1, 0))
    passed(orders, (1, 1))
    sent_again(orders, (1, 3), begun=2)


def test_one_that_has_come_and_takes_long_is_waited_for(monkeypatch: Any) -> None:
    monkeypatch.setattr(call_order, "_MISSING_S", 0.01)
    orders = CallOrder()
    first, behind = place_of(orders, (1, 0)), place_of(orders, (1, 1))
    first.come()
    turns: list[bool] = []
    thread = threading.Thread(target=lambda: turns.append(behind.turn()))
    thread.start()
    thread.join(0.2)  # longer than a missing one is waited for
    assert thread.is_alive()
    assert first.turn()
    first.leave()
    thread.join(10)
    assert turns == [True]


def test_a_gap_behind_one_that_takes_long_is_noticed_too(monkeypatch: Any) -> None:
    monkeypatch.setattr(call_order, "_MISSING_S", 0.01)
    orders = CallOrder()
    first, behind = place_of(orders, (1, 0)), place_of(orders, (1, 2))
    first.come()
    turns: list[bool] = []
    thread = threading.Thread(target=lambda: turns.append(behind.turn()), daemon=True)
    thread.start()
    eventually(lambda: orders._runs[1].here.get(2), "it waits, as long as the first does")
    first.leave()
    thread.join(10)
    assert turns == [False]


@ways
def test_what_is_behind_a_refused_one_is_refused(begin: Begin) -> None:
    orders = CallOrder()
    place = place_of(orders, (1, 0))
    assert place.turn()
    place.refused(FencedError(reason="moved", may_have_run=False))
    place.leave()
    assert begin(orders, [(1, 1), (2, 0), (1, 2)]) == [(2, 0)]


def test_one_that_is_cancelled_while_it_waits_holds_up_nobody(monkeypatch: Any) -> None:
    async def check() -> list[Order]:
        orders = CallOrder()
        calls = [asyncio.create_task(begin_all(orders, [(1, place)])) for place in (1, 2, 3)]
        for _ in range(5):  # they wait
            await asyncio.sleep(0)
        calls[0].cancel()
        await asyncio.wait(calls[:1])
        return [*await begin_all(orders, [(1, 0)]), *await calls[1], *await calls[2]]

    monkeypatch.setattr(call_order, "_MISSING_S", 60.0)
    assert asyncio.run(check()) == [(1, 0), (1, 2), (1, 3)]


kinds = pytest.mark.parametrize("kind", [ArrivalOrder, CallOrder])


@kinds
def test_an_error_that_is_the_callers_own_refuses_nobody_else(kind: type[Orders]) -> None:
    orders = kind()
    place = place_of(orders, (1, 0))
    assert place.turn()
    place.refused(InvalidInputError(argument="method", value="sey", reason="is no method"))
    place.leave()
    assert place_of(orders, (1, 1)).turn()


@kinds
def test_where_an_argument_is_no_value_those_behind_are_sent_again_too(kind: type[Orders]) -> None:
    orders = kind()
    place = place_of(orders, (1, 0))
    assert place.turn()
    assert isinstance(place.send_again(), SendAgain)
    place.leave()
    assert not place_of(orders, (1, 1)).turn()


def test_where_calls_come_in_order_a_gap_is_noticed_at_once() -> None:
    orders = ArrivalOrder()
    for order in ((1, 0), (1, 1), (2, 0)):
        passed(orders, order)
    sent_again(orders, (1, 3), begun=2)
    assert not place_of(orders, (1, 2)).turn()


def test_what_arrival_order_forgets_is_sent_again(monkeypatch: Any) -> None:
    monkeypatch.setattr(call_order, "_REMEMBERED", 10)
    orders = ArrivalOrder()
    for run in range(100):
        place_of(orders, (run, 0)).leave()
    assert len(orders) == 10
    assert not place_of(orders, (5, 1)).turn()
    assert place_of(orders, (99, 1)).turn()


def test_a_call_without_a_place_waits_for_nobody() -> None:
    orders = CallOrder()
    place = Place(orders, HEADER)
    assert place.turn()
    place.leave()
    assert len(orders) == 0


def passed(orders: Orders, order: Order) -> None:
    place = place_of(orders, order)
    assert place.turn()
    place.leave()


def sent_again(orders: Orders, order: Order, *, begun: int) -> None:
    place = place_of(orders, order)
    assert not place.turn()
    assert place.send_again() == SendAgain(begun)
    place.leave()


def test_a_run_is_remembered_while_one_of_its_calls_runs(monkeypatch: Any) -> None:
    monkeypatch.setattr(call_order, "_REMEMBERED", 10)
    orders = CallOrder()
    for place in range(50):
        passed(orders, (1, place))
    running = place_of(orders, (1, 50))
    assert running.turn()
    running.leave()
    for run in range(2, 102):
        passed(orders, (run, 0))
    assert place_of(orders, (1, 51)).turn()
    del running


def test_runs_are_forgotten_when_they_are_over(monkeypatch: Any) -> None:
    monkeypatch.setattr(call_order, "_REMEMBERED", 10)
    orders = CallOrder()
    for run in range(100):
        passed(orders, (run, 0))
    gc.collect()
    assert len(orders) <= 11


@pytest.mark.slow
def test_many_that_wait_for_one_take_no_longer_each() -> None:
    def per_call(number: int) -> float:
        begun_at = time.process_time()
        arrivals = [(1, place) for place in range(number - 1, -1, -1)]
        assert len(on_a_loop(CallOrder(), arrivals)) == number
        return (time.process_time() - begun_at) / number

    # Sixteen times, if each woke all others; memory that is cold costs some of it.
    assert min(per_call(4_000) for _ in range(3)) < 8 * min(per_call(250) for _ in range(3))


class TestWaitingForATurn:
    """Where a call whose place has come waits for more: it has not begun by then."""

    orders: CallOrder

    def places(self, number: int) -> list[TurnPlace]:
        self.orders = CallOrder()
        made = [TurnPlace(self.orders, [*HEADER, 5, place]) for place in range(number)]
        for place in made:
            assert place.turn()
            place.passes()
        return made

    def test_those_that_wait_do_not_count_as_begun(self) -> None:
        first, _, third = self.places(3)
        first.leave()
        assert third.busy() == SendAgain(1, busy=True)

    def test_one_that_gives_up_before_others_leaves_no_gap(self) -> None:
        first, second, third = self.places(3)
        second.leave()
        assert third.busy().begun == 0
        first.leave()
        assert third.busy().begun == 2

    def test_a_busy_one_takes_those_behind_along_and_none_before(self) -> None:
        first, second, third = self.places(3)
        second.busy()
        second.leave()
        assert not first.is_cut()
        assert third.is_cut()

    def test_a_refusal_is_told_at_its_place_alone(self) -> None:
        """Its caller takes those before for begun: they must not come back behind it."""
        refused = FencedError(reason="released", may_have_run=False)
        first, second, third = self.places(3)
        first.leave()
        assert third.turned_away(refused) == SendAgain(1)
        third.leave()
        assert second.turned_away(refused) == Refused(refused)
        second.leave()
        assert third.is_cut()

    def test_what_has_no_place_waits_for_nothing_and_is_refused_as_it_is(self) -> None:
        refused = FencedError(reason="released", may_have_run=False)
        alone = TurnPlace(CallOrder(), HEADER)
        alone.passes()
        assert not alone.is_cut()
        assert alone.run == 0
        assert alone.turned_away(refused) == Refused(refused)
