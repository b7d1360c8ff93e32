from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from helpers import ManualClock, eventually

from ray_route.clock import Deadline
from ray_route.model import Link
from ray_route.pod.admission import Admissions, PodLease, Verdict

LEASE_S = 10.0
SAFE_S = 9.0  # a pod stops a tenth of the lease before anybody may call it ended


@pytest.fixture
def lease(clock: ManualClock) -> PodLease:
    return PodLease(7, LEASE_S, clock(), clock)


@pytest.fixture
def admissions(lease: PodLease, clock: ManualClock) -> Admissions:
    """Pod 0, which holds "u" under epoch 100 for 5 s."""
    serving = Admissions(0, lease, clock)
    assert serving.hold("u", 100, clock() + 5) == ""
    return serving


class TestPodLease:
    def test_it_ends_a_tenth_before_its_lease(self, lease: PodLease, clock: ManualClock):
        clock.tick(SAFE_S - 0.001)
        assert lease.is_alive()
        clock.tick(0.001)
        assert not lease.is_alive()

    def test_a_renewal_in_time_counts_from_before_it_was_sent(
        self, lease: PodLease, clock: ManualClock
    ):
        clock.tick(5)
        asked_at = clock()
        clock.tick(2)
        assert lease.renewed(asked_at)
        clock.tick(SAFE_S - 2 - 0.001)
        assert lease.is_alive()
        clock.tick(0.001)
        assert not lease.is_alive()

    def test_a_claim_that_took_long_has_used_up_its_lease(self, clock: ManualClock):
        assert not PodLease(7, LEASE_S, clock() - SAFE_S, clock).is_alive()

    def test_a_late_renewal_ends_it_for_ever(self, lease: PodLease, clock: ManualClock):
        asked_at = clock()
        clock.tick(SAFE_S)
        assert not lease.renewed(asked_at)
        assert not lease.renewed(clock())
        assert not lease.is_alive()

    def test_a_renewal_that_was_sent_in_time_and_came_late_ends_it_too(
        self, lease: PodLease, clock: ManualClock
    ):
        clock.tick(SAFE_S - 1)
        asked_at = clock()
        clock.tick(2)
        assert not lease.renewed(asked_at)
        assert not lease.is_alive()

    def test_an_older_renewal_that_was_overtaken_shortens_nothing(
        self, lease: PodLease, clock: ManualClock
    ):
        early = clock()
        clock.tick(5)
        lease.renewed(clock())
        lease.renewed(early)
        clock.tick(SAFE_S - 0.001)
        assert lease.is_alive()

    def test_an_end_is_final(self, lease: PodLease, clock: ManualClock):
        lease.end()
        assert not lease.is_alive()
        assert not lease.renewed(clock())
        assert not lease.is_alive()


