"""What is not answered is remembered with the server that it was sent to."""

from __future__ import annotations

import pytest
from helpers import ManualClock
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    MaxConnectionsError,
    ResponseError,
)
from redis.exceptions import ConnectionError as NoConnectionError
from redis.exceptions import TimeoutError as NoReplyError

from ray_route.config import RouteConfig
from ray_route.router.sendings import CARRIED_OUT_S, Sendings
from ray_route.router.set_aside import SetAside
from ray_route.router.spans import Spans
from ray_route.store.exchange import NoMasterError, may_have_run

OLD, NEW = {0: "old", 1: "old"}, {0: "new", 1: "old"}


@pytest.fixture
def sendings(clock: ManualClock) -> Sendings:
    sendings = Sendings(clock)
    assert sendings.moved_to(OLD) == []
    return sendings


def test_what_is_answered_leaves_nothing(sendings: Sendings) -> None:
    sendings.answered(sendings.begin(0))
    assert not sendings.is_in_doubt(0)
    assert sendings.moved_to(NEW) == []


def test_a_lost_answer_is_in_doubt_until_a_look_that_began_later(
    sendings: Sendings, clock: ManualClock
) -> None:
    sending = sendings.begin(0)
    assert not sendings.is_in_doubt(0), "it is on its way"
    before = clock()
    clock.tick(1)
    sendings.lost(sending)
    sendings.looked([0, 1], before)
    assert sendings.is_in_doubt(0)
    assert not sendings.is_in_doubt(1)
    clock.tick(1)
    sendings.looked([1], clock())
    assert sendings.is_in_doubt(0), "nobody has looked at its server"
    sendings.looked([0], clock())
    assert not sendings.is_in_doubt(0)


@pytest.mark.parametrize("is_lost", [True, False])
def test_another_server_may_lack_what_is_lost_or_still_on_its_way(
    sendings: Sendings, is_lost: bool
) -> None:
    sending = sendings.begin(0)
    if is_lost:
        sendings.lost(sending)
    assert sendings.moved_to(NEW) == [0]
    assert sendings.moved_to(NEW) == [], "once"
    sendings.lost(sending)
    assert not sendings.is_in_doubt(0), "it was judged by where its shard is"


def test_one_that_is_sent_later_does_not_hide_an_earlier_one(sendings: Sendings) -> None:
    sendings.lost(sendings.begin(0))
    sendings.moved_to({1: "other"})
    later = sendings.begin(0)
    sendings.answered(later)
    assert sendings.moved_to(NEW) == [0]


def test_it_is_remembered_as_long_as_it_may_be_carried_out(
    sendings: Sendings, clock: ManualClock
) -> None:
    sendings.lost(sendings.begin(0))
    clock.tick(CARRIED_OUT_S)
    sendings.looked([0], clock())
    assert sendings.moved_to(NEW) == [0]
    sendings.lost(sendings.begin(0))
    clock.tick(CARRIED_OUT_S + 1)
    sendings.looked([0], clock())
    assert sendings.moved_to(OLD) == []


@pytest.mark.parametrize(
    ("error", "may"),
    [
        (NoReplyError("Timeout reading from 127.0.0.1:1"), True),
        (NoConnectionError("Connection closed by server."), True),
        (OSError("reset"), True),
        (NoConnectionError("Error 111 connecting to 127.0.0.1:1. Connection refused."), False),
        (NoReplyError("Timeout connecting to server"), False),
        (NoConnectionError("The previous master is now a slave"), False),
        (BusyLoadingError("Redis is loading the dataset in memory"), False),
        (AuthenticationError("invalid username-password pair"), False),
        (MaxConnectionsError("Too many connections"), False),
        (NoMasterError("no master holds the slot now"), False),
        (ResponseError("ERR"), False),
    ],
)
def test_what_may_have_been_carried_out(error: Exception, may: bool) -> None:
    assert may_have_run(error) == may


def test_a_shard_set_aside_again_while_it_is_recovered_stays_so() -> None:
    aside = SetAside(RouteConfig())
    aside.add([0, 1])
    gathered = aside.times
    aside.add([0])
    for shard in (0, 1):
        aside.discard(shard, gathered)
    assert aside.shards == {0}
    aside.discard(0, aside.times)
    assert not aside.shards


class TestCountersThatWereRead:
    def test_no_later_script_reaches_across_one(self) -> None:
        spans = Spans()
        spans.saw(5)
        assert not spans.take(3, 8)

    def test_a_script_begins_or_ends_there(self) -> None:
        spans = Spans()
        spans.saw(5)
        assert spans.take(5, 8)
        assert spans.take(2, 5)
        spans.saw(8)
        assert spans.take(8, 9)

    def test_one_that_is_heard_of_late_is_no_contradiction(self) -> None:
        spans = Spans()
        assert spans.take(3, 5)
        assert spans.take(5, 8)
        spans.saw(5)
        spans.saw(3)
        assert spans.take(8, 9)
