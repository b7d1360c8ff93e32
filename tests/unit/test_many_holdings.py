"""A pod of many uids: what is done every second looks at the few that it is about."""

from __future__ import annotations

import math

import pytest
from helpers import ManualClock

from ray_route.model import Link
from ray_route.pod.admission import Admission, Verdict
from ray_route.pod.entries import Entry, Phase
from ray_route.pod.holdings import Holdings
from ray_route.pod.idle import look_for_idle
from ray_route.pod.in_use import in_use
from ray_route.pod.incoming import take_in
from ray_route.pod.moments import Moments
from ray_route.pod.next_work import NextWork, Work
from ray_route.pod.pod_lease import PodLease
from ray_route.pod.release import Releases
from ray_route.pod.states import State
from ray_route.pod.unsettled import is_finished, unsettled
from ray_route.protocol.commands import Outcome

IDLE_S = 1_000.0
LEASE_S = 100.0
MANY = 3_000


class Counted(dict[str, Entry]):
    """Counts how often an entry is looked at."""

    looks = 0

    def get(self, uid: str, default: Entry | None = None) -> Entry | None:  # type: ignore[override]
        self.looks += 1
        return super().get(uid, default)

    def __getitem__(self, uid: str) -> Entry:
        self.looks += 1
        return super().__getitem__(uid)

    def items(self) -> None:  # type: ignore[override]
        raise AssertionError("all of them")


class Pod:
    """Holds uids "0", "1", … each under epoch 7, acquired a millisecond apart."""

    def __init__(self, number: int = MANY) -> None:
        self.clock = ManualClock()
        lease = PodLease(1, math.inf, self.clock(), self.clock)
        self.held = Holdings(0, lease, IDLE_S, self.clock)
        self.admission = Admission(self.held)
        self.releases = Releases(self.held)
        self.work = NextWork(self.held)
        self.entries = self.held.entries = Counted()
        for n in range(number):
            self.clock.tick(0.001)
            self.hold(str(n))

    def confirm(self, uid: str, *, persistent: bool = False) -> None:
        link = Link(0, 1, 7, persistent, LEASE_S)
        self.admission.confirmed(uid, 7, link, self.clock(), self.held.term)

    def hold(self, uid: str, *, persistent: bool = False) -> None:
        self.confirm(uid, persistent=persistent)
        self.admission.acquired(uid, 7)

    def call(self, uid: str) -> None:
        assert self.admission.enter(uid, 7, 1)[0] is Verdict.ADMIT
        self.admission.leave(uid)

    def release(self, number: int, uids: range) -> None:
        asked = {str(n): 7 for n in uids}
        self.releases.release(number, asked, 300.0, closes=False, router=1)

    def look(self, hooks: int) -> list[Work]:
        """Do what whoever gives uids up does each time, with so many hooks free."""
        self.releases.tick()
        self.work.to_confirm()
        return self.work.take(hooks)

    def give_up(self, hooks: int, state: object = None) -> list[str]:
        work = self.look(hooks)
        for it in work:
            assert self.work.may_begin(it)
            self.work.ended(it.uid, it.epoch, state)
        return [it.uid for it in work]

    def looks(self) -> int:
        looks, self.entries.looks = self.entries.looks, 0
        return looks


@pytest.fixture
def pod() -> Pod:
    return Pod()


def test_those_that_are_idle_are_found_without_a_look_at_the_others(pod: Pod) -> None:
    pod.clock.tick(IDLE_S - 0.001 * (MANY - 10) + 0.0005)
    pod.looks()
    look_for_idle(pod.held)
    assert set(pod.held.ready) == {str(n) for n in range(10)}
    assert pod.looks() < 50


def test_those_that_are_idle_are_looked_at_once(pod: Pod) -> None:
    pod.clock.tick(IDLE_S + 1)
    look_for_idle(pod.held)
    pod.looks()
    look_for_idle(pod.held)
    assert pod.looks() == 0
    assert len(pod.held.ready) == MANY
    pod.confirm("7")
    pod.call("7")
    pod.look(0)
    assert pod.looks() < 3_000
    pod.clock.tick(IDLE_S + 1)
    look_for_idle(pod.held)
    assert "7" in pod.held.ready, "used once more, and not since"


def test_a_use_makes_one_the_latest(pod: Pod) -> None:
    pod.clock.tick(IDLE_S - 4)
    pod.confirm("0")
    pod.call("0")
    pod.clock.tick(5)
    look_for_idle(pod.held)
    assert set(pod.held.ready) == {str(n) for n in range(1, MANY)}