class TestAdmissions:
    """Pod 0, incarnation 7; "u" is held under epoch 100 for 5 s."""

    def test_a_uid_that_is_held_is_admitted(self, admissions: Admissions):
        assert admissions.enter("u", 100, 7) == (Verdict.ADMIT, "")

    def test_an_unknown_uid_is_confirmed_first(self, admissions: Admissions):
        assert verdict(admissions, "v") is Verdict.CONFIRM

    def test_a_higher_epoch_than_is_known_is_confirmed_first(self, admissions: Admissions):
        assert verdict(admissions, epoch=101) is Verdict.CONFIRM

    def test_a_lower_epoch_than_is_known_is_refused(self, admissions: Admissions):
        judged, reason = admissions.enter("u", 99, 7)
        assert judged is Verdict.REFUSE
        assert "100" in reason

    @pytest.mark.parametrize("incarnation", [6, 8, 0])
    def test_another_incarnation_is_refused(self, admissions: Admissions, incarnation: int):
        for uid in ("u", "unknown"):
            judged, reason = admissions.enter(uid, 100, incarnation)
            assert judged is Verdict.REFUSE
            assert "7" in reason

    def test_a_uids_own_lease_is_confirmed_again_when_it_has_run_out(
        self, admissions: Admissions, clock: ManualClock
    ):
        clock.tick(4.999)
        assert verdict(admissions) is Verdict.ADMIT
        clock.tick(0.001)
        assert verdict(admissions) is Verdict.CONFIRM
        assert admissions.hold("u", 100, clock() + 1) == ""
        assert verdict(admissions) is Verdict.ADMIT

    def test_nothing_is_admitted_or_taken_in_after_the_lease(
        self, admissions: Admissions, lease: PodLease, clock: ManualClock
    ):
        admissions.hold("u", 100, clock() + 1_000)
        clock.tick(SAFE_S)
        for uid in ("u", "unknown"):
            judged, reason = admissions.enter(uid, 100, 7)
            assert judged is Verdict.REFUSE
            assert "lease" in reason
        assert "lease" in admissions.hold("v", 100, clock() + 5)
        assert not lease.renewed(clock())
        assert verdict(admissions) is Verdict.REFUSE

    def test_an_ended_lease_refuses_at_once(self, admissions: Admissions, lease: PodLease):
        lease.end()
        assert verdict(admissions) is Verdict.REFUSE

    @pytest.mark.parametrize(
        "link",
        [
            None,
            Link(1, 7, 100, persistent=False, lease_s=5),
            Link(0, 8, 100, persistent=False, lease_s=5),
            Link(0, 7, 101, persistent=False, lease_s=5),
            Link(0, 7, 99, persistent=False, lease_s=5),
        ],
    )
    def test_a_link_of_anybody_else_confirms_nothing(
        self, admissions: Admissions, link: Link | None
    ):
        assert admissions.judge_link(100, link) != ""

    def test_a_link_of_this_very_epoch_confirms(self, admissions: Admissions):
        for persistent in (True, False):
            assert admissions.judge_link(100, Link(0, 7, 100, persistent, 0.0)) == ""

    def test_a_slow_confirmation_of_an_old_epoch_replaces_no_newer_one(
        self, admissions: Admissions, clock: ManualClock
    ):
        assert "100" in admissions.hold("u", 99, clock() + 50)
        assert verdict(admissions) is Verdict.ADMIT
        clock.tick(5)
        assert verdict(admissions) is Verdict.CONFIRM

    def test_a_uid_is_new_under_every_new_epoch(self, admissions: Admissions):
        assert not admissions.begin_acquire("u", 100)
        assert not admissions.begin_acquire("u", 99)
        assert admissions.begin_acquire("u", 101)
        assert admissions.begin_acquire("v", 100)
        assert not admissions.begin_acquire("v", 100)

    def test_a_release_waits_for_an_acquisition(self, admissions: Admissions, clock: ManualClock):
        admissions.begin_acquire("v", 100)
        assert verdict(admissions, "v") is Verdict.CONFIRM
        assert not release_now(admissions, "v", 100)
        assert admissions.hold("v", 100, clock() + 5) == ""
        admissions.leave("v")
        assert release_now(admissions, "v", 100)
        assert admissions.holds("v", 100)

    def test_what_is_held_is_counted_and_listed(self, admissions: Admissions, clock: ManualClock):
        admissions.hold("u", 101, clock() + 5)
        admissions.hold("v", 100, clock() + 5)
        assert len(admissions) == 2
        assert admissions.holdings() == {"u": 101, "v": 100}
        assert admissions.holds("v", 100)
        assert not admissions.holds("v", 99)
        assert not admissions.holds("w", 100)

    def test_calls_that_run_are_counted(self, admissions: Admissions):
        for _ in range(3):
            admissions.enter("u", 100, 7)
        assert admissions.running == 3
        admissions.enter("u", 99, 7)
        admissions.enter("unknown", 100, 7)
        assert admissions.running == 3
        for _ in range(3):
            admissions.leave("u")
        assert admissions.running == 0

    def test_a_call_that_redis_just_confirmed_runs_however_little_is_left_of_its_lease(
        self, admissions: Admissions, clock: ManualClock
    ):
        assert admissions.take("v", 100, clock()) == ""
        assert admissions.running == 1
        assert verdict(admissions, "v") is Verdict.CONFIRM
        admissions.leave("v")
        assert admissions.running == 0

    def test_a_confirmation_is_no_way_around_a_refusal(
        self, admissions: Admissions, clock: ManualClock
    ):
        assert "100" in admissions.take("u", 99, clock() + 5)
        release_now(admissions, "u", 100)
        assert "released" in admissions.take("u", 100, clock() + 5)
        clock.tick(SAFE_S)
        assert "lease" in admissions.take("w", 100, clock() + 5)
        assert admissions.running == 0

    def test_a_drained_pod_waits_until_no_call_runs(self, admissions: Admissions):
        assert admissions.wait_idle(Deadline.after(0))
        admissions.enter("u", 100, 7)
        assert not admissions.wait_idle(Deadline.after(0.02))
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(admissions.wait_idle, Deadline.after(30))
            admissions.leave("u")
            assert waiting.result(10)

    def test_a_closed_pod_refuses_all(self, admissions: Admissions, clock: ManualClock):
        admissions.close()
        for uid in ("u", "unknown"):
            judged, reason = admissions.enter(uid, 100, 7)
            assert judged is Verdict.REFUSE
            assert "drained" in reason
        assert admissions.hold("v", 100, clock() + 5) != ""


