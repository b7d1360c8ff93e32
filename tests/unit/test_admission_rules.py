from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import ManualClock

from ray_route.clock import Deadline
from ray_route.model import Link
from ray_route.pod import closing, terms
from ray_route.pod.admission import Admission, Told, Verdict
from ray_route.pod.entries import Phase
from ray_route.pod.holdings import Holdings
from ray_route.pod.idle import look_for_idle
from ray_route.pod.in_use import are_to_go, in_use
from ray_route.pod.kinds import set_kinds
from ray_route.pod.memory import memory
from ray_route.pod.next_work import Kind, NextWork, Work
from ray_route.pod.pod_lease import PodLease
from ray_route.pod.release import Releases
from ray_route.pod.unsettled import unfinished, unsettled
from ray_route.protocol.commands import Fate, Outcome, Refreshed

LEASE_S = 10.0
SAFE_S = 9.0  # a pod stops a tenth of the lease before anybody may call it ended
IDLE_S = 30.0


class Pod:
    """Pod 0, incarnation 7; "u" is held under epoch 100 for 5 s."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.lease = PodLease(7, LEASE_S, clock(), clock)
        self.held = Holdings(0, self.lease, IDLE_S, clock)
        self.admission = Admission(self.held)
        self.releases = Releases(self.held)
        self.work = NextWork(self.held)
        self.hold("u", 100)

    # Redis' word.

    def confirm(self, uid: str = "u", epoch: int = 100, lease_s: float = 5.0, **more) -> Told:
        """Have a read that began just now name this pod."""
        facts = {"term": self.held.term, "asked_at": self.clock(), "persistent": False, **more}
        of = (epoch, facts.pop("persistent"), lease_s, facts.pop("replaced", 0))
        link = Link(0, self.held.lease.incarnation, *of)
        return self.admission.confirmed(uid, epoch, link, **facts)

    def hold(self, uid: str, epoch: int, lease_s: float = 5.0, **more) -> None:
        assert self.confirm(uid, epoch, lease_s, **more) is Told.ACQUIRE
        self.admission.acquired(uid, epoch)

    def deny(self, uid: str = "u", epoch: int = 100) -> None:
        self.admission.denied(uid, epoch, self.held.term)

    # Calls.

    def enter(self, uid: str = "u", epoch: int = 100) -> Verdict:
        return self.admission.enter(uid, epoch, self.held.lease.incarnation)[0]

    def verdict(self, uid: str = "u", epoch: int = 100, incarnation: int = 7) -> Verdict:
        """What a call would hear, without leaving one running."""
        judged, _ = self.admission.enter(uid, epoch, incarnation)
        if judged is Verdict.ADMIT:
            self.admission.leave(uid)
        return judged

    # Releases.

    def release(self, number: int = 1, uid: str = "u", epoch: int = 100, **more) -> None:
        facts = {"patience_s": 3.0, "closes": True, "router": 1, **more}
        self.releases.release(number, {uid: epoch}, facts.pop("patience_s"), **facts)

    def take(self) -> list[tuple[str, int, Kind]]:
        return [(work.uid, work.epoch, work.kind) for work in self.work.take(10)]

    def begin_hook(self) -> Work:
        (work,) = self.work.take(10)
        assert self.work.may_begin(work)
        return work

    def run_hook(self) -> Kind:
        work = self.begin_hook()
        self.work.ended(work.uid, work.epoch)
        return work.kind

    def give_up(self, uid: str = "u", epoch: int = 100) -> None:
        self.release(99, uid, epoch)
        self.run_hook()
        assert self.held.outcomes.take() == [Outcome(99, uid, epoch, given=True)]

    def to_confirm(self) -> list[str]:
        return [work.uid for work in self.work.to_confirm()]

    # The pod's lease.

    def renew(self) -> None:
        assert terms.renew(self.held, self.clock())

    def idle(self) -> None:
        """Have nobody use anything for long."""
        for _ in range(8):
            self.clock.tick(IDLE_S / 6)
            self.renew()
        look_for_idle(self.held)

    def is_read(self, uid: str = "u", **more) -> bool:
        """Have the link of a uid read if that is to be done before it is given up."""
        if uid not in self.to_confirm():
            return False
        return self.confirm(uid, lease_s=1_000, **more) is Told.HELD

    def lapse_and_resume(self) -> None:
        assert terms.resume(self.held, terms.lapse(self.held), self.clock())


@pytest.fixture
def pod(clock: ManualClock) -> Pod:
    return Pod(clock)


class TestPodLease:
    @pytest.fixture
    def lease(self, clock: ManualClock) -> PodLease:
        return PodLease(7, LEASE_S, clock(), clock)

    def test_it_ends_a_tenth_before_its_lease(self, lease: PodLease, clock: ManualClock):
        clock.tick(SAFE_S - 0.001)
        assert lease.serves()
        clock.tick(0.001)
        assert not lease.serves()

    def test_a_renewal_in_time_counts_from_before_it_was_sent(
        self, lease: PodLease, clock: ManualClock
    ):
        clock.tick(5)
        asked_at = clock()
        clock.tick(2)
        lease.extend(asked_at)
        clock.tick(SAFE_S - 2 - 0.001)
        assert lease.serves()
        clock.tick(0.001)
        assert not lease.serves()

    def test_a_claim_that_took_long_has_used_up_its_lease(self, clock: ManualClock):
        assert not PodLease(7, LEASE_S, clock() - SAFE_S, clock).serves()

    def test_an_older_renewal_that_was_overtaken_shortens_nothing(
        self, lease: PodLease, clock: ManualClock
    ):
        early = clock()
        clock.tick(5)
        lease.extend(clock())
        lease.extend(early)
        clock.tick(SAFE_S - 0.001)
        assert lease.serves()

    def test_a_suspended_one_serves_nobody_until_it_is_extended(
        self, lease: PodLease, clock: ManualClock
    ):
        lease.suspend()
        assert not lease.serves()
        lease.extend(clock())
        assert lease.serves()

    def test_an_end_is_final(self, lease: PodLease, clock: ManualClock):
        lease.end()
        assert not lease.serves()
        lease.extend(clock())
        assert not lease.serves()


class TestCalls:
    def test_a_uid_that_is_held_is_admitted(self, pod: Pod):
        assert pod.admission.enter("u", 100, 7) == (Verdict.ADMIT, "")

    def test_an_unknown_uid_is_confirmed_first(self, pod: Pod):
        assert pod.verdict("v") is Verdict.CONFIRM

    def test_a_higher_epoch_than_is_known_is_confirmed_first(self, pod: Pod):
        assert pod.verdict(epoch=101) is Verdict.CONFIRM

    def test_a_lower_epoch_than_is_known_is_refused(self, pod: Pod):
        judged, reason = pod.admission.enter("u", 99, 7)
        assert judged is Verdict.REFUSE
        assert "100" in reason

    @pytest.mark.parametrize("incarnation", [6, 8, 0])
    def test_another_incarnation_is_refused(self, pod: Pod, incarnation: int):
        for uid in ("u", "unknown"):
            judged, reason = pod.admission.enter(uid, 100, incarnation)
            assert judged is Verdict.REFUSE
            assert "7" in reason

    def test_a_uids_own_lease_is_confirmed_again_when_it_has_run_out(
        self, pod: Pod, clock: ManualClock
    ):
        clock.tick(4.999)
        assert pod.verdict() is Verdict.ADMIT
        clock.tick(0.001)
        assert pod.verdict() is Verdict.CONFIRM
        assert pod.confirm(lease_s=1) is Told.HELD
        assert pod.verdict() is Verdict.ADMIT

    def test_a_uids_lease_counts_from_before_it_was_asked_for(self, pod: Pod, clock: ManualClock):
        asked_at = clock()
        clock.tick(4)
        assert pod.confirm("v", lease_s=5, asked_at=asked_at) is Told.ACQUIRE
        pod.admission.acquired("v", 100)
        assert pod.verdict("v") is Verdict.ADMIT
        clock.tick(1)
        assert pod.verdict("v") is Verdict.CONFIRM

    def test_an_older_confirmation_that_was_overtaken_shortens_nothing(
        self, pod: Pod, clock: ManualClock
    ):
        assert pod.confirm(lease_s=1) is Told.HELD
        clock.tick(4)
        assert pod.verdict() is Verdict.ADMIT

    def test_a_call_that_redis_just_confirmed_enters_however_little_is_left_of_its_lease(
        self, pod: Pod
    ):
        pod.hold("v", 100, lease_s=0.001)
        assert pod.verdict("v") is Verdict.ADMIT

    def test_nothing_is_admitted_or_taken_in_after_the_pods_lease(
        self, pod: Pod, clock: ManualClock
    ):
        pod.confirm(lease_s=1_000)
        clock.tick(SAFE_S)
        for uid in ("u", "unknown"):
            judged, reason = pod.admission.enter(uid, 100, 7)
            assert judged is Verdict.REFUSE
            assert "lease" in reason
        assert pod.confirm("v") is Told.VOID
        assert not terms.renew(pod.held, clock())
        assert pod.verdict() is Verdict.REFUSE

    def test_what_was_read_before_a_recall_is_read_again(self, pod: Pod, clock: ManualClock):
        asked_at = clock()
        clock.tick(0.1)
        pod.held.recalls.told({0}, {"late": 0, "u": 0, "other": 1}.__getitem__, clock())
        assert pod.confirm("late", 120, asked_at=asked_at) is Told.VOID
        assert pod.confirm("u", 120, asked_at=asked_at) is Told.VOID
        assert not pod.held.entries["u"].lost
        assert pod.confirm(asked_at=asked_at) is Told.HELD, "it was told of"
        assert pod.confirm("other", 120, asked_at=asked_at) is Told.ACQUIRE, "of another shard"
        clock.tick(0.1)
        assert pod.confirm("late", 120) is Told.ACQUIRE

    def test_an_ended_lease_refuses_at_once(self, pod: Pod):
        pod.lease.end()
        assert pod.verdict() is Verdict.REFUSE

    def test_calls_that_run_are_counted(self, pod: Pod):
        for _ in range(3):
            pod.enter()
        assert pod.held.running == 3
        pod.enter(epoch=99)
        pod.enter("unknown")
        assert pod.held.running == 3
        for _ in range(3):
            pod.admission.leave("u")
        assert pod.held.running == 0

    def test_a_drained_pod_waits_until_no_call_runs(self, pod: Pod):
        assert pod.held.wait_idle(Deadline.after(0))
        pod.enter()
        assert not pod.held.wait_idle(Deadline.after(0.02))
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(pod.held.wait_idle, Deadline.after(30))
            pod.admission.leave("u")
            assert waiting.result(10)

    def test_a_closed_pod_refuses_all_until_it_is_opened(self, pod: Pod):
        closing.close(pod.held, "drained")
        for uid in ("u", "unknown"):
            assert pod.admission.enter(uid, 100, 7) == (Verdict.REFUSE, "drained")
        closing.reopen(pod.held)
        assert pod.verdict() is Verdict.ADMIT

    def test_a_closed_pod_takes_in_no_uid_whose_link_was_read_before(self, pod: Pod):
        """Who closed it has been told all that it holds, and may call it empty."""
        asked_at = pod.clock()
        closing.close(pod.held, "drained")
        assert pod.confirm("new", 200, asked_at=asked_at) is Told.VOID
        assert "new" not in pod.held.entries
        assert pod.confirm() is Told.HELD, "what it has it has"
        closing.reopen(pod.held)
        assert pod.confirm("new", 200) is Told.ACQUIRE

    def test_opening_again_spares_releases_under_way(self, pod: Pod):
        pod.release()
        closing.close(pod.held, "drained")
        closing.reopen(pod.held)
        assert pod.verdict() is Verdict.REFUSE

    def test_nothing_opens_what_has_been_shut_but_another_life(self, pod: Pod, clock: ManualClock):
        closing.shut(pod.held, "gone")
        closing.reopen(pod.held)
        closing.stay(pod.held)
        pod.releases.follow(2)
        assert pod.admission.enter("u", 100, 7) == (Verdict.REFUSE, "gone")
        terms.begin(pod.held, PodLease(8, LEASE_S, clock(), clock), 0)
        assert pod.verdict("v", incarnation=8) is Verdict.CONFIRM


class TestAcquiring:
    def test_a_uid_is_acquired_before_its_first_call(self, pod: Pod):
        assert pod.confirm("v") is Told.ACQUIRE
        assert pod.verdict("v") is Verdict.CONFIRM
        assert pod.confirm("v") is Told.WAIT
        pod.admission.acquired("v", 100)
        assert pod.verdict("v") is Verdict.ADMIT
        assert pod.confirm("v") is Told.HELD

    def test_a_confirmation_of_an_old_epoch_replaces_no_newer_one(
        self, pod: Pod, clock: ManualClock
    ):
        assert pod.confirm(epoch=99, lease_s=50) is Told.VOID
        assert pod.verdict() is Verdict.ADMIT
        clock.tick(5)
        assert pod.verdict() is Verdict.CONFIRM

    def test_a_uid_that_could_not_be_acquired_may_be_tried_again(self, pod: Pod):
        pod.confirm("v")
        pod.admission.not_acquired("v", 100)
        assert pod.verdict("v") is Verdict.CONFIRM
        assert pod.confirm("v") is Told.ACQUIRE

    @pytest.mark.parametrize("later_s", [0, 1])
    def test_what_was_read_of_an_earlier_epoch_than_one_that_could_not_be_acquired_is_void(
        self, pod: Pod, clock: ManualClock, later_s: float
    ):
        asked_at = clock()
        pod.confirm("v", 101)
        clock.tick(later_s)
        pod.admission.not_acquired("v", 101)
        assert pod.confirm("v", 100, asked_at=asked_at) is Told.VOID
        assert pod.confirm("v", 101, asked_at=asked_at) is Told.ACQUIRE, "it may be tried again"

    def test_a_uid_that_could_not_be_acquired_is_whos_who_asked_for_it(self, pod: Pod):
        """Else it could be acquired again before the router has named another pod."""
        pod.confirm("v")
        pod.release(uid="v")
        pod.admission.not_acquired("v", 100)
        assert pod.held.outcomes.take() == [Outcome(1, "v", 100, given=True)]
        assert pod.verdict("v") is Verdict.REFUSE
        assert pod.confirm("v") is Told.VOID

    def test_a_release_waits_for_an_acquisition(self, pod: Pod):
        pod.confirm("v")
        pod.release(uid="v")
        assert pod.take() == []
        pod.admission.acquired("v", 100)
        assert pod.verdict("v") is Verdict.REFUSE
        assert pod.take() == [("v", 100, Kind.RELEASE)]

    def test_nothing_is_acquired_beside_a_call_of_an_earlier_epoch(self, pod: Pod):
        pod.enter()
        assert pod.verdict(epoch=101) is Verdict.WAIT
        assert pod.confirm(epoch=101) is Told.WAIT
        pod.admission.leave("u")
        assert pod.verdict(epoch=101) is Verdict.WAIT  # its hook comes first
        assert pod.run_hook() is Kind.LOSE
        pod.clock.tick(0.1)
        pod.hold("u", 101)
        assert pod.verdict(epoch=101) is Verdict.ADMIT

    def test_nothing_is_acquired_beside_the_hook_of_an_earlier_epoch(self, pod: Pod):
        pod.release()
        work = pod.begin_hook()
        assert pod.verdict(epoch=101) is Verdict.WAIT
        assert pod.confirm(epoch=101) is Told.WAIT
        pod.work.ended("u", work.epoch)
        assert pod.verdict(epoch=101) is Verdict.CONFIRM
        assert pod.confirm(epoch=101) is Told.ACQUIRE

    def test_a_reply_that_comes_after_the_lease_it_brings_acquires_nothing(
        self, pod: Pod, clock: ManualClock
    ):
        asked_at = clock()
        clock.tick(5)
        assert pod.confirm("v", lease_s=5, asked_at=asked_at) is Told.VOID


class TestCallsThatHaveRun:
    """What is judged again before a result may leave."""

    def test_a_call_under_the_epoch_that_is_held_may_answer(self, pod: Pod):
        pod.enter()
        assert pod.admission.still("u", 100) == (Verdict.ADMIT, "")

    def test_a_call_that_outlived_the_uids_lease_is_confirmed_again(
        self, pod: Pod, clock: ManualClock
    ):
        pod.enter()
        clock.tick(5)
        assert pod.admission.still("u", 100)[0] is Verdict.CONFIRM
        pod.confirm()
        assert pod.admission.still("u", 100)[0] is Verdict.ADMIT

    def test_a_call_that_outlived_the_pods_lease_is_refused(self, pod: Pod, clock: ManualClock):
        pod.confirm(lease_s=1_000)
        pod.enter()
        clock.tick(SAFE_S)
        assert pod.admission.still("u", 100)[0] is Verdict.REFUSE

    def test_a_call_that_a_lapse_was_resumed_under_is_confirmed_again(self, pod: Pod):
        pod.enter()
        pod.lapse_and_resume()
        assert pod.admission.still("u", 100)[0] is Verdict.CONFIRM

    def test_a_call_whose_uid_has_a_newer_epoch_by_now_is_refused(self, pod: Pod):
        pod.enter()
        pod.confirm(epoch=101)
        assert pod.admission.still("u", 100)[0] is Verdict.REFUSE

    def test_a_call_whose_uid_is_another_pods_by_now_is_refused(self, pod: Pod):
        pod.enter()
        pod.deny()
        assert pod.admission.still("u", 100)[0] is Verdict.REFUSE

    def test_a_release_that_waits_for_the_call_does_not_refuse_it(self, pod: Pod):
        pod.enter()
        pod.release()
        assert pod.verdict() is Verdict.REFUSE
        assert pod.admission.still("u", 100)[0] is Verdict.ADMIT


class TestRelease:
    def test_its_hook_runs_once_and_then_it_is_told(self, pod: Pod):
        pod.release()
        work = pod.begin_hook()
        assert work[:2] == ("u", 100)
        assert work.kind is Kind.RELEASE
        assert pod.take() == []
        assert pod.held.outcomes.take() == []
        pod.work.ended("u", 100)
        assert pod.held.outcomes.take() == [Outcome(1, "u", 100, given=True)]
        assert pod.held.outcomes.take() == []
        assert pod.take() == []

    def test_a_second_release_begins_no_second_hook_and_both_are_told(self, pod: Pod):
        pod.release(1)
        pod.begin_hook()
        pod.release(2)
        assert pod.take() == []
        pod.work.ended("u", 100)
        pod.release(3)
        assert pod.take() == []
        told = {(outcome.release, outcome.given) for outcome in pod.held.outcomes.take()}
        assert told == {(1, True), (2, True), (3, True)}

    def test_each_of_its_uids_is_told_as_it_is_given_up(self, pod: Pod):
        pod.hold("v", 200)
        pod.enter("v", 200)
        pod.releases.release(1, {"u": 100, "v": 200}, 3, closes=True, router=1)
        pod.run_hook()
        assert pod.held.outcomes.take() == [Outcome(1, "u", 100, given=True)]
        pod.admission.leave("v")
        pod.run_hook()
        assert pod.held.outcomes.take() == [Outcome(1, "v", 200, given=True)]

    def test_no_other_uid_is_released(self, pod: Pod):
        pod.hold("v", 100)
        pod.give_up()
        assert pod.verdict("v") is Verdict.ADMIT

    def test_it_waits_for_the_last_call_of_its_uid(self, pod: Pod):
        pod.hold("v", 100)
        for uid in ("u", "u", "v"):
            pod.enter(uid)
        pod.release()
        assert pod.verdict() is Verdict.REFUSE
        pod.admission.leave("u")
        assert pod.take() == []
        pod.admission.leave("u")
        assert pod.take() == [("u", 100, Kind.RELEASE)]

    def test_a_call_that_enters_before_its_hook_begins_is_waited_for_too(self, pod: Pod):
        pod.release(closes=False)
        pod.enter()
        assert pod.take() == []
        pod.admission.leave("u")
        assert pod.take() == [("u", 100, Kind.RELEASE)]

    def test_one_that_closes_refuses_calls_meanwhile_and_another_does_not(self, pod: Pod):
        pod.enter()
        pod.release(1, closes=False)
        assert pod.verdict() is Verdict.ADMIT
        pod.release(2, closes=True)
        assert pod.verdict() is Verdict.REFUSE

    def test_a_uid_that_stays_busy_is_kept_as_it_was_when_patience_is_over(
        self, pod: Pod, clock: ManualClock
    ):
        pod.enter()
        pod.release(patience_s=3)
        clock.tick(2.999)
        pod.releases.tick()
        assert pod.held.outcomes.take() == []
        clock.tick(0.001)
        pod.releases.tick()
        pod.releases.tick()
        assert pod.held.outcomes.take() == [Outcome(1, "u", 100, given=False)]
        assert pod.verdict() is Verdict.ADMIT
        pod.admission.leave("u")
        assert pod.take() == []

    @pytest.mark.parametrize("is_called", [False, True])
    def test_one_without_a_call_waits_for_its_hooks_turn_beyond_that(
        self, pod: Pod, clock: ManualClock, *, is_called: bool
    ):
        pod.release(patience_s=3, closes=False)
        clock.tick(4)
        pod.releases.tick()
        assert pod.held.outcomes.take() == [], "it is not busy: other uids' hooks are"
        if is_called:
            pod.enter()
            pod.releases.tick()
            assert pod.held.outcomes.take() == [Outcome(1, "u", 100, given=False)]
            pod.admission.leave("u")
            assert pod.take() == []
        else:
            assert pod.run_hook() is Kind.RELEASE
            assert pod.held.outcomes.take() == [Outcome(1, "u", 100, given=True)]

    def test_a_hook_that_has_begun_has_no_patience_to_keep(self, pod: Pod, clock: ManualClock):
        pod.release(patience_s=3)
        pod.begin_hook()
        clock.tick(4)
        pod.releases.tick()
        assert pod.held.outcomes.take() == []
        pod.work.ended("u", 100)
        assert pod.held.outcomes.take() == [Outcome(1, "u", 100, given=True)]

    def test_one_that_is_taken_back_in_time_leaves_the_uid_as_it_was(self, pod: Pod):
        pod.enter()
        pod.release(number=1)
        pod.releases.cancel(2)
        assert pod.verdict() is Verdict.REFUSE
        pod.releases.cancel(1)
        assert pod.verdict() is Verdict.ADMIT
        pod.admission.leave("u")
        assert pod.take() == []
        assert pod.confirm() is Told.HELD  # not acquired anew
        assert pod.held.outcomes.take() == []

    def test_one_that_is_taken_back_leaves_another(self, pod: Pod):
        pod.enter()
        pod.release(1)
        pod.release(2)
        pod.releases.cancel(1)
        assert pod.verdict() is Verdict.REFUSE
        pod.admission.leave("u")
        pod.run_hook()
        assert pod.held.outcomes.take() == [Outcome(2, "u", 100, given=True)]

    def test_nothing_takes_back_a_hook_that_has_begun(self, pod: Pod):
        """The uid never serves again under that epoch."""
        pod.release()
        pod.begin_hook()
        pod.releases.cancel(1)
        pod.releases.follow(2)
        assert pod.verdict() is Verdict.REFUSE
        assert pod.confirm() is Told.VOID
        pod.work.ended("u", 100)
        assert pod.verdict() is Verdict.REFUSE
        assert pod.confirm() is Told.VOID

    def test_calls_are_refused_once_the_hook_has_begun_whoever_asked_for_it(self, pod: Pod):
        pod.release(closes=False)
        assert pod.verdict() is Verdict.ADMIT
        pod.begin_hook()
        assert pod.verdict() is Verdict.REFUSE
        pod.work.ended("u", 100)
        assert pod.verdict() is Verdict.REFUSE

    def test_a_younger_router_voids_what_older_ones_asked_for(self, pod: Pod):
        pod.enter()
        pod.release(1, router=1)
        closing.close(pod.held, "drained")
        pod.releases.follow(2)
        assert pod.verdict() is Verdict.ADMIT
        pod.release(2, router=2)
        pod.releases.follow(2)
        assert pod.verdict() is Verdict.REFUSE
        pod.admission.leave("u")
        pod.run_hook()
        assert pod.held.outcomes.take() == [Outcome(2, "u", 100, given=True)]

    @pytest.mark.parametrize("take_back", ["cancel", "follow", "nothing"])
    def test_a_hook_whose_turn_comes_after_a_lapse_does_not_begin(self, pod: Pod, take_back: str):
        pod.release()
        (work,) = pod.work.take(10)
        if take_back == "cancel":
            pod.releases.cancel(1)
        elif take_back == "follow":
            pod.releases.follow(2)
        pod.lapse_and_resume()
        assert not pod.work.may_begin(work)
        assert pod.verdict() is Verdict.CONFIRM
        pod.confirm()
        assert pod.take() == []  # what was asked for before the lapse is void
        assert pod.verdict() is Verdict.ADMIT

    def test_a_hook_whose_turn_comes_after_the_uids_lease_waits_for_a_confirmation(
        self, pod: Pod, clock: ManualClock
    ):
        pod.release(patience_s=100)
        (work,) = pod.work.take(10)
        clock.tick(5)
        assert not pod.work.may_begin(work)
        assert pod.to_confirm() == ["u"]
        pod.confirm()
        assert pod.run_hook() is Kind.RELEASE
        assert pod.held.outcomes.take() == [Outcome(1, "u", 100, given=True)]

    def test_a_hook_whose_uid_was_denied_before_its_turn_came_saves_nothing(self, pod: Pod):
        pod.release()
        (work,) = pod.work.take(10)
        pod.deny()
        assert not pod.work.may_begin(work)
        assert pod.run_hook() is Kind.LOSE

    def test_no_more_hooks_are_begun_than_may_run(self, pod: Pod):
        pod.hold("v", 100)
        pod.releases.release(1, {"u": 100, "v": 100}, 3, closes=True, router=1)
        assert pod.work.take(0) == []
        (first,) = pod.work.take(1)
        (second,) = pod.work.take(1)
        assert {first.uid, second.uid} == {"u", "v"}

    def test_one_that_waits_is_found_by_whoever_waits_for_work(self, pod: Pod):
        known = pod.held.work.wait(0, 0)
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(pod.held.work.wait, known, 60)
            pod.release()
            waiting.result(10)

    def test_one_that_waits_for_a_hook_wakes_nobody_again(self, pod: Pod):
        pod.release()
        pod.releases.tick()
        known = pod.held.work.wait(0, 0)
        pod.releases.tick()
        assert pod.work.take(0) == [], "no hook may run yet"
        assert pod.held.work.wait(known, 0) == known


class TestGivenUp:
    def test_it_is_refused_up_to_its_epoch(self, pod: Pod):
        pod.give_up()
        for epoch in (99, 100):
            assert pod.verdict(epoch=epoch) is Verdict.REFUSE
        assert "released" in pod.admission.enter("u", 100, 7)[1]
        assert pod.verdict(epoch=101) is Verdict.CONFIRM

    def test_it_is_acquired_anew_under_a_higher_epoch(self, pod: Pod):
        pod.give_up()
        assert pod.confirm(epoch=100) is Told.VOID
        pod.hold("u", 101)
        assert pod.verdict(epoch=101) is Verdict.ADMIT
        assert pod.verdict(epoch=100) is Verdict.REFUSE

    def test_a_uid_that_was_never_held_can_be_given_up_before_its_first_call(self, pod: Pod):
        pod.release(uid="v")
        assert pod.held.outcomes.take() == [Outcome(1, "v", 100, given=True)]
        assert pod.take() == []
        assert pod.verdict("v") is Verdict.REFUSE
        assert pod.confirm("v") is Told.VOID

    def test_a_release_of_an_old_epoch_gives_up_no_newer_one(self, pod: Pod):
        pod.release(epoch=99)
        assert pod.held.outcomes.take() == [Outcome(1, "u", 99, given=False)]
        assert pod.verdict() is Verdict.ADMIT
        assert pod.take() == []

    def test_a_release_under_a_new_epoch_refuses_that_too_once_the_earlier_one_is_over(
        self, pod: Pod
    ):
        """Redis names the pod under 101 by now, but a call of 100 runs on."""
        pod.enter()
        pod.release(epoch=101)
        pod.admission.leave("u")
        assert pod.run_hook() is Kind.LOSE
        assert pod.held.outcomes.take() == [Outcome(1, "u", 101, given=True)]
        assert pod.verdict(epoch=101) is Verdict.REFUSE
        assert pod.confirm(epoch=101) is Told.VOID

    def test_it_is_told_to_the_router_until_that_has_settled_it(self, pod: Pod, clock: ManualClock):
        pod.give_up()
        assert unsettled(pod.held, clock()) == {}
        clock.tick(1)
        assert unsettled(pod.held, clock()) == {"u": (100, Fate.STAYS)}
        pod.releases.settled({"u": (99, 0)})
        assert pod.verdict() is Verdict.REFUSE
        pod.releases.settled({"u": (100, 0)})
        assert unsettled(pod.held, clock()) == {}
        assert pod.verdict() is Verdict.CONFIRM
        assert len(pod.held) == 0

    def test_nothing_is_settled_that_is_held_anew(self, pod: Pod):
        pod.give_up()
        pod.hold("u", 101)
        pod.releases.settled({"u": (100, 0), "other": (1, 0)})
        pod.releases.settled({"u": (101, 0)})
        assert pod.verdict(epoch=101) is Verdict.ADMIT

    def test_a_link_that_was_read_before_it_was_settled_brings_it_back_no_more(
        self, pod: Pod, clock: ManualClock
    ):
        """Its reply was slow, and another pod serves the uid by now."""
        asked_at = clock()
        pod.give_up()
        clock.tick(1)
        pod.releases.settled({"u": (100, 0)})
        assert pod.confirm(asked_at=asked_at) is Told.VOID
        assert pod.confirm(epoch=102, asked_at=asked_at) is Told.ACQUIRE, "it is a later link's"

    def test_what_is_forgotten_holds_up_no_other_uid(self, pod: Pod, clock: ManualClock):
        """Uids come and go all the time, and reads take theirs."""
        asked_at = clock()
        pod.give_up()
        clock.tick(1)
        pod.releases.settled({"u": (100, 0)})
        assert pod.confirm("v", asked_at=asked_at) is Told.ACQUIRE

    def test_what_is_forgotten_is_not_remembered_for_ever(self, pod: Pod, clock: ManualClock):
        asked_at = clock()
        for number in range(5):
            pod.release(uid=f"v{number}")
            pod.releases.settled({f"v{number}": (100, 0)})
            clock.tick(100)
        assert len(pod.held.forgotten._last) == 1
        terms.resume(pod.held, pod.held.term, clock())
        for uid in ("v0", "v4", "other"):  # the last as old: who knows whose it was
            assert pod.confirm(uid, lease_s=1_000, asked_at=asked_at) is Told.VOID


class TestLost:
    """What Redis does not name this pod for: it is dropped, and nothing is saved."""

    def test_what_is_denied_is_lost_when_its_calls_have_ended(self, pod: Pod):
        pod.enter()
        pod.deny()
        assert pod.verdict() is Verdict.REFUSE
        assert pod.take() == []
        assert pod.confirm() is Told.VOID
        pod.admission.leave("u")
        assert pod.run_hook() is Kind.LOSE
        assert pod.verdict() is Verdict.CONFIRM

    def test_what_is_denied_under_another_epoch_is_kept(self, pod: Pod):
        pod.deny(epoch=99)
        pod.deny(epoch=101)
        pod.deny("unknown")
        assert pod.verdict() is Verdict.ADMIT

    def test_a_denial_of_an_earlier_term_is_void(self, pod: Pod):
        term = pod.held.term
        pod.lapse_and_resume()
        pod.admission.denied("u", 100, term)
        pod.confirm()
        assert pod.verdict() is Verdict.ADMIT

    def test_a_release_of_it_is_answered_once_nothing_of_it_runs(self, pod: Pod):
        pod.deny()
        pod.release()
        assert pod.run_hook() is Kind.LOSE
        assert pod.held.outcomes.take() == [Outcome(1, "u", 100, given=True)]

    def test_its_hook_runs_without_a_lease(self, pod: Pod, clock: ManualClock):
        pod.deny()
        clock.tick(SAFE_S)
        assert pod.run_hook() is Kind.LOSE

    def test_a_link_that_was_read_before_it_was_lost_brings_it_back_no_more(
        self, pod: Pod, clock: ManualClock
    ):
        asked_at = clock()
        clock.tick(1)
        pod.deny()
        pod.run_hook()
        assert pod.confirm(asked_at=asked_at) is Told.VOID


class TestConfirmingBeforeAHook:
    @pytest.fixture
    def due(self, pod: Pod, clock: ManualClock) -> Pod:
        """Pod whose "u" is to be released, and past its own lease."""
        pod.release(patience_s=100)
        clock.tick(5)
        return pod

    def test_no_hook_begins_for_a_uid_that_is_not_confirmed(self, due: Pod):
        assert due.take() == []
        due.confirm()
        assert due.take() == [("u", 100, Kind.RELEASE)]

    def test_each_uid_is_named_once_until_it_was_read(self, due: Pod):
        assert due.to_confirm() == ["u"]
        assert due.to_confirm() == []
        due.admission.unread("u")
        assert due.to_confirm() == ["u"]
        due.confirm()
        assert due.to_confirm() == []

    def test_one_that_is_denied_is_lost(self, due: Pod):
        assert due.to_confirm() == ["u"]
        due.deny()
        assert due.to_confirm() == []
        assert due.take() == [("u", 100, Kind.LOSE)]

    def test_nothing_is_to_be_read_for_a_uid_that_is_confirmed_busy_or_kept(
        self, pod: Pod, clock: ManualClock
    ):
        pod.release(1)
        assert pod.to_confirm() == []
        pod.releases.cancel(1)
        clock.tick(5)
        assert pod.to_confirm() == []
        pod.confirm()
        pod.enter()
        clock.tick(5)
        pod.renew() if pod.lease.serves() else pod.lapse_and_resume()
        pod.release(2)
        assert pod.to_confirm() == []

    def test_nothing_is_read_or_taken_past_the_pods_lease(self, due: Pod, clock: ManualClock):
        due.confirm(lease_s=1_000)
        clock.tick(4)
        assert due.to_confirm() == []
        assert due.take() == []


class TestRemovals:
    """Links that are to go at a moment, which their owner gives up then."""

    def test_a_removal_that_is_due_refuses_calls_and_ends_the_uid(
        self, pod: Pod, clock: ManualClock
    ):
        assert pod.releases.end_at("u", 100, clock() + 2)
        pod.enter()
        clock.tick(1.999)
        pod.releases.tick()
        assert pod.verdict() is Verdict.ADMIT
        clock.tick(0.001)
        assert pod.verdict() is Verdict.REFUSE
        pod.releases.tick()
        assert pod.take() == []
        pod.admission.leave("u")
        assert pod.run_hook() is Kind.RELEASE
        clock.tick(1)
        assert unsettled(pod.held, clock()) == {"u": (100, Fate.GOES)}

    @pytest.mark.parametrize("due", [False, True])
    def test_its_pod_remembers_a_uid_until_its_removal_is_due(
        self, pod: Pod, clock: ManualClock, due: bool
    ):
        """Should its link be lost meanwhile, or run out by a step of the server's clock."""
        pod.releases.end_at("u", 100, clock() + (6 if due else 7))
        clock.tick(6)
        pod.renew()
        assert pod.verdict() is (Verdict.REFUSE if due else Verdict.CONFIRM)
        _, held, ago_s = memory(pod.held)
        assert held == ({} if due else {"u": (100, False)})
        assert ago_s == ({} if due else {"u": pytest.approx(1)})

    def test_its_pod_says_that_it_knows_of_it_until_it_has_given_the_uid_up(
        self, pod: Pod, clock: ManualClock
    ):
        def told() -> dict[str, int]:
            used = in_use(pod.held, clock())
            assert used == {"u": 100}
            return are_to_go(pod.held, used)

        pod.enter()
        assert told() == {}
        pod.releases.end_at("u", 100, clock() + 2)
        assert told() == {"u": 100}
        clock.tick(2)
        pod.releases.tick()
        assert told() == {"u": 100}
        pod.admission.leave("u")
        pod.begin_hook()
        assert told() == {"u": 100}
        pod.work.ended("u", 100)
        assert in_use(pod.held, clock()) == {}

    def test_the_link_of_one_that_nobody_uses_lives_on_until_then(
        self, pod: Pod, clock: ManualClock
    ):
        pod.releases.end_at("u", 100, clock() + 60)
        assert in_use(pod.held, clock() + 1) == {}
        assert in_use(pod.held, clock() + 1, ending_before=clock() + 10) == {"u": 100}

    def test_it_can_be_taken_back(self, pod: Pod, clock: ManualClock):
        pod.releases.end_at("u", 100, clock() + 1)
        assert pod.releases.end_at("u", 100, math.inf)
        set_kinds(pod.held, {"u": (100, False)})
        clock.tick(2)
        pod.releases.tick()
        assert pod.take() == []
        assert pod.verdict() is Verdict.ADMIT

    @pytest.mark.parametrize("moments", [(1, 500), (500, 1)])
    def test_of_two_removals_the_earlier_one_holds_as_in_redis(
        self, pod: Pod, clock: ManualClock, moments: tuple[float, float]
    ):
        for after_s in moments:
            assert pod.releases.end_at("u", 100, clock() + after_s)
        clock.tick(2)
        pod.releases.tick()
        assert pod.run_hook() is Kind.RELEASE
        clock.tick(1)
        assert unsettled(pod.held, clock()) == {"u": (100, Fate.GOES)}

    def test_it_is_too_late_for_a_uid_that_is_being_given_up(self, pod: Pod, clock: ManualClock):
        pod.release()
        pod.begin_hook()
        assert not pod.releases.end_at("u", 100, math.inf)
        pod.work.ended("u", 100)
        assert not pod.releases.end_at("u", 100, clock() + 1)

    def test_a_uid_that_was_never_called_here_is_given_up_with_its_link(
        self, pod: Pod, clock: ManualClock
    ):
        assert pod.releases.end_at("v", 100, clock() + 1)
        clock.tick(1)
        pod.releases.tick()
        assert pod.take() == []
        assert pod.verdict("v") is Verdict.REFUSE
        assert pod.confirm("v") is Told.VOID
        clock.tick(1)
        assert unsettled(pod.held, clock()) == {"v": (100, Fate.GOES)}

    def test_it_holds_for_a_uid_that_is_acquired_after_it(self, pod: Pod, clock: ManualClock):
        pod.releases.end_at("v", 100, clock() + 1)
        pod.hold("v", 100)
        clock.tick(1)
        pod.releases.tick()
        assert pod.verdict("v") is Verdict.REFUSE
        assert pod.take() == [("v", 100, Kind.RELEASE)]

    def test_it_does_not_hold_for_another_epoch(self, pod: Pod, clock: ManualClock):
        pod.releases.end_at("u", 99, clock() + 1)
        clock.tick(1)
        pod.releases.tick()
        assert pod.verdict() is Verdict.ADMIT
        pod.releases.end_at("v", 100, clock() + 1)
        pod.hold("v", 101)
        clock.tick(1)
        pod.releases.tick()
        assert pod.verdict("v", 101) is Verdict.ADMIT

    def test_one_under_a_new_epoch_waits_until_the_earlier_one_is_over(
        self, pod: Pod, clock: ManualClock
    ):
        pod.enter()
        pod.releases.end_at("u", 101, clock() + 1)
        clock.tick(1)
        pod.releases.tick()
        pod.admission.leave("u")
        assert pod.held.running == 0
        assert pod.run_hook() is Kind.LOSE
        pod.releases.tick()
        assert pod.verdict(epoch=101) is Verdict.REFUSE
        clock.tick(1)
        assert unsettled(pod.held, clock()) == {"u": (101, Fate.GOES)}

    def test_one_under_a_new_epoch_lets_patience_with_an_earlier_one_end(
        self, pod: Pod, clock: ManualClock
    ):
        pod.enter()
        pod.release(patience_s=1)
        pod.releases.end_at("u", 101, clock() + 1)
        clock.tick(1)
        pod.releases.tick()
        assert pod.held.outcomes.take() == [Outcome(1, "u", 100, given=False)]

    def test_one_that_falls_due_while_on_acquire_runs_and_fails_is_carried_out(
        self, pod: Pod, clock: ManualClock
    ):
        assert pod.confirm("v", 100) is Told.ACQUIRE
        pod.releases.end_at("v", 100, clock() + 1)
        clock.tick(1)
        pod.releases.tick()
        pod.admission.not_acquired("v", 100)
        assert pod.confirm("v", 100) is Told.ACQUIRE  # its next call, in time to come first
        pod.admission.acquired("v", 100)
        assert pod.verdict("v") is Verdict.REFUSE
        assert pod.take() == [("v", 100, Kind.RELEASE)]

    def test_nor_does_it_wait_for_a_next_call(self, pod: Pod, clock: ManualClock):
        assert pod.confirm("v", 100) is Told.ACQUIRE
        pod.releases.end_at("v", 100, clock() + 1)
        clock.tick(1)
        pod.releases.tick()
        pod.admission.not_acquired("v", 100)
        pod.releases.tick()
        assert pod.verdict("v") is Verdict.REFUSE
        clock.tick(1)
        assert unsettled(pod.held, clock()) == {"v": (100, Fate.GOES)}

    @pytest.mark.parametrize("state", [None, "its state"])
    @pytest.mark.parametrize("how", ["settled", "read", "asked for again"])
    @pytest.mark.parametrize("due_s", [0.5, 1.5])
    def test_it_holds_for_a_uid_that_is_given_back_under_a_new_epoch(
        self, pod: Pod, clock: ManualClock, how: str, state: str | None, due_s: float
    ):
        pod.releases.end_at("u", 100, clock() + due_s)
        pod.release(1)
        pod.work.ended(*pod.begin_hook()[:2], state)
        clock.tick(1)
        pod.releases.tick()  # it may fall due while somebody tries to move the uid
        if how == "settled":
            pod.releases.settled({"u": (100, 101)})
        elif how == "asked for again":
            pod.releases.release(2, {"u": 101}, 3.0, closes=True, router=1, replaced={"u": 100})
            pod.releases.settled({"u": (101, 102)})
        epoch = 102 if how == "asked for again" else 101
        clock.tick(1)
        pod.releases.tick()
        if state is None and how != "read":  # nothing has come back: only its link is to go
            assert unsettled(pod.held, clock() + 1) == {"u": (epoch, Fate.GOES)}
            return
        assert pod.confirm("u", epoch, replaced=epoch - 1) is Told.ACQUIRE
        pod.admission.acquired("u", epoch)
        assert pod.verdict("u", epoch) is Verdict.REFUSE
        assert pod.take() == [("u", epoch, Kind.RELEASE)]

    def test_one_whose_state_cannot_be_acquired_goes_with_it(self, pod: Pod, clock: ManualClock):
        pod.releases.end_at("u", 100, clock() + 1)
        pod.release(1)
        pod.work.ended(*pod.begin_hook()[:2], "its state")
        pod.releases.settled({"u": (100, 101)})
        assert pod.confirm("u", 101) is Told.ACQUIRE
        clock.tick(1)
        pod.releases.tick()
        pod.admission.not_acquired("u", 101)
        pod.releases.tick()
        assert unsettled(pod.held, clock()) == {"u": (101, Fate.GOES)}

    @pytest.mark.parametrize("is_settled", [False, True])
    def test_it_ends_with_its_uid(self, pod: Pod, clock: ManualClock, *, is_settled: bool):
        """Another pod has had it, whose link was written anew."""
        pod.releases.end_at("u", 100, clock() + 2)
        pod.release(1)
        pod.work.ended(*pod.begin_hook()[:2])
        if is_settled:
            pod.releases.settled({"u": (100, 0)})
            assert not pod.held.scheduled
        clock.tick(1)
        pod.hold("u", 102, replaced=101)
        assert not pod.held.scheduled
        clock.tick(2)
        pod.releases.tick()
        assert pod.verdict("u", 102) is Verdict.ADMIT

    def test_what_is_taken_back_leaves_nothing_behind(self, pod: Pod, clock: ManualClock):
        for uid in ("u", "v"):
            pod.releases.end_at(uid, 100, clock() + 1)
            pod.releases.end_at(uid, 100, math.inf)
            set_kinds(pod.held, {uid: (100, False)})
        pod.releases.tick()
        assert not pod.held.scheduled
        assert not pod.held.moments