def test_those_in_use_are_found_without_a_look_at_the_others(pod: Pod) -> None:
    pod.clock.tick(1)
    since = pod.clock()
    assert pod.admission.enter("5", 7, 1)[0] is Verdict.ADMIT
    pod.clock.tick(1)
    for n in range(10, 20):
        pod.call(str(n))
    pod.looks()
    assert in_use(pod.held, since) == {str(n): 7 for n in (5, *range(10, 20))}
    assert pod.looks() < 100
    assert in_use(pod.held, pod.clock() + 1) == {"5": 7}, "a call that lasts uses its uid"


def test_persistent_ones_are_looked_at_once(pod: Pod) -> None:
    for n in range(MANY):
        pod.confirm(str(n), persistent=True)
    pod.clock.tick(2 * IDLE_S)
    look_for_idle(pod.held)
    pod.looks()
    look_for_idle(pod.held)
    assert pod.looks() == 0
    assert not pod.held.ready


def test_one_that_is_persistent_no_more_can_be_idle_again() -> None:
    pod = Pod(0)
    pod.hold("ann", persistent=True)
    pod.clock.tick(2 * IDLE_S)
    look_for_idle(pod.held)
    pod.confirm("ann")
    look_for_idle(pod.held)
    assert not pod.held.ready
    pod.clock.tick(IDLE_S)
    look_for_idle(pod.held)
    assert set(pod.held.ready) == {"ann"}


def test_the_links_of_unused_ones_are_kept_alive_as_their_leases_end(pod: Pod) -> None:
    pod.clock.tick(LEASE_S / 2)
    before = pod.clock() + LEASE_S / 2 - 0.001 * (MANY - 10)
    pod.looks()
    soon = in_use(pod.held, pod.clock(), before)
    assert soon.keys() <= {str(n) for n in range(11)}
    assert len(soon) >= 9
    assert pod.looks() < 100
    pod.admission.lengthened(soon, pod.clock() + LEASE_S, pod.held.term)
    pod.looks()
    assert not in_use(pod.held, pod.clock(), before).keys() & soon.keys()
    assert pod.looks() < 10
    pod.clock.tick(0.01)
    assert "15" in in_use(pod.held, pod.clock(), before + 0.01), "those behind are next"


def test_what_is_nobodys_is_in_no_order(pod: Pod) -> None:
    pod.releases.release(1, {str(n): 7 for n in range(MANY)}, 3.0, closes=True, router=1)
    for work in pod.work.take(MANY):
        assert pod.work.may_begin(work)
        pod.work.ended(work.uid, work.epoch, None)
    assert len(pod.held.order) == len(pod.held.order.busy) == len(pod.held.order.changing) == 0


def test_each_has_one_string_and_no_table_of_wishes_of_its_own(pod: Pod) -> None:
    for _ in range(2):
        another = b"17".decode()
        pod.call(another)
        pod.confirm(b"17".decode())
    pod.releases.release(1, {"18": 7}, 3, closes=False, router=1)
    pod.releases.cancel(1)
    entry = dict.get(pod.entries, "17")
    assert entry is not None
    order = pod.held.order
    kept = [next(uid for uid in uids if uid == "17") for uids in (order.latest(), order.soonest())]
    assert all(uid is entry.uid for uid in kept)
    assert not entry.wishes
    assert entry.wishes is dict.__getitem__(pod.entries, "19").wishes


# Many that are to be given up at once, as in a drain.

DRAINED = 20_000


@pytest.fixture
def drained() -> Pod:
    pod = Pod(DRAINED)
    for number in range(20):
        pod.release(number + 1, range(number * 1_000, number * 1_000 + 1_000))
    for _ in range(10):
        pod.look(0)
    pod.looks()
    return pod


@pytest.mark.slow
def test_a_look_is_no_look_at_all_that_are_to_be_given_up(drained: Pod) -> None:
    given = [uid for _ in range(100) for uid in drained.give_up(10)]
    assert given == [str(n) for n in range(1_000)], "the first that were asked for go first"
    assert drained.looks() < 20 * len(given)


@pytest.mark.slow
def test_nor_while_those_given_up_wait_for_their_next_owners(drained: Pod) -> None:
    given = [uid for _ in range(13) for uid in drained.give_up(10, "its state")]
    drained.looks()
    for _ in range(100):
        assert drained.look(10) == []
    assert drained.looks() < 100
    assert drained.admission.denied("15000", 7, drained.held.term) is None
    assert [it.uid for it in drained.look(10)] == ["15000"], "who is lost waits for none of that"
    drained.releases.settled(dict.fromkeys(given[:10], (7, 0)))
    assert len(drained.give_up(10)) == 10
    assert drained.looks() < 500


@pytest.mark.slow
def test_so_many_are_given_up_ahead_of_their_next_owners_and_no_more(drained: Pod) -> None:
    """Fewer leave the way empty while messages are under way; more keep their users waiting."""
    given = []
    while some := drained.give_up(10, "its state"):
        given += some
    assert 64 <= len(given) <= 256
    assert len(given) == drained.held.nobodys.undecided
    for settled in range(1, 60):  # each that is fetched makes room for one
        drained.releases.settled({given[settled]: (7, 0)})
        while some := drained.give_up(1, "its state"):
            given += some
        assert drained.held.nobodys.undecided == len(given) - settled
        assert 64 <= drained.held.nobodys.undecided <= 256
    assert len(given) > 64 + 50