class TestCallsThatHaveRun:
    """What is judged again before a result may leave."""

    def test_a_call_under_the_epoch_that_is_held_may_answer(self, admissions: Admissions):
        assert admissions.still("u", 100) == (Verdict.ADMIT, "")

    def test_a_call_that_outlived_the_uids_lease_is_confirmed_again(
        self, admissions: Admissions, clock: ManualClock
    ):
        clock.tick(5)
        assert admissions.still("u", 100)[0] is Verdict.CONFIRM

    def test_a_call_that_outlived_the_lease_is_refused(
        self, admissions: Admissions, clock: ManualClock
    ):
        admissions.hold("u", 100, clock() + 1_000)
        clock.tick(SAFE_S)
        assert admissions.still("u", 100)[0] is Verdict.REFUSE

    def test_a_call_whose_uid_has_a_newer_epoch_by_now_is_refused(
        self, admissions: Admissions, clock: ManualClock
    ):
        admissions.hold("u", 101, clock() + 5)
        assert admissions.still("u", 100)[0] is Verdict.REFUSE

    def test_a_release_that_waits_for_the_call_does_not_refuse_it(self, admissions: Admissions):
        admissions.enter("u", 100, 7)
        with ThreadPoolExecutor(1) as pool:
            releasing = pool.submit(admissions.release, "u", 100, Deadline.after(30))
            eventually(lambda: verdict(admissions) is Verdict.REFUSE, "the release begins")
            assert admissions.still("u", 100)[0] is Verdict.ADMIT
            admissions.leave("u")
            assert releasing.result(10)