class TestCallsWithinACall:
    """One that is made within a running call of its uid is admitted while others are not."""

    @staticmethod
    def within(pod: Pod, epoch: int = 100) -> Verdict:
        return pod.admission.enter("u", epoch, 7, in_turn=True)[0]

    def test_while_its_uid_is_to_be_released(self, pod: Pod):
        pod.enter()
        pod.release()
        assert pod.enter() is Verdict.REFUSE
        assert self.within(pod) is Verdict.ADMIT

    def test_while_the_pod_is_drained_but_not_when_it_has_been(self, pod: Pod):
        pod.enter()
        closing.close(pod.held, "drained")
        assert pod.enter() is Verdict.REFUSE
        assert self.within(pod) is Verdict.ADMIT
        closing.shut(pod.held, "drained")
        assert self.within(pod) is Verdict.REFUSE

    def test_not_where_its_uid_is_lost_or_has_another_epoch(self, pod: Pod):
        pod.enter()
        assert self.within(pod, 99) is Verdict.REFUSE
        pod.deny()
        assert self.within(pod) is Verdict.REFUSE

    def test_the_reason_of_a_refusal_is_known_without_a_call(self, pod: Pod):
        assert pod.admission.refusal("u", 100, 7) == ""
        pod.enter()
        pod.release()
        assert pod.admission.refusal("u", 100, 7) == "the uid has been released"