@pytest.mark.slow
def test_nor_while_redis_confirms_none(drained: Pod) -> None:
    drained.clock.tick(LEASE_S + 100)
    drained.looks()
    assert drained.look(10) == []
    asked = [it.uid for _ in range(10) for it in drained.work.to_confirm()]
    assert 0 < len(asked) < 1_000, "so many are asked about ahead, each once"
    assert drained.looks() < 5_000
    for _ in range(100):
        assert drained.look(10) == []
    assert drained.looks() < 300


@pytest.mark.slow
def test_one_that_redis_does_not_confirm_keeps_no_other_waiting() -> None:
    pod = Pod(DRAINED)
    pod.clock.tick(LEASE_S + 100)
    pod.release(1, range(DRAINED))
    first = [it.uid for it in pod.work.to_confirm()]
    assert 100 < len(first) < 1_000
    for uid in first:
        pod.admission.unread(uid)
    second = [it.uid for it in pod.work.to_confirm()]
    assert second
    assert not {*first} & {*second}
    for uid in second:
        pod.confirm(uid)
    assert pod.give_up(DRAINED) == second


@pytest.mark.slow
def test_to_take_a_release_back_is_no_look_at_those_of_others(drained: Pod) -> None:
    drained.releases.cancel(20)
    assert 1_000 <= drained.looks() < 5_000
    while drained.give_up(500):
        pass
    left = [uid for uid, entry in dict.items(drained.entries) if entry.phase is Phase.HELD]
    assert sorted(left, key=int) == [str(n) for n in range(19_000, 20_000)]


@pytest.mark.slow
def test_those_that_were_just_given_up_are_not_looked_at_by_who_settles(drained: Pod) -> None:
    drained.give_up(100)
    drained.clock.tick(5)
    early = drained.clock()
    while drained.give_up(500):
        pass
    drained.looks()
    assert len(unsettled(drained.held, early)) == 100
    assert drained.looks() < 300


def test_those_that_are_being_acquired_are_not_looked_at_again() -> None:
    pod = Pod(0)
    for n in range(MANY):
        take_in(pod.held, str(n), 5, State("it", arrived=True))
        pod.releases.settled({str(n): (5, 7)})
    assert len(pod.work.to_acquire()) == MANY
    pod.looks()
    assert pod.work.to_acquire() == []
    assert pod.looks() == 0


@pytest.mark.slow
def test_nothing_is_left_of_a_drain_that_is_over(drained: Pod) -> None:
    for number in range(15, 21):
        drained.releases.cancel(number)
    while given := drained.give_up(500, "its state"):
        assert not is_finished(drained.held)
        drained.releases.settled(dict.fromkeys(given, (7, 0)))
    held = drained.held
    assert len(held) == 6_000
    assert len(held.ready) == len(held.asked) == len(held.moments) == held.nobodys.undecided == 0
    assert not held.nobodys.given_up


def test_those_that_are_asked_for_wait_for_no_others_that_end_by_themselves() -> None:
    pod = Pod(1_000)
    pod.clock.tick(IDLE_S + 1)
    idle = {str(n): 7 for n in range(1_000)}
    look_for_idle(pod.held)
    pod.hold("1000")
    pod.release(1, range(1_000, 1_001))
    for work in pod.work.to_confirm():
        pod.confirm(work.uid)
    given = [uid for _ in range(3) for uid in pod.give_up(1)]
    assert len(given) == 3
    assert "1000" in given
    assert {*given} & idle.keys(), "nor those for them"


def test_one_whose_patience_ended_in_the_line_is_kept_if_it_is_called_then() -> None:
    pod = Pod(2)
    pod.release(1, range(2))
    pod.clock.tick(301)
    for uid in ("0", "1"):
        pod.confirm(uid)
    pod.releases.tick()
    assert pod.held.outcomes.take() == [], "they wait for a hook alone"
    assert pod.admission.enter("1", 7, 1)[0] is Verdict.ADMIT
    pod.releases.tick()
    assert pod.held.outcomes.take() == [Outcome(1, "1", 7, given=False)]
    assert pod.give_up(10) == ["0"]


def test_moments_that_are_void_are_not_many() -> None:
    moments = Moments()
    for n in range(10_000):
        moments.set("u", 20_000.0 - n)
        moments.set(str(n), 30_000.0)
        moments.drop(str(n))
    assert len(moments._heap) < 200
    assert moments.take(10_000.0) == []
    assert moments.take(10_001.0) == ["u"]
    assert moments.take(40_000.0) == []
