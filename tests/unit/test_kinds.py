"""Which links are persistent, as pods know it: none ends for want of use by a mistake in that.

Who sets a link anew, where it is, asks its pod before, and tells it afterwards; what was read
before may come at any time, and what is told may never come.
"""

from __future__ import annotations

import math

import pytest
from helpers import ManualClock
from test_admission_rules import IDLE_S, Pod

from ray_route.model import Link
from ray_route.pod.admission import Told
from ray_route.pod.idle import look_for_idle
from ray_route.pod.kinds import set_kinds
from ray_route.pod.memory import memory
from ray_route.pod.next_work import Kind
from ray_route.pod.unsettled import unsettled
from ray_route.protocol.commands import Fate

GIVEN_UP = [("u", 100, Kind.RELEASE)]


@pytest.fixture
def pod(clock: ManualClock) -> Pod:
    made = Pod(clock)
    made.confirm(lease_s=1_000)
    return made


def tell(pod: Pod, *, persistent: bool, epoch: int = 100) -> None:
    set_kinds(pod.held, {"u": (epoch, persistent), "unheld": (epoch, persistent)})


def ask(pod: Pod, *, temporary: bool, epoch: int = 100) -> None:
    assert pod.releases.end_at("u", epoch, math.inf, temporary=temporary)


class TestWhatIsTold:
    def test_one_that_has_become_persistent_is_never_idle(self, pod: Pod):
        tell(pod, persistent=True)
        pod.idle()
        assert pod.to_confirm() == pod.take() == []

    def test_one_that_is_persistent_no_more_is_idle_once_nobody_has_used_it_since(self, pod: Pod):
        pod.confirm(lease_s=1_000, persistent=True)
        pod.idle()
        tell(pod, persistent=False)
        look_for_idle(pod.held)
        assert pod.to_confirm() == pod.take() == []
        pod.idle()
        assert pod.is_read()
        assert pod.take() == GIVEN_UP

    def test_what_becomes_of_another_epoch_says_nothing_of_this(self, pod: Pod):
        tell(pod, persistent=True, epoch=99)
        pod.idle()
        assert pod.is_read()
        assert pod.take() == GIVEN_UP


class TestReads:
    def test_one_that_was_told_nothing_is_read_before_it_is_given_up(self, pod: Pod):
        """As where the router died that had set its link, or by old news."""
        pod.idle()
        assert pod.take() == []
        assert pod.is_read(persistent=True)
        assert pod.take() == []
        pod.idle()
        assert pod.to_confirm() == pod.take() == []

    def test_one_that_was_read_before_it_was_unused_for_long_is_read_again(self, pod: Pod):
        asked_at = pod.clock()
        pod.idle()
        pod.confirm(lease_s=1_000, asked_at=asked_at)
        assert pod.take() == []
        assert pod.is_read()
        assert pod.take() == GIVEN_UP

    def test_one_that_could_not_be_read_is_read_again(self, pod: Pod):
        pod.idle()
        assert pod.to_confirm() == ["u"]
        pod.admission.unread("u")
        assert pod.take() == []
        assert pod.is_read()
        assert pod.take() == GIVEN_UP

    def test_one_that_is_used_after_that_is_read_again(self, pod: Pod):
        pod.idle()
        assert pod.is_read()
        assert pod.verdict().value == "admit"
        pod.idle()
        assert pod.take() == []
        assert pod.is_read()
        assert pod.take() == GIVEN_UP

    def test_one_that_is_wanted_elsewhere_need_not_be_read(self, pod: Pod):
        pod.idle()
        pod.release()
        assert pod.take() == GIVEN_UP

    @pytest.mark.parametrize("persistent", [True, False])
    def test_what_was_read_before_it_was_told_says_nothing(self, pod: Pod, persistent: bool):
        asked_at = pod.clock()
        pod.clock.tick(1)
        tell(pod, persistent=persistent)
        read = {"asked_at": asked_at, "persistent": not persistent}
        assert pod.confirm(lease_s=1_000, **read) is Told.VOID
        assert pod.held.entries["u"].persistent is persistent
        # Nor of one that was not held at that moment.
        assert pod.confirm("unheld", **read) is Told.VOID

    def test_what_was_read_before_its_link_was_set_says_nothing_though_it_is_told_nothing(
        self, pod: Pod
    ):
        pod.confirm(lease_s=1_000, persistent=True)
        asked_at = pod.clock()
        pod.clock.tick(1)
        ask(pod, temporary=True)
        assert pod.confirm(lease_s=1_000, asked_at=asked_at, persistent=True) is Told.VOID
        pod.idle()
        assert pod.is_read()
        assert pod.take() == GIVEN_UP

    def test_what_callers_know_of_it_says_nothing(self, pod: Pod):
        tell(pod, persistent=True)
        pod.admission.use({"u": Link(0, 7, 100, persistent=False, lease_s=5.0)}, 1_000.0)
        pod.idle()
        assert pod.to_confirm() == pod.take() == []
        tell(pod, persistent=False)
        pod.admission.use({"u": Link(0, 7, 100, persistent=True, lease_s=5.0)}, 1_000.0)
        pod.idle()
        assert pod.is_read()
        assert pod.take() == GIVEN_UP