class TestUse:
    def test_a_uid_is_reported_if_it_was_used_since(self, pod: Pod, clock: ManualClock):
        assert in_use(pod.held, clock()) == {"u": 100}
        clock.tick(1)
        assert in_use(pod.held, clock()) == {}
        assert pod.verdict() is Verdict.ADMIT
        assert in_use(pod.held, clock()) == {"u": 100}

    def test_a_call_that_runs_for_long_uses_its_uid_all_the_time(
        self, pod: Pod, clock: ManualClock
    ):
        pod.enter()
        for _ in range(3):
            clock.tick(5)
            pod.renew()
            assert in_use(pod.held, clock()) == {"u": 100}

    def test_a_uids_link_is_kept_until_its_hook_has_ended(self, pod: Pod, clock: ManualClock):
        clock.tick(1)
        pod.release()
        assert in_use(pod.held, clock()) == {"u": 100}
        pod.begin_hook()
        assert in_use(pod.held, clock()) == {"u": 100}
        pod.work.ended("u", 100)
        assert in_use(pod.held, clock()) == {}

    def test_a_uids_link_is_kept_while_it_is_acquired(self, pod: Pod, clock: ManualClock):
        pod.confirm("v")
        clock.tick(1)
        assert in_use(pod.held, clock()) == {"v": 100}

    def test_a_link_whose_hook_runs_over_a_lapse_is_kept_once_it_is_confirmed_again(
        self, pod: Pod, clock: ManualClock
    ):
        pod.release()
        pod.begin_hook()
        pod.lapse_and_resume()
        assert in_use(pod.held, clock()) == {}
        assert pod.confirm() is Told.VOID
        assert in_use(pod.held, clock()) == {"u": 100}

    def test_nothing_unconfirmed_lost_or_past_the_lease_is_reported(
        self, pod: Pod, clock: ManualClock
    ):
        pod.hold("v", 100)
        pod.enter("v")
        pod.deny("v")
        assert in_use(pod.held, 0) == {"u": 100}
        pod.lapse_and_resume()
        assert in_use(pod.held, 0) == {}
        pod.confirm()
        assert in_use(pod.held, 0) == {"u": 100}
        clock.tick(SAFE_S)
        assert in_use(pod.held, 0) == {}

    def test_a_temporary_uid_that_nobody_uses_for_long_is_given_up(
        self, pod: Pod, clock: ManualClock
    ):
        for _ in range(6):
            clock.tick(IDLE_S / 6)
            look_for_idle(pod.held)
            assert pod.take() == []
            pod.renew()
        assert pod.verdict() is Verdict.CONFIRM  # calls still may come
        assert pod.to_confirm() == ["u"]
        pod.confirm()
        assert pod.run_hook() is Kind.RELEASE
        clock.tick(1)
        assert unsettled(pod.held, clock()) == {"u": (100, Fate.UNUSED)}

    def test_a_call_that_comes_before_its_hook_keeps_an_idle_uid(
        self, pod: Pod, clock: ManualClock
    ):
        pod.confirm(lease_s=1_000)
        for _ in range(6):
            clock.tick(IDLE_S / 6)
            pod.renew()
        look_for_idle(pod.held)
        assert pod.verdict() is Verdict.ADMIT
        assert pod.take() == []

    def test_a_persistent_uid_is_never_idle(self, pod: Pod, clock: ManualClock):
        pod.confirm(lease_s=1_000, persistent=True)
        for _ in range(20):
            clock.tick(5)
            pod.renew()
        look_for_idle(pod.held)
        assert pod.to_confirm() == []
        assert pod.take() == []

    def test_what_is_held_is_listed_with_its_kind(self, pod: Pod):
        pod.hold("v", 200, persistent=True)
        pod.hold("w", 300)
        pod.hold("x", 400)
        pod.give_up("w", 300)
        pod.enter("x", 400)
        pod.deny("x", 400)
        assert memory(pod.held)[1] == {"u": (100, False), "v": (200, True)}
        assert sorted(unfinished(pod.held)) == ["u", "v", "x"]