class TestRelease:
    def test_a_released_uid_is_refused_up_to_its_epoch(self, admissions: Admissions):
        assert release_now(admissions, "u", 100)
        for epoch in (99, 100):
            judged, reason = admissions.enter("u", epoch, 7)
            assert judged is Verdict.REFUSE
            assert "released" in reason
        assert verdict(admissions, epoch=101) is Verdict.CONFIRM

    def test_a_released_uid_is_not_taken_in_by_a_slow_confirmation(
        self, admissions: Admissions, clock: ManualClock
    ):
        release_now(admissions, "u", 100)
        admissions.forget("u", 100)
        assert "released" in admissions.hold("u", 100, clock() + 5)
        assert not admissions.holds("u", 100)

    def test_a_uid_that_was_never_held_can_be_released_before_its_first_call(
        self, admissions: Admissions, clock: ManualClock
    ):
        assert release_now(admissions, "v", 100)
        assert verdict(admissions, "v") is Verdict.REFUSE
        assert admissions.hold("v", 100, clock() + 5) != ""

    def test_no_other_uid_is_released(self, admissions: Admissions, clock: ManualClock):
        admissions.hold("v", 100, clock() + 5)
        release_now(admissions, "u", 100)
        assert verdict(admissions, "v") is Verdict.ADMIT

    def test_a_release_waits_for_the_last_call_of_its_uid(
        self, admissions: Admissions, clock: ManualClock
    ):
        admissions.hold("v", 100, clock() + 5)
        for uid in ("u", "u", "v"):
            admissions.enter(uid, 100, 7)
        with ThreadPoolExecutor(1) as pool:
            releasing = pool.submit(admissions.release, "u", 100, Deadline.after(30))
            eventually(lambda: verdict(admissions) is Verdict.REFUSE, "the release begins")
            admissions.leave("u")
            assert not wait([releasing], timeout=0.05).done
            admissions.leave("u")
            assert releasing.result(10)

    def test_a_call_counts_though_its_uid_got_a_new_epoch_while_it_ran(
        self, admissions: Admissions, clock: ManualClock
    ):
        admissions.enter("u", 100, 7)
        admissions.hold("u", 101, clock() + 5)
        admissions.enter("u", 101, 7)
        admissions.leave("u")
        assert not admissions.release("u", 101, Deadline.after(0.02))
        admissions.leave("u")
        assert release_now(admissions, "u", 101)

    def test_a_release_that_takes_too_long_is_taken_back(self, admissions: Admissions):
        admissions.enter("u", 100, 7)
        assert not admissions.release("u", 100, Deadline.after(0.02))
        assert verdict(admissions) is Verdict.ADMIT

    def test_a_release_can_be_taken_back(self, admissions: Admissions):
        admissions.release("u", 100, Deadline.after(0), number=1)
        admissions.reopen(["u"], number=2)
        assert verdict(admissions) is Verdict.REFUSE
        admissions.reopen(["u"], number=1)
        assert verdict(admissions) is Verdict.ADMIT

    def test_a_release_taken_back_leaves_another(self, admissions: Admissions):
        admissions.enter("u", 100, 7)
        assert not admissions.release("u", 100, Deadline.after(0), number=1)
        admissions.leave("u")
        assert admissions.release("u", 100, Deadline.after(0), number=2)
        assert admissions.release("u", 99, Deadline.after(0), number=3)
        admissions.reopen(["u"], number=3)
        assert verdict(admissions) is Verdict.REFUSE

    def test_a_release_that_was_cancelled_before_it_began_does_nothing(
        self, admissions: Admissions
    ):
        admissions.reopen(["u"], number=1)
        assert not admissions.release("u", 100, Deadline.after(0), number=1)
        assert verdict(admissions) is Verdict.ADMIT

    def test_opening_again_spares_releases_under_way(self, admissions: Admissions):
        release_now(admissions, "u", 100)
        admissions.close()
        admissions.open()
        assert verdict(admissions) is Verdict.REFUSE

    def test_nothing_opens_what_has_been_shut(self, admissions: Admissions):
        admissions.shut()
        admissions.open()
        admissions.reopen_all()
        assert verdict(admissions) is Verdict.REFUSE

    def test_a_uid_with_a_call_running_is_never_dropped(self, admissions: Admissions):
        admissions.enter("u", 100, 7)
        admissions.forget("u", 100)
        assert admissions.forget_all() == []
        assert admissions.holds("u", 100)
        admissions.leave("u")
        assert admissions.forget_all() == ["u"]

    def test_a_new_router_takes_back_what_an_old_one_asked_for(self, admissions: Admissions):
        release_now(admissions, "u", 100)
        admissions.close()
        admissions.reopen_all()
        assert verdict(admissions) is Verdict.ADMIT

    def test_a_forgotten_uid_is_confirmed_and_new_when_it_returns(
        self, admissions: Admissions, clock: ManualClock
    ):
        release_now(admissions, "u", 100)
        admissions.forget("u", 100)
        assert not admissions.holds("u", 101)
        assert admissions.hold("u", 101, clock() + 5) == ""
        assert verdict(admissions, epoch=101) is Verdict.ADMIT

    def test_forgetting_an_old_epoch_spares_a_newer_one(
        self, admissions: Admissions, clock: ManualClock
    ):
        admissions.hold("u", 101, clock() + 5)
        admissions.forget("u", 100)
        assert verdict(admissions, epoch=101) is Verdict.ADMIT