class TestLinksThatAreAboutToBeSet:
    def test_who_sets_its_link_uses_a_uid(self, pod: Pod):
        pod.idle()
        assert pod.is_read()
        ask(pod, temporary=False)
        look_for_idle(pod.held)
        assert pod.take() == []

    def test_it_stays_persistent_until_it_is_told_more(self, pod: Pod):
        tell(pod, persistent=True)
        ask(pod, temporary=False)
        pod.idle()
        assert pod.to_confirm() == pod.take() == []

    def test_one_that_is_being_given_up_is_not_said_to_be_kept(self, pod: Pod):
        pod.idle()
        assert pod.is_read()
        pod.begin_hook()
        assert not pod.releases.end_at("u", 100, math.inf)


class TestRemovals:
    """A link that is to go later says of which kind it is until then."""

    def due(self, pod: Pod, due_at: float) -> None:
        """Let time go by until a moment, with the pod's lease and its uid's link as they are."""
        while pod.clock() < due_at:
            pod.clock.tick(1)
            pod.renew()
        pod.releases.tick()

    def given_up(self, pod: Pod, state: str | None = None) -> Fate:
        """Have the uid given up, and return what is to become of its link."""
        work = pod.begin_hook()
        pod.work.ended(work.uid, work.epoch, state)
        ((_, fate),) = unsettled(pod.held, pod.clock()).values()
        return fate

    def given_back(self, pod: Pod) -> None:
        """Have the uid given up, as somebody has asked for, and acquired anew with its state."""
        pod.release()
        work = pod.begin_hook()
        pod.work.ended(work.uid, work.epoch, "it")
        pod.releases.settled({"u": (100, 101)})
        assert pod.confirm("u", 101, 1_000, replaced=100, persistent=True) is Told.ACQUIRE
        pod.admission.acquired("u", 101)

    def schedule(self, pod: Pod, after_s: float) -> float:
        pod.confirm(lease_s=1_000, persistent=True)
        due_at = pod.clock() + after_s
        assert pod.releases.end_at("u", 100, due_at)
        return due_at

    def test_a_persistent_one_does_not_go_before_for_want_of_use(self, pod: Pod):
        due_at = self.schedule(pod, 3 * IDLE_S)
        pod.idle()
        assert pod.to_confirm() == pod.take() == []
        self.due(pod, due_at)
        assert self.given_up(pod) is Fate.GOES

    def test_who_is_about_to_set_the_link_anew_may_fail(self, pod: Pod):
        """Then it is to go as before, and may have been set all the same: Redis decides."""
        due_at = self.schedule(pod, 3 * IDLE_S)
        ask(pod, temporary=False)
        assert pod.verdict().value == "admit"
        self.due(pod, due_at)
        assert self.given_up(pod, "state") is Fate.MAY_GO

    def test_once_it_was_set_it_is_not_to_go(self, pod: Pod):
        due_at = self.schedule(pod, 3 * IDLE_S)
        ask(pod, temporary=False)
        tell(pod, persistent=True)
        self.due(pod, due_at)
        assert pod.to_confirm() == pod.take() == []

    def test_what_was_set_earlier_says_nothing_of_a_later_epoch(self, pod: Pod):
        due_at = self.schedule(pod, 3 * IDLE_S)
        tell(pod, persistent=True, epoch=99)
        self.due(pod, due_at)
        assert self.given_up(pod) is Fate.GOES

    @pytest.mark.parametrize("present", [101, 0])
    def test_one_that_was_not_to_go_is_had_back_with_its_state(self, pod: Pod, present: int):
        due_at = self.schedule(pod, 3 * IDLE_S)
        ask(pod, temporary=False)
        self.due(pod, due_at)
        self.given_up(pod, "state")
        pod.releases.settled({"u": (100, present)}, {"u": (100, Fate.MAY_GO)})
        assert (pod.held.entries["u"].state is not None) if present else not pod.held.entries
        assert "u" not in pod.held.scheduled

    def test_one_that_is_scheduled_anew_before_it_is_known_to_be_had_back_is_to_go(self, pod: Pod):
        due_at = self.schedule(pod, 3 * IDLE_S)
        ask(pod, temporary=False)
        self.due(pod, due_at)
        self.given_up(pod, "state")
        later = pod.clock() + IDLE_S
        assert pod.releases.end_at("u", 101, later, replaced=100)
        assert pod.held.scheduled.at("u", 101) == later
        pod.releases.settled({"u": (100, 101)}, {"u": (100, Fate.MAY_GO)})
        assert pod.confirm("u", 101, 1_000, replaced=100, persistent=True) is Told.ACQUIRE
        pod.admission.acquired("u", 101)
        self.due(pod, later)
        assert self.given_up(pod) is Fate.GOES

    def test_one_that_is_scheduled_anew_for_later_goes_with_the_link_that_it_had_before(
        self, pod: Pod
    ):
        """The link was given back with its removal, of which this pod has not heard."""
        due_at = self.schedule(pod, 3 * IDLE_S)
        pod.give_up("u")
        assert pod.releases.end_at("u", 101, due_at + IDLE_S, replaced=100)
        assert pod.confirm("u", 101, 1_000, replaced=100, persistent=True) is Told.ACQUIRE
        pod.admission.acquired("u", 101)
        self.due(pod, due_at)
        assert self.given_up(pod) is Fate.GOES

    @pytest.mark.parametrize("is_tried_again", [True, False])
    def test_one_of_an_earlier_epoch_that_comes_late_forgets_none_of_the_present_one(
        self, pod: Pod, is_tried_again: bool
    ):
        """Who scheduled it had read the link before it was given back: Redis has nothing of it."""
        due_at = self.schedule(pod, 3 * IDLE_S)
        self.given_back(pod)
        later = due_at + IDLE_S
        assert pod.releases.end_at("u", 100, later)
        assert not is_tried_again or pod.releases.end_at("u", 101, later, replaced=100)
        self.due(pod, due_at)
        assert self.given_up(pod) is Fate.GOES

    def test_what_redis_has_decided_of_one_decides_nothing_of_one_that_was_asked_for_since(
        self, pod: Pod
    ):
        """That one is in doubt, too: Redis was away when its link was to be set anew."""
        due_at = self.schedule(pod, 3 * IDLE_S)
        ask(pod, temporary=False)
        self.due(pod, due_at)
        self.given_up(pod, "state")
        later = pod.clock() + 3 * IDLE_S
        assert pod.releases.end_at("u", 101, later, replaced=100)
        ask(pod, temporary=False, epoch=101)
        pod.releases.settled({"u": (100, 101)}, {"u": (100, Fate.MAY_GO)})
        pod.clock.tick(1)
        assert pod.confirm("u", 101, 1_000, replaced=100, persistent=True) is Told.ACQUIRE
        pod.admission.acquired("u", 101)
        self.due(pod, later)
        assert self.given_up(pod) is Fate.MAY_GO

    @pytest.mark.parametrize("how", ["cancelled", "by an older router"])
    def test_it_is_not_that_of_a_link_that_was_set_while_the_hook_ran(self, pod: Pod, how: str):
        """A hook that outlasts its link ends, and a release of the next link was taken back."""
        self.due(pod, self.schedule(pod, 1))
        work = pod.begin_hook()
        pod.release(7, "u", 200)
        if how == "cancelled":
            pod.releases.cancel(7)
        else:
            pod.releases.follow(2)
        pod.work.ended(work.uid, work.epoch)
        assert unsettled(pod.held, pod.clock() + 1) == {"u": (200, Fate.STAYS)}

    @pytest.mark.parametrize("is_taken_back", [True, False])
    def test_one_that_is_due_is_remembered_if_that_may_have_been_taken_back(
        self, pod: Pod, is_taken_back: bool
    ):
        """Its call runs on, past its lease: Redis may lose the link that was set anew."""
        due_at = self.schedule(pod, 3 * IDLE_S)
        if is_taken_back:
            ask(pod, temporary=False)
        assert pod.enter().value == "admit"
        self.due(pod, due_at)
        pod.clock.tick(1_000)
        _, held, _ = memory(pod.held)
        assert held == ({"u": (100, True)} if is_taken_back else {})

    def test_one_that_waits_to_be_settled_is_remembered(self, pod: Pod):
        """Redis may lose its link meanwhile."""
        due_at = self.schedule(pod, 3 * IDLE_S)
        ask(pod, temporary=False)
        self.due(pod, due_at)
        self.given_up(pod, "state")
        _, held, _ = memory(pod.held)
        assert held == {"u": (100, True)}

    def test_one_that_was_given_back_to_whoever_asked_for_it_is_to_go_as_before(self, pod: Pod):
        due_at = self.schedule(pod, 3 * IDLE_S)
        self.given_back(pod)
        pod.idle()
        assert pod.to_confirm() == pod.take() == []
        self.due(pod, due_at)
        assert self.given_up(pod) is Fate.GOES

    def test_one_that_is_not_known_yet_to_be_given_back_is_doubtful_as_well(self, pod: Pod):
        due_at = self.schedule(pod, 3 * IDLE_S)
        pod.release()
        work = pod.begin_hook()
        pod.work.ended(work.uid, work.epoch, "it")
        ask(pod, temporary=False, epoch=101)
        pod.clock.tick(1)
        pod.releases.settled({"u": (100, 101)})
        assert pod.confirm("u", 101, 1_000, replaced=100, persistent=True) is Told.ACQUIRE
        pod.admission.acquired("u", 101)
        self.due(pod, due_at)
        assert self.given_up(pod) is Fate.MAY_GO

    def test_one_of_which_nothing_is_here_is_doubtful_as_well(self, pod: Pod):
        due_at = pod.clock() + IDLE_S
        assert pod.releases.end_at("v", 100, due_at)
        assert pod.releases.end_at("v", 100, math.inf)
        self.due(pod, due_at)
        assert unsettled(pod.held, pod.clock()) == {"v": (100, Fate.MAY_GO)}

    def test_a_removal_asked_for_anew_leaves_the_doubt(self, pod: Pod):
        """Of the first nobody knows, but of two the earlier counts."""
        due_at = self.schedule(pod, 3 * IDLE_S)
        ask(pod, temporary=False)
        assert pod.releases.end_at("u", 100, due_at + 99)
        self.due(pod, due_at)
        assert self.given_up(pod) is Fate.MAY_GO

    def test_a_release_that_waits_loses_its_patience_as_before(self, pod: Pod):
        """One moment is kept of each uid, whatever it is looked at for."""
        self.schedule(pod, 3 * IDLE_S)
        assert pod.enter().value == "admit"
        ask(pod, temporary=False)
        pod.release(patience_s=1.0)
        tell(pod, persistent=True)
        pod.clock.tick(2)
        pod.releases.tick()
        (outcome,) = pod.held.outcomes.take()
        assert not outcome.given

    def test_so_does_one_of_an_earlier_epoch(self, pod: Pod):
        assert pod.enter().value == "admit"
        pod.release(patience_s=1.0)
        assert pod.releases.end_at("u", 101, pod.clock() + IDLE_S)
        tell(pod, persistent=True, epoch=101)
        pod.clock.tick(2)
        pod.releases.tick()
        (outcome,) = pod.held.outcomes.take()
        assert not outcome.given