class TestLengthened:
    """A report of use tells how long the links in use live at least."""

    def report(self, pod: Pod, *, began: float, term: int = 1, epoch: int = 100) -> None:
        pod.admission.lengthened({"u": epoch}, began + 5.0, term)

    def is_confirmed(self, pod: Pod) -> bool:
        return pod.verdict() is Verdict.ADMIT

    def test_a_uid_that_was_reported_need_not_be_read_again(self, pod: Pod, clock: ManualClock):
        began = clock()
        clock.tick(4)
        self.report(pod, began=began + 3)
        clock.tick(3.9)
        assert self.is_confirmed(pod)
        clock.tick(0.2)
        assert not self.is_confirmed(pod)

    def test_what_a_report_tells_is_counted_from_before_it_was_sent(
        self, pod: Pod, clock: ManualClock
    ):
        self.report(pod, began=clock() - 1)
        clock.tick(4.9)
        assert self.is_confirmed(pod), "an older word shortens nothing"

    def test_a_report_of_before_a_lapse_tells_nothing(self, pod: Pod, clock: ManualClock):
        clock.tick(1)
        pod.lapse_and_resume()
        self.report(pod, began=clock())
        assert not self.is_confirmed(pod)
        self.report(pod, began=clock(), term=pod.held.term)
        assert not self.is_confirmed(pod), "it was not confirmed since"
        assert pod.confirm(lease_s=1.0) is Told.HELD
        self.report(pod, began=clock())
        clock.tick(2)
        assert not self.is_confirmed(pod), "it is of the term before"

    def test_a_uid_whose_removal_is_scheduled_is_read_again(self, pod: Pod, clock: ManualClock):
        assert pod.releases.end_at("u", 100, clock() + 20)
        clock.tick(4)
        self.report(pod, began=clock())
        clock.tick(2)
        assert not self.is_confirmed(pod)

    def test_one_that_ends_though_nobody_has_told_this_pod_is_read_again(
        self, pod: Pod, clock: ManualClock
    ):
        """Its removal was taken back here, and Redis was away when it was to be there."""
        pod.hold("v", 100)
        told = Refreshed({}, {"u"})
        pod.admission.refreshed({"u": 100, "v": 100}, told, clock() + 8.0, pod.held.term)
        clock.tick(5)
        assert pod.verdict("u") is Verdict.CONFIRM
        assert pod.verdict("v") is Verdict.ADMIT

    def test_one_that_is_anothers_by_now_is_lost(self, pod: Pod, clock: ManualClock):
        told = Refreshed({"u": 100}, set())
        pod.admission.refreshed({"u": 100}, told, clock() + 8.0, pod.held.term)
        assert pod.verdict("u") is Verdict.REFUSE
        assert pod.run_hook() is Kind.LOSE

    def test_a_report_of_another_epoch_tells_nothing(self, pod: Pod, clock: ManualClock):
        clock.tick(4)
        self.report(pod, began=clock(), epoch=99)
        clock.tick(2)
        assert not self.is_confirmed(pod)