class TestUse:
    def test_a_uid_is_reported_if_it_was_used_since(
        self, admissions: Admissions, clock: ManualClock
    ):
        assert admissions.review(clock(), idle_s=9) == ({"u": 100}, {})
        clock.tick(1)
        assert admissions.review(clock(), idle_s=9) == ({}, {})
        admissions.enter("u", 100, 7)
        admissions.leave("u")
        assert admissions.review(clock(), idle_s=9) == ({"u": 100}, {})

    def test_a_call_that_runs_for_long_uses_its_uid_all_the_time(
        self, admissions: Admissions, clock: ManualClock
    ):
        admissions.enter("u", 100, 7)
        for _ in range(3):
            clock.tick(5)
            assert admissions.review(clock(), idle_s=1) == ({"u": 100}, {})

    def test_a_uid_is_idle_when_its_lease_is_over_and_it_was_not_used_for_long_enough(
        self, admissions: Admissions, clock: ManualClock
    ):
        clock.tick(4.999)
        assert admissions.review(clock(), idle_s=1) == ({}, {})
        clock.tick(0.001)
        assert admissions.review(clock(), idle_s=9) == ({}, {})
        assert admissions.review(clock(), idle_s=5) == ({}, {"u": 100})

    def test_a_persistent_uid_is_never_idle(self, admissions: Admissions, clock: ManualClock):
        admissions.hold("u", 100, clock() + 5, persistent=True)
        clock.tick(500)
        assert admissions.review(clock(), idle_s=5) == ({}, {})

    def test_a_cap_holds_for_a_lease_that_begins_after_it(
        self, admissions: Admissions, clock: ManualClock
    ):
        admissions.cap("v", 100, clock() + 1)
        admissions.hold("v", 100, clock() + 50)
        assert verdict(admissions, "v") is Verdict.ADMIT
        clock.tick(1)
        assert verdict(admissions, "v") is Verdict.CONFIRM
        admissions.hold("v", 100, clock() + 50)
        assert verdict(admissions, "v") is Verdict.CONFIRM
        admissions.hold("v", 101, clock() + 50)
        assert verdict(admissions, "v", epoch=101) is Verdict.ADMIT

    def test_a_cap_ends_the_uids_lease_earlier_and_never_later(
        self, admissions: Admissions, clock: ManualClock
    ):
        admissions.cap("u", 100, clock() + 50)
        admissions.cap("u", 99, clock() + 1)
        clock.tick(2)
        assert verdict(admissions) is Verdict.ADMIT
        admissions.cap("u", 100, clock() + 1)
        clock.tick(1)
        assert verdict(admissions) is Verdict.CONFIRM


def verdict(serving: Admissions, uid: str = "u", epoch: int = 100, incarnation: int = 7) -> Verdict:
    """What a call would hear, without leaving one running."""
    judged, _ = serving.enter(uid, epoch, incarnation)
    if judged is Verdict.ADMIT:
        serving.leave(uid)
    return judged


def release_now(serving: Admissions, uid: str, epoch: int) -> bool:
    return serving.release(uid, epoch, Deadline.after(0))


class TestUseByOtherWays:
    """Uids whose calls are not admitted one by one."""

    def link(self, epoch: int = 200, incarnation: int = 7) -> Link:
        return Link(0, incarnation, epoch, persistent=False, lease_s=5.0)

    def test_a_used_uid_is_held_and_reported_until_it_has_been_idle(
        self, admissions: Admissions, clock: ManualClock
    ):
        began = clock()
        admissions.use({"v": self.link()}, 30.0)
        assert admissions.holdings()["v"] == 200
        clock.tick(8)
        admissions.use({"v": self.link()}, 30.0)
        used, _ = admissions.review(began + 5, 1.0)
        assert used == {"v": 200}
        clock.tick(29)
        assert "v" not in admissions.review(clock(), 1.0)[1]
        clock.tick(1)
        assert "v" in admissions.review(clock(), 1.0)[1]

    def test_a_link_of_another_life_is_passed_over(self, admissions: Admissions):
        admissions.use({"v": self.link(incarnation=6)}, 30.0)
        assert "v" not in admissions.holdings()

    def test_a_released_uid_does_not_come_back_by_old_news(self, admissions: Admissions):
        admissions.use({"v": self.link()}, 30.0)
        assert admissions.release("v", 200, Deadline.after(0))
        admissions.forget("v", 200)
        admissions.use({"v": self.link()}, 30.0)
        assert "v" not in admissions.holdings()
        admissions.use({"v": self.link(epoch=201)}, 30.0)
        assert admissions.holdings()["v"] == 201
