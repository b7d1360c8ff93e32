"""Calls of a uid wait for those that may come back to be sent again, and for no others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ray_route.client import responses
from ray_route.client.dispatcher import log_untaken
from ray_route.client.lanes import Lane, Lanes
from ray_route.client.outgoing import Outgoing
from ray_route.clock import Deadline
from ray_route.errors import RayGoneError, RouteTimeoutError
from ray_route.model import Link
from ray_route.runtime.waiting import run

LINK = Link(pod=0, incarnation=1, epoch=7, persistent=False, lease_s=5.0)


def made(number: int) -> Outgoing:
    return Outgoing("ns", "rooms", "ann", "say", (number,), {}, False, Deadline.after(5))


def send(lane: Lane, call: Outgoing) -> Any:
    ref = object()
    call.order, call.link, call.ref = lane.order(), LINK, ref
    lane.sent(call, LINK.epoch)
    return ref


@pytest.fixture
def lanes() -> Lanes:
    return Lanes(lambda _: None)


def test_a_call_that_came_back_waits_for_what_may_come_back_too(lanes: Lanes) -> None:
    first, second = made(1), made(2)
    lane = lanes.of(first)
    send(lane, first)
    send(lane, second)
    lane.came_back(second)
    assert not lane.may_send(LINK.epoch)
    lane.over(first)
    assert lane.may_send(LINK.epoch + 1)


def test_it_does_not_wait_for_those_that_have_begun(lanes: Lanes) -> None:
    first, second, third = made(1), made(2), made(3)
    lane = lanes.of(first)
    for call in (first, second, third):
        send(lane, call)
    lane.have_begun(second.order[0], 1)
    lane.came_back(second)
    assert lane.out == {third}
    lane.over(third)
    assert lane.may_send(LINK.epoch)
    run = lane.run
    lane.waiting.remove(second)
    send(lane, second)
    assert second.order[0] != run, "what is sent again is another run"


def test_a_run_is_over_once_nobody_knows_whether_a_call_of_it_was_sent(lanes: Lanes) -> None:
    first, last = made(1), made(2)
    lane = lanes.of(first)
    send(lane, first)
    run, place = lane.order()  # and there an interrupt comes
    assert (run, place) == (first.order[0], 1)
    assert not lane.may_send(LINK.epoch)
    lane.over(first)
    assert lane.may_send(LINK.epoch)
    send(lane, last)
    assert last.order[0] != run
    assert lane.may_send(LINK.epoch)


def test_what_another_run_has_begun_says_nothing(lanes: Lanes) -> None:
    first = made(1)
    lane = lanes.of(first)
    send(lane, first)
    lane.have_begun(lane.run + 1, 5)
    assert lane.out == {first}


def test_a_lane_in_which_nothing_is_on_its_way_is_forgotten(lanes: Lanes) -> None:
    first = made(1)
    first.lane = lanes.of(first)
    send(first.lane, first)
    assert len(lanes) == 1
    assert lanes.of(first) is first.lane
    first.lane.over(first)
    assert len(lanes) == 0
    del first  # its lane goes with it: nothing refers to itself
    assert lanes.all() == []


def test_an_answer_is_not_waited_for_once_its_call_was_sent_again(lanes: Lanes) -> None:
    call, ended = made(1), []
    dispatcher: Any = SimpleNamespace(
        session=SimpleNamespace(has_ended=lambda _, link: link in ended)
    )
    lane = lanes.of(call)
    ref = send(lane, call)
    assert not responses._is_void(dispatcher, call, ref)
    ended.append(LINK)
    assert responses._is_void(dispatcher, call, ref)
    ended.clear()
    lane.came_back(call)
    lane.waiting.remove(call)
    again = send(lane, call)
    assert responses._is_void(dispatcher, call, ref)
    assert not responses._is_void(dispatcher, call, again)


def test_an_error_of_the_wait_says_of_which_call_and_whether_it_may_have_run() -> None:
    call = made(1)
    late = RouteTimeoutError(waiting_for="the router", timeout_s=5)
    for sent in (False, True):
        call.ref = object() if sent else None
        error: Any = call.judged(late)
        assert type(error) is RouteTimeoutError
        assert (error.namespace, error.service, error.uid) == ("ns", "rooms", "ann")
        assert (error.waiting_for, error.may_have_run) == ("the router", sent)
        assert error.__cause__ is late
    assert isinstance(call.judged(RayGoneError(what="a client")), RayGoneError)
    other = KeyError("mine")
    assert call.judged(other) is other


def test_calls_made_within_one_turn_do_not_wait_for_those_of_another(lanes: Lanes) -> None:
    outside, within = made(1), made(2)
    within.chain = (77,)
    lane, other = lanes.of(outside), lanes.of(within)
    assert lane is not other
    send(lane, outside)
    lane.hold(made(3))
    assert not other.waiting


@pytest.mark.parametrize("time", ["the call's own", "less"])
def test_a_call_whose_time_is_over_was_taken_by_who_was_told_so(
    time: str, caplog: pytest.LogCaptureFixture
) -> None:
    call = made(1)
    if time == "the call's own":
        call.deadline = Deadline.after(0)
    dispatcher: Any = None
    with pytest.raises(RouteTimeoutError):
        run(responses.taken(dispatcher, call), Deadline.after(0))
    call.error = ValueError("what came of it in the end")
    log_untaken(call)
    assert ("nobody took its outcome" in caplog.text) is (time == "less")


def test_a_pod_that_is_busy_gets_no_more_than_it_has_taken(lanes: Lanes) -> None:
    calls = [made(n) for n in range(6)]
    lane = lanes.of(calls[0])
    for call in calls[:5]:
        send(lane, call)
    lane.is_busy(calls[3], 1)  # it has taken three, and one of them has begun
    lane.have_begun(calls[0].order[0], 1)
    for call in calls[3:5]:
        lane.came_back(call)
    for call in calls[1:3]:
        lane.over(call)
    lane.waiting.clear()
    for call in calls[3:5]:
        assert lane.may_send(LINK.epoch)
        send(lane, call)
    assert not lane.may_send(LINK.epoch)
    lane.over(calls[3])
    assert lane.may_send(LINK.epoch)


def test_a_pod_that_was_busy_gets_more_again_as_it_takes_them(lanes: Lanes) -> None:
    calls = [made(number) for number in range(200)]
    lane = lanes.of(calls[0])
    lane.is_busy(calls[0], 0)
    most = 0
    while calls:
        sent = 0
        while calls[sent:] and lane.may_send(LINK.epoch):
            send(lane, calls[sent])
            sent += 1
        assert sent
        most = max(most, sent)
        for call in calls[:sent]:
            lane.over(call)
        calls = calls[sent:]
    assert most >= 10, "one by one they would be slow for ever"