class TestLeaving:
    def test_every_uid_is_given_up_as_its_calls_end(self, pod: Pod):
        pod.hold("v", 200, persistent=True)
        pod.confirm("w", 300)
        pod.enter()
        closing.leave_all(pod.held)
        assert pod.take() == [("v", 200, Kind.RELEASE)]
        pod.admission.leave("u")
        assert pod.take() == [("u", 100, Kind.RELEASE)]
        pod.admission.acquired("w", 300)
        assert pod.take() == [("w", 300, Kind.RELEASE)]

    def test_links_of_temporary_uids_go_and_persistent_ones_are_given_back(
        self, pod: Pod, clock: ManualClock
    ):
        pod.hold("v", 200, persistent=True)
        closing.leave_all(pod.held)
        for work in pod.work.take(10):
            pod.work.ended(work.uid, work.epoch)
        clock.tick(1)
        assert unsettled(pod.held, clock()) == {"u": (100, Fate.UNUSED), "v": (200, Fate.STAYS)}
        assert unfinished(pod.held) == []

    def test_calls_go_on_meanwhile_unless_it_closes(self, pod: Pod):
        pod.enter()
        closing.leave_all(pod.held)
        assert pod.verdict() is Verdict.ADMIT

    def test_a_pod_that_stays_keeps_what_is_not_given_up_yet(self, pod: Pod):
        pod.hold("v", 200)
        pod.enter()
        closing.leave_all(pod.held)
        closing.close(pod.held, "leaving")
        pod.run_hook()
        closing.stay(pod.held)
        pod.admission.leave("u")
        assert pod.take() == []
        assert pod.verdict() is Verdict.ADMIT
        assert pod.verdict("v", 200) is Verdict.REFUSE


