"""A pod of many uids: what is done every second looks at the few that it is about."""

from __future__ import annotations

import math

import pytest
from helpers import ManualClock

from ray_route.model import Link
from ray_route.pod.admission import Admission, Verdict
from ray_route.pod.entries import Entry
from ray_route.pod.holdings import Holdings
from ray_route.pod.in_use import in_use
from ray_route.pod.pod_lease import PodLease
from ray_route.pod.release import Releases

IDLE_S = 1_000.0
LEASE_S = 100.0
MANY = 3_000


class Counted(dict[str, Entry]):
    """Counts how often an entry is looked at."""

    looks = 0

    def get(self, uid: str, default: Entry | None = None) -> Entry | None:  # type: ignore[override]
        self.looks += 1
        return super().get(uid, default)

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

    def looks(self) -> int:
        looks, self.entries.looks = self.entries.looks, 0
        return looks


@pytest.fixture
def pod() -> Pod:
    return Pod()


def test_those_that_are_idle_are_found_without_a_look_at_the_others(pod: Pod) -> None:
    pod.clock.tick(IDLE_S - 0.001 * (MANY - 10) + 0.0005)
    pod.looks()
    pod.releases.look_for_idle()
    assert pod.held.ready == {str(n) for n in range(10)}
    assert pod.looks() < 50


def test_a_use_makes_one_the_latest(pod: Pod) -> None:
    pod.clock.tick(IDLE_S - 4)
    pod.confirm("0")
    pod.call("0")
    pod.clock.tick(5)
    pod.releases.look_for_idle()
    assert pod.held.ready == {str(n) for n in range(1, MANY)}


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
    pod.releases.look_for_idle()
    pod.looks()
    pod.releases.look_for_idle()
    assert pod.looks() == 0
    assert not pod.held.ready


def test_one_that_is_persistent_no_more_can_be_idle_again() -> None:
    pod = Pod(0)
    pod.hold("ann", persistent=True)
    pod.clock.tick(2 * IDLE_S)
    pod.releases.look_for_idle()
    pod.confirm("ann")
    pod.releases.look_for_idle()
    assert not pod.held.ready
    pod.clock.tick(IDLE_S)
    pod.releases.look_for_idle()
    assert pod.held.ready == {"ann"}


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
    for work in pod.releases.take(MANY):
        assert pod.releases.may_begin(work)
        pod.releases.ended(work.uid, work.epoch, None)
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