class TestLapse:
    def test_a_late_renewal_does_not_renew(self, pod: Pod, clock: ManualClock):
        asked_at = clock()
        clock.tick(SAFE_S)
        assert not terms.renew(pod.held, asked_at)
        assert not terms.renew(pod.held, clock())
        assert pod.verdict() is Verdict.REFUSE

    def test_a_renewal_that_was_sent_in_time_and_came_late_does_not_either(
        self, pod: Pod, clock: ManualClock
    ):
        clock.tick(SAFE_S - 1)
        asked_at = clock()
        clock.tick(2)
        assert not terms.renew(pod.held, asked_at)
        assert pod.verdict() is Verdict.REFUSE

    def test_everything_is_kept_and_everything_refused(self, pod: Pod):
        pod.enter()
        terms.lapse(pod.held)
        assert pod.verdict() is Verdict.REFUSE
        assert "lease" in pod.admission.enter("unknown", 100, 7)[1]
        assert not terms.renew(pod.held, pod.clock())
        assert memory(pod.held)[1] == {"u": (100, False)}
        pod.admission.leave("u")
        assert pod.take() == []

    def test_each_uid_is_confirmed_before_its_next_call(self, pod: Pod):
        pod.confirm(lease_s=1_000)
        pod.lapse_and_resume()
        assert pod.verdict() is Verdict.CONFIRM
        assert pod.confirm() is Told.HELD  # with what it held
        assert pod.verdict() is Verdict.ADMIT

    def test_each_uid_is_confirmed_before_its_hook(self, pod: Pod):
        pod.lapse_and_resume()
        pod.release()
        assert pod.take() == []
        assert pod.to_confirm() == ["u"]
        pod.confirm()
        assert pod.take() == [("u", 100, Kind.RELEASE)]

    def test_its_new_lease_on_a_uid_may_be_shorter_than_the_old_one(
        self, pod: Pod, clock: ManualClock
    ):
        pod.confirm(lease_s=1_000)
        pod.lapse_and_resume()
        pod.confirm(lease_s=2)
        clock.tick(2)
        assert pod.verdict() is Verdict.CONFIRM

    def test_a_pod_resumes_in_the_same_lapse_only(self, pod: Pod, clock: ManualClock):
        first = terms.lapse(pod.held)
        second = terms.lapse(pod.held)
        assert not terms.resume(pod.held, first, clock())
        assert pod.verdict() is Verdict.REFUSE
        assert terms.resume(pod.held, second, clock())

    def test_a_pod_resumes_only_while_the_lease_that_it_asked_for_runs(
        self, pod: Pod, clock: ManualClock
    ):
        term, asked_at = terms.lapse(pod.held), clock()
        clock.tick(SAFE_S)
        assert not terms.resume(pod.held, term, asked_at)
        assert pod.verdict() is Verdict.REFUSE
        clock.tick(1)
        asked_at = clock()
        clock.tick(SAFE_S - 0.001)
        assert terms.resume(pod.held, term, asked_at)
        clock.tick(0.001)
        assert pod.verdict() is Verdict.REFUSE

    def test_what_was_asked_of_redis_before_it_is_void(self, pod: Pod):
        term = pod.held.term
        pod.lapse_and_resume()
        assert pod.confirm(term=term) is Told.VOID
        assert pod.confirm("v", term=term) is Told.VOID
        assert pod.verdict() is Verdict.CONFIRM
        assert pod.verdict("v") is Verdict.CONFIRM

    def test_a_release_that_was_asked_for_before_it_is_void(self, pod: Pod):
        pod.enter()
        pod.release()
        pod.lapse_and_resume()
        pod.confirm()
        pod.admission.leave("u")
        assert pod.verdict() is Verdict.ADMIT
        assert pod.take() == []
        assert pod.held.outcomes.take() == []

    def test_a_removal_that_was_asked_for_before_it_still_comes(self, pod: Pod, clock: ManualClock):
        pod.releases.end_at("u", 100, clock() + 1)
        pod.lapse_and_resume()
        clock.tick(1)
        pod.confirm()
        assert pod.verdict() is Verdict.REFUSE
        assert pod.take() == [("u", 100, Kind.RELEASE)]

    def test_a_hook_that_runs_goes_on_and_its_uid_is_given_up(self, pod: Pod):
        pod.release()
        pod.begin_hook()
        pod.lapse_and_resume()
        assert pod.confirm() is Told.VOID
        pod.work.ended("u", 100)
        assert pod.held.outcomes.take() == [Outcome(1, "u", 100, given=True)]
        assert pod.verdict() is Verdict.REFUSE

    def test_a_uid_that_was_given_up_stays_so(self, pod: Pod):
        pod.give_up()
        pod.lapse_and_resume()
        assert pod.verdict() is Verdict.REFUSE
        assert pod.confirm() is Told.VOID

    def test_a_uid_that_was_being_acquired_is_confirmed_before_its_first_call(self, pod: Pod):
        pod.confirm("v")
        pod.lapse_and_resume()
        pod.admission.acquired("v", 100)
        assert pod.verdict("v") is Verdict.CONFIRM
        assert pod.confirm("v") is Told.HELD

    def test_nothing_idles_out_past_the_lease(self, pod: Pod, clock: ManualClock):
        clock.tick(IDLE_S)
        terms.lapse(pod.held)
        look_for_idle(pod.held)
        assert pod.to_confirm() == []
        assert pod.take() == []

    def test_a_lease_that_was_ended_for_ever_is_never_resumed(self, pod: Pod, clock: ManualClock):
        pod.enter()
        terms.lose_all(pod.held)
        assert not terms.resume(pod.held, pod.held.term, clock())
        assert pod.verdict() is Verdict.REFUSE
        assert memory(pod.held)[1] == {}
        assert pod.take() == []
        pod.admission.leave("u")
        assert pod.run_hook() is Kind.LOSE
        assert unfinished(pod.held) == []


class TestAnotherLife:
    def begin(self, pod: Pod) -> None:
        terms.begin(pod.held, PodLease(8, LEASE_S, pod.clock(), pod.clock), 0)

    def test_what_the_last_one_held_is_lost_unsaved(self, pod: Pod):
        pod.hold("v", 200)
        pod.enter("v", 200)
        self.begin(pod)
        assert memory(pod.held)[1] == {}
        assert pod.verdict(incarnation=7) is Verdict.REFUSE
        assert pod.run_hook() is Kind.LOSE
        pod.admission.leave("v")
        assert pod.run_hook() is Kind.LOSE
        assert len(pod.held) == 0

    def test_what_was_given_up_is_forgotten(self, pod: Pod, clock: ManualClock):
        pod.give_up()
        clock.tick(1)
        self.begin(pod)
        assert unsettled(pod.held, clock()) == {}
        assert pod.verdict(epoch=101, incarnation=8) is Verdict.CONFIRM

    def test_nothing_is_acquired_beside_a_call_of_the_last_one(self, pod: Pod):
        pod.enter()
        self.begin(pod)
        assert pod.verdict(epoch=101, incarnation=8) is Verdict.WAIT
        assert pod.confirm(epoch=101) is Told.WAIT
        pod.admission.leave("u")
        assert pod.run_hook() is Kind.LOSE
        pod.clock.tick(0.1)
        assert pod.confirm(epoch=101) is Told.ACQUIRE

    @pytest.mark.parametrize("ends", ["acquired", "not_acquired"])
    def test_nothing_is_acquired_beside_an_acquisition_of_the_last_one(self, pod: Pod, ends: str):
        pod.confirm("v")
        self.begin(pod)
        assert pod.verdict("v", 101, incarnation=8) is Verdict.WAIT
        assert pod.confirm("v", 101) is Told.WAIT
        getattr(pod.admission, ends)("v", 100)
        hooks = [work for work in pod.work.take(10) if work.uid == "v"]
        assert [work.kind for work in hooks] == [Kind.LOSE] * (ends == "acquired")
        for work in hooks:
            pod.work.ended(work.uid, work.epoch)
        pod.clock.tick(0.1)
        assert pod.confirm("v", 101) is Told.ACQUIRE

    def test_nothing_is_acquired_beside_a_hook_of_the_last_one(self, pod: Pod):
        pod.release()
        pod.begin_hook()
        self.begin(pod)
        assert pod.verdict(epoch=101, incarnation=8) is Verdict.WAIT
        assert pod.confirm(epoch=101) is Told.WAIT
        pod.work.ended("u", 100)
        pod.clock.tick(0.1)
        assert pod.confirm(epoch=101) is Told.ACQUIRE

    def test_a_hook_of_the_last_one_that_has_not_begun_saves_nothing(self, pod: Pod):
        pod.release()
        (work,) = pod.work.take(10)
        self.begin(pod)
        assert not pod.work.may_begin(work)
        assert pod.run_hook() is Kind.LOSE

    @pytest.mark.parametrize("phase", [Phase.ACQUIRING, Phase.HELD, Phase.ENDING])
    def test_a_release_in_it_outlives_what_runs_of_the_last_one(self, pod: Pod, phase: Phase):
        """Between its outcome and the router's change of the link, nothing may come back."""
        uid = "v" if phase is Phase.ACQUIRING else "u"
        if phase is Phase.ACQUIRING:
            pod.confirm("v")
        elif phase is Phase.HELD:
            pod.enter()
        else:
            pod.release(99)
            pod.begin_hook()
        self.begin(pod)
        pod.release(1, uid, 101)
        if phase is Phase.ACQUIRING:
            pod.admission.not_acquired("v", 100)
        elif phase is Phase.HELD:
            pod.admission.leave("u")
            assert pod.run_hook() is Kind.LOSE
        else:
            pod.work.ended("u", 100)
        assert Outcome(1, uid, 101, given=True) in pod.held.outcomes.take()
        assert pod.verdict(uid, 101, incarnation=8) is Verdict.REFUSE
        assert pod.confirm(uid, 101) is Told.VOID


class TestUseByOtherWays:
    """Uids whose calls are not admitted one by one."""

    def link(self, epoch: int = 200, incarnation: int = 7) -> Link:
        return Link(0, incarnation, epoch, persistent=False, lease_s=5.0)

    def test_a_used_uid_is_held_and_reported_until_it_has_been_idle(
        self, pod: Pod, clock: ManualClock
    ):
        began = clock()
        pod.admission.use({"v": self.link()}, 1_000.0)
        assert memory(pod.held)[1]["v"] == (200, False)
        clock.tick(8)
        pod.renew()
        pod.admission.use({"v": self.link()}, 1_000.0)
        assert in_use(pod.held, began + 5) == {"v": 200}
        for _ in range(29):
            clock.tick(1)
            pod.renew()
        look_for_idle(pod.held)
        assert ("v", 200, Kind.RELEASE) not in pod.take()
        clock.tick(1)
        look_for_idle(pod.held)
        assert pod.to_confirm() == ["u", "v"]
        pod.confirm("v", 200)
        assert pod.take() == [("v", 200, Kind.RELEASE)], "the other keeps nobody waiting"

    def test_a_link_of_another_life_is_passed_over(self, pod: Pod):
        pod.admission.use({"v": self.link(incarnation=6)}, 30.0)
        assert "v" not in memory(pod.held)[1]

    def test_nothing_is_held_past_the_pods_lease(self, pod: Pod, clock: ManualClock):
        clock.tick(SAFE_S)
        pod.admission.use({"v": self.link()}, 30.0)
        assert "v" not in memory(pod.held)[1]

    def test_a_released_uid_does_not_come_back_by_old_news(self, pod: Pod):
        pod.admission.use({"v": self.link()}, 30.0)
        pod.give_up("v", 200)
        pod.admission.use({"v": self.link()}, 30.0)
        assert "v" not in memory(pod.held)[1]
        pod.admission.use({"v": self.link(epoch=201)}, 30.0)
        assert memory(pod.held)[1]["v"] == (201, False)

    def test_nor_once_it_is_settled_that_it_has_left(self, pod: Pod):
        pod.admission.use({"v": self.link()}, 30.0)
        pod.give_up("v", 200)
        pod.releases.settled({"v": (200, 0)})
        assert "v" not in pod.held.entries
        pod.admission.use({"v": self.link()}, 30.0)
        assert "v" not in memory(pod.held)[1]
        pod.admission.use({"v": self.link(epoch=201)}, 30.0)
        assert memory(pod.held)[1]["v"] == (201, False)

    def test_a_newer_epoch_waits_until_the_earlier_one_is_over(self, pod: Pod):
        pod.admission.use({"u": self.link(epoch=101)}, 30.0)
        assert pod.run_hook() is Kind.LOSE
        pod.admission.use({"u": self.link(epoch=101)}, 30.0)
        assert memory(pod.held)[1] == {"u": (101, False)}

    def test_a_lapse_is_over_for_it_when_it_is_used_again(self, pod: Pod):
        pod.admission.use({"v": self.link()}, 30.0)
        pod.lapse_and_resume()
        assert in_use(pod.held, 0) == {}
        pod.admission.use({"v": self.link()}, 30.0)
        assert in_use(pod.held, 0) == {"v": 200}

    def test_a_removal_that_was_set_before_its_first_use_still_comes(
        self, pod: Pod, clock: ManualClock
    ):
        pod.releases.end_at("v", 200, clock() + 1)
        pod.admission.use({"v": self.link()}, 30.0)
        clock.tick(1)
        pod.releases.tick()
        assert pod.take() == [("v", 200, Kind.RELEASE)]
