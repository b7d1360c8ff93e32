"""A uid's state in its pod: who has it, who may use it, and when it goes."""

from __future__ import annotations

import pickle
import threading

import pytest
from helpers import ManualClock, eventually
from test_admission_rules import IDLE_S, Pod

from ray_route.model import Link
from ray_route.pod import closing, incoming, terms
from ray_route.pod.admission import Told, Verdict
from ray_route.pod.entries import Phase
from ray_route.pod.exports import DROPPED, LARGE, LATER, Exports, Unsent, pack
from ray_route.pod.hooks import Hooks, takes_state
from ray_route.pod.idle import look_for_idle
from ray_route.pod.in_use import in_use
from ray_route.pod.memory import epochs_held, memory, shown
from ray_route.pod.states import State, arrival, unpack
from ray_route.pod.unsettled import is_finished, unfinished, unsettled
from ray_route.protocol.commands import Fate, Outcome, Shown


@pytest.fixture
def pod(clock: ManualClock) -> Pod:
    return Pod(clock)


def give_up(pod: Pod, uid: str = "u", epoch: int = 100, state: object = "what it was") -> None:
    pod.release(1, uid, epoch)
    work = pod.begin_hook()
    pod.work.ended(work.uid, work.epoch, state)
    assert pod.held.outcomes.take() == [Outcome(1, uid, epoch, given=True, has_state=True)]


def arrive(pod: Pod, uid: str = "new", epoch: int = 50) -> None:
    assert take_in(pod, uid, epoch, arrival(uid, pack("from afar"), lambda _, it: it))


def take_in(pod: Pod, uid: str, epoch: int, state: State) -> bool:
    with pod.held.lock:
        return incoming.take_in(pod.held, uid, epoch, state)


def confirm(pod: Pod, uid: str, epoch: int, replaced: int) -> Told:
    link = Link(0, 7, epoch, persistent=False, lease_s=5.0, replaced=replaced)
    return pod.admission.confirmed(uid, epoch, link, pod.clock(), pod.held.term)


def state_of(pod: Pod, uid: str) -> object:
    state = pod.admission.state_of(uid)
    return None if state is None else state.take(uid, lambda _, it: it)


class TestGivenUp:
    def test_it_is_kept_told_of_and_kept_alive_but_neither_served_nor_listed(self, pod: Pod):
        give_up(pod)
        assert pod.verdict() is Verdict.REFUSE
        assert epochs_held(pod.held) == {}
        assert memory(pod.held)[1] == {"u": (100, False)}, "Redis may lose its link meanwhile"
        assert in_use(pod.held, pod.clock()) == {"u": 100}
        assert unfinished(pod.held) == ["u"], "a process that ends now would take it along"

    def test_a_drain_hears_of_it_until_it_is_anothers(self, pod: Pod):
        give_up(pod)
        assert shown(pod.held) == Shown({}, 0, undecided=1)
        pod.releases.settled({"u": (100, 0)})
        assert shown(pod.held) == Shown({}, 0, undecided=0)

    def test_a_second_mover_is_told_of_it_too(self, pod: Pod):
        give_up(pod)
        pod.release(2)
        assert pod.held.outcomes.take() == [Outcome(2, "u", 100, given=True, has_state=True)]

    def test_it_goes_when_the_link_is_anothers(self, pod: Pod):
        give_up(pod)
        pod.releases.settled({"u": (99, 0)})
        assert "u" in pod.held.nobodys.kept
        pod.releases.settled({"u": (100, 0)})
        assert pod.held.entries == {}
        assert not pod.held.nobodys.kept

    def test_what_is_given_back_is_acquired_with_the_very_same(self, pod: Pod):
        state = {"of": "u"}
        give_up(pod, state=state)
        pod.releases.settled({"u": (100, 200)})
        assert epochs_held(pod.held) == {"u": 200}, "a drain must see it"
        assert [(it.uid, it.epoch) for it in pod.work.to_acquire()] == [("u", 200)]
        assert pod.work.to_acquire() == [], "each once"
        assert confirm(pod, "u", 200, replaced=100) is Told.ACQUIRE
        assert state_of(pod, "u") is state
        pod.admission.acquired("u", 200)
        assert pod.held.entries["u"].state is None
        assert pod.verdict("u", 200) is Verdict.ADMIT

    def test_a_link_that_replaced_another_epoch_gets_nothing(self, pod: Pod):
        give_up(pod)
        assert confirm(pod, "u", 200, replaced=150) is Told.ACQUIRE
        assert state_of(pod, "u") is None
        assert not pod.held.nobodys.kept

    def test_one_whose_link_is_to_go_has_none(self, pod: Pod, clock: ManualClock):
        clock.tick(4)
        pod.renew()
        assert pod.confirm() is Told.HELD
        pod.releases.end_at("u", 100, clock() + 0.5)
        clock.tick(0.5)
        pod.releases.tick()
        work = pod.begin_hook()
        pod.work.ended(work.uid, work.epoch, "nobody's")
        assert not pod.held.nobodys.kept
        assert unsettled(pod.held, clock() + 1) == {"u": (100, Fate.GOES)}

    @pytest.mark.parametrize("is_taken_back", [False, True])
    @pytest.mark.parametrize("is_asked", ["before it is due", "as its hook runs"])
    def test_one_that_is_moved_as_its_removal_falls_due_has_one_all_the_same(
        self, pod: Pod, clock: ManualClock, is_asked: str, is_taken_back: bool
    ):
        """A move that is made takes the removal back; one that is not leaves it as it was."""
        assert pod.confirm(lease_s=100.0) is Told.HELD
        pod.releases.end_at("u", 100, clock() + 1)
        if is_asked == "before it is due":
            pod.enter()
            pod.release(1)
            clock.tick(1)
            pod.releases.tick()
            pod.admission.leave("u")
        clock.tick(1)
        pod.releases.tick()
        work = pod.begin_hook()
        if is_asked == "as its hook runs":
            pod.release(1)
        if is_taken_back:
            pod.releases.cancel(1)
        pod.work.ended(work.uid, work.epoch, "its state")
        has_state = not is_taken_back
        assert pod.held.outcomes.take() == [Outcome(1, "u", 100, given=True, has_state=has_state)]
        fate = Fate.GOES if is_taken_back else Fate.STAYS
        assert unsettled(pod.held, clock() + 1) == {"u": (100, fate)}

    @pytest.mark.parametrize("persistent", [False, True])
    def test_nobody_waits_for_that_of_one_whose_pod_leaves_unless_somebody_moves_it(
        self, pod: Pod, persistent: bool
    ):
        for uid in ("moved", "kept", "given up"):
            pod.hold(uid, 100, persistent=persistent)
        for number, uid in enumerate(("moved", "given up"), start=1):
            pod.release(number, uid)
        closing.leave_all(pod.held)
        some = pod.work.take(10)
        assert {work.uid for work in some} == {"u", "moved", "kept", "given up"}
        for work in some:
            assert pod.work.may_begin(work)
        pod.releases.cancel(2)
        for work in some:
            pod.work.ended(work.uid, work.epoch, "its state")
        (told,) = [it for it in pod.held.outcomes.take() if it.uid == "moved"]
        assert told.has_state
        assert unfinished(pod.held) == ["moved"]

    def test_one_whose_pod_stays_after_all_has_it_back_if_its_link_is_persistent(
        self, pod: Pod, clock: ManualClock
    ):
        pod.hold("v", 100, persistent=True)
        closing.leave_all(pod.held)
        for work in pod.work.take(10):
            assert pod.work.may_begin(work)
            pod.work.ended(work.uid, work.epoch, "its state")
        assert is_finished(pod.held)
        closing.stay(pod.held)
        clock.tick(1)
        pod.renew()
        given = unsettled(pod.held, clock())
        assert given == {"u": (100, Fate.UNUSED), "v": (100, Fate.STAYS)}
        pod.releases.settled({"v": (100, 101)})
        assert pod.confirm("v", 101, replaced=100) is Told.ACQUIRE
        assert state_of(pod, "v") == "its state"

    def test_a_wish_for_a_later_epoch_gets_no_earlier_state(self, pod: Pod):
        pod.release(1)
        work = pod.begin_hook()
        pod.release(2, epoch=200)
        pod.work.ended(work.uid, work.epoch, "of 100")
        told = {it.release: it.has_state for it in pod.held.outcomes.take()}
        assert told == {1: False, 2: False}
        assert not pod.held.nobodys.kept

    def test_only_so_many_wait_for_their_next_pods_at_a_time(self, pod: Pod):
        for number in range(200):
            pod.hold(f"v{number}", 100)
        pod.releases.release(1, {f"v{n}": 100 for n in range(200)}, 3.0, closes=True, router=1)
        while some := pod.work.take(10):
            for work in some:
                assert pod.work.may_begin(work)
                pod.work.ended(work.uid, work.epoch, "a state")
        given = len(pod.held.nobodys.kept)
        assert 128 <= given < 138
        pod.releases.settled(dict.fromkeys(list(pod.held.nobodys.kept)[:30], (100, 0)))
        assert pod.work.take(100), "as they go, others follow"

    def test_its_link_lives_on_past_a_lapse_of_its_pod(self, pod: Pod):
        give_up(pod)
        arrive(pod)
        pod.releases.settled({"new": (50, 60)})
        pod.lapse_and_resume()
        assert in_use(pod.held, pod.clock()) == {"u": 100, "new": 60}

    def test_an_ended_life_keeps_none(self, pod: Pod):
        give_up(pod)
        arrive(pod)
        terms.lose_all(pod.held)
        assert unfinished(pod.held) == []
        assert not pod.held.nobodys.kept


class TestArrived:
    def test_it_is_nobodys_until_its_link_says_so(self, pod: Pod):
        arrive(pod)
        assert pod.verdict("new", 50) is Verdict.REFUSE
        assert "new" not in epochs_held(pod.held)
        assert "new" not in memory(pod.held)[1]
        assert "new" not in in_use(pod.held, pod.clock())
        assert unsettled(pod.held, pod.clock() + 1) == {"new": (50, Fate.STAYS)}

    def test_a_drain_hears_of_it(self, pod: Pod):
        arrive(pod)
        assert shown(pod.held) == Shown({"u": 100}, 0, undecided=1)
        pod.releases.settled({"new": (50, 60)})
        assert shown(pod.held) == Shown({"u": 100, "new": 60}, 0, undecided=0)

    @pytest.mark.parametrize("is_told", [True, False])
    def test_its_first_call_finds_it(self, pod: Pod, is_told: bool):
        arrive(pod)
        if is_told:
            pod.releases.settled({"new": (50, 60)})
        assert pod.verdict("new", 60) is Verdict.CONFIRM
        assert confirm(pod, "new", 60, replaced=50) is Told.ACQUIRE
        assert state_of(pod, "new") == "from afar"

    def test_a_late_one_is_never_taken_for_a_later_link(self, pod: Pod):
        arrive(pod)
        assert confirm(pod, "new", 70, replaced=60) is Told.ACQUIRE
        assert state_of(pod, "new") is None

    @pytest.mark.parametrize("epoch", [99, 100, 101])
    def test_nothing_is_taken_in_for_a_uid_that_is_held(self, pod: Pod, epoch: int):
        assert not take_in(pod, "u", epoch, State("late"))
        assert pod.held.entries["u"].phase is Phase.HELD
        assert pod.held.entries["u"].lost == (epoch > 100), "its link has ended without a release"

    def test_what_is_fetched_once_more_is_there(self, pod: Pod):
        arrive(pod)
        assert take_in(pod, "new", 50, State("again"))
        assert not take_in(pod, "new", 49, State("of an earlier move"))
        pod.releases.settled({"new": (50, 60)})
        assert not take_in(pod, "new", 50, State("again")), "it is this pod's by now"

    def test_a_pod_that_leaves_waits_until_it_is_settled(self, pod: Pod):
        arrive(pod)
        assert unfinished(pod.held) == ["u", "new"], "its link may be on its way here"
        pod.releases.settled({"new": (50, 0)})
        assert unfinished(pod.held) == ["u"], "it has stayed where it was"

    def test_nor_by_a_pod_that_leaves(self, pod: Pod):
        closing.close(pod.held, "it leaves")
        assert not take_in(pod, "new", 50, State("late"))

    @pytest.mark.parametrize("is_told", [True, False])
    def test_moved_on_before_its_first_call_it_goes_on_and_no_hook_runs(
        self, pod: Pod, is_told: bool
    ):
        arrive(pod)
        if is_told:
            pod.releases.settled({"new": (50, 60)})
        pod.releases.release(5, {"new": 60}, 3.0, closes=True, router=1, replaced={"new": 50})
        assert pod.held.outcomes.take() == [Outcome(5, "new", 60, given=True, has_state=True)]
        assert pod.take() == []
        sent = pickle.loads(Exports(pod.held, drops_unpicklable=False).some({"new": 60}))
        assert unpack(sent["new"]) == "from afar"

    def test_an_on_acquire_that_fails_leaves_it_for_the_next(self, pod: Pod):
        arrive(pod)
        pod.releases.settled({"new": (50, 60)})
        for _ in range(2):
            assert confirm(pod, "new", 60, replaced=50) is Told.ACQUIRE
            assert state_of(pod, "new") == "from afar", "each time as it arrived"
            pod.admission.not_acquired("new", 60)
        assert pod.work.to_acquire() == [], "it waits for a call"
        assert "new" in epochs_held(pod.held)
        pod.release(5, "new", 60)
        assert pod.held.outcomes.take()[-1] == Outcome(5, "new", 60, given=True, has_state=True)

    def test_one_that_has_failed_is_tried_again_as_its_pod_leaves(self, pod: Pod):
        """Its state is given up by a hook alone."""
        arrive(pod)
        pod.releases.settled({"new": (50, 60)})
        assert confirm(pod, "new", 60, replaced=50) is Told.ACQUIRE
        pod.admission.not_acquired("new", 60)
        assert pod.work.to_acquire() == []
        closing.leave_all(pod.held)
        assert [it.uid for it in pod.work.to_acquire()] == ["new"]

    @pytest.mark.parametrize("is_told", [True, False])
    def test_a_release_that_meets_an_on_acquire_that_fails_has_it_go_on(
        self, pod: Pod, is_told: bool
    ):
        arrive(pod)
        if is_told:
            pod.releases.settled({"new": (50, 60)})
        assert confirm(pod, "new", 60, replaced=50) is Told.ACQUIRE
        pod.releases.release(5, {"new": 60}, 3.0, closes=True, router=1, replaced={"new": 50})
        pod.admission.not_acquired("new", 60)
        assert pod.held.outcomes.take() == [Outcome(5, "new", 60, given=True, has_state=True)]

    def test_one_that_redis_does_not_name_is_dropped(self, pod: Pod):
        arrive(pod)
        pod.releases.settled({"new": (50, 60)})
        pod.deny("new", 60)
        assert "new" not in pod.held.entries
        assert pod.work.to_acquire() == []

    def test_it_never_idles_out_unacquired(self, pod: Pod, clock: ManualClock):
        arrive(pod)
        pod.releases.settled({"new": (50, 60)})
        clock.tick(IDLE_S + 1)
        look_for_idle(pod.held)
        assert pod.held.entries["new"].phase is Phase.ARRIVED


class TestExports:
    def test_of_many_bytes_some_are_put_off_and_large_ones_go_by_themselves(self, pod: Pod):
        sizes = {"a": 3 << 20, "b": 3 << 20, "c": 10, "d": 9 << 20}
        for uid, size in sizes.items():
            pod.hold(uid, 100)
            give_up(pod, uid, state=bytes(size))
        exports = Exports(pod.held, drops_unpicklable=False)
        sent = pickle.loads(exports.some({"a": 100, "b": 100, "c": 100}))
        assert [type(sent["a"]), type(sent["b"]), sent["c"]] == [bytes, bytes, LATER]
        assert pickle.loads(exports.some({"d": 100})) == {"d": LARGE}
        assert unpack(memoryview(exports.one("d", 100))) == bytes(sizes["d"])
        assert exports.one("d", 100) == b"", "it does not wait here, in memory, for what may come"
        assert pickle.loads(exports.some({"d": 100})) == {"d": LARGE}
        assert unpack(memoryview(exports.one("d", 100))) == bytes(sizes["d"])

    @pytest.mark.parametrize("drops", [True, False])
    def test_what_can_not_be_pickled_is_said_or_dropped(self, pod: Pod, drops: bool):
        class Stuck:  # a lock would be pickled, once some libraries are imported
            def __reduce__(self) -> tuple[object, ...]:
                raise TypeError("it stays where it is")

        give_up(pod, state=Stuck())
        found = pickle.loads(Exports(pod.held, drops_unpicklable=drops).some({"u": 100}))["u"]
        if drops:
            assert found == DROPPED
        else:
            assert isinstance(found, Unsent)
            assert found.is_final
            assert "pickle" in found.reason

    @pytest.mark.timeout(60)
    def test_code_that_would_end_its_process_ends_only_the_way_of_its_uid(self, pod: Pod):
        class Ends:
            def __reduce__(self) -> tuple[object, ...]:
                raise SystemExit("the user's own code")

        give_up(pod, state=Ends())
        exports = Exports(pod.held, drops_unpicklable=False)
        sent = pickle.loads(exports.some({"u": 100}))
        assert sent["u"].is_final
        assert "SystemExit" in sent["u"].reason
        pod.releases.settled({"u": (100, 101)})
        assert confirm(pod, "u", 101, 100) is Told.ACQUIRE, "given back, it is served again"

    def test_one_that_hangs_while_it_is_written_holds_up_only_itself(self, pod: Pod):
        slow = Slow()
        for uid in ("a", "b", "c"):
            pod.hold(uid, 100)
            give_up(pod, uid, state=slow if uid == "a" else uid)
        exports = Exports(pod.held, drops_unpicklable=False)
        sent = pickle.loads(exports.some({"a": 100, "b": 100, "c": 100}))
        assert sent["a"] == LATER
        assert [unpack(sent["b"]), unpack(sent["c"])] == ["b", "c"]
        for _ in range(2):
            assert pickle.loads(exports.some({"a": 100})) == {"a": LATER}
        assert slow.begun == 1, "it is written once"
        pod.releases.settled({"a": (100, 200)})
        assert confirm(pod, "a", 200, replaced=100) is Told.WAIT, "and used by nobody meanwhile"
        slow.goes_on.set()
        with pod.held.lock:
            state = pod.held.entries["a"].state
        eventually(lambda: not state.exports, "it is written")
        assert confirm(pod, "a", 200, replaced=100) is Told.ACQUIRE

    @pytest.mark.timeout(60)
    def test_those_that_are_slow_keep_no_others_from_being_given_up(self, pod: Pod):
        slow = Slow()
        uids = [f"v{number}" for number in range(128)]
        for uid in uids:
            pod.hold(uid, 100)
            give_up(pod, uid, state=uid if uid != "v0" else slow)
        pod.hold("next", 100)
        pod.release(5, "next")
        assert not pod.work.take(10)
        Exports(pod.held, drops_unpicklable=False).some({"v0": 100})
        assert [work.uid for work in pod.work.take(10)] == ["next"]
        slow.goes_on.set()

    def test_another_epoch_is_not_there(self, pod: Pod):
        give_up(pod)
        found = pickle.loads(Exports(pod.held, drops_unpicklable=False).some({"u": 99}))["u"]
        assert not found.is_final
        assert Exports(pod.held, drops_unpicklable=False).one("u", 99) == b""

    def test_nobody_acquires_what_is_just_being_written(self, pod: Pod):
        give_up(pod)
        pod.releases.settled({"u": (100, 200)})
        with pod.held.lock:
            pod.held.entries["u"].state.exports += 1
        assert confirm(pod, "u", 200, replaced=100) is Told.WAIT
        with pod.held.lock:
            pod.held.entries["u"].state.exports -= 1
        assert confirm(pod, "u", 200, replaced=100) is Told.ACQUIRE


@pytest.mark.slow
@pytest.mark.parametrize("way", ["written", "read"])
def test_other_threads_run_while_a_large_state_is(way: str):
    """Whoever keeps the interpreter lock for longer than its lease is fenced."""
    state = [{"number": number, "text": str(number)} for number in range(300_000)]
    packed = pack(state)
    beats, stop = [0], threading.Event()

    def beat() -> None:
        while not stop.wait(0.001):
            beats[0] += 1

    thread = threading.Thread(target=beat)
    thread.start()
    before = beats[0]
    made = pack(state) if way == "written" else unpack(packed)
    during = beats[0] - before
    stop.set()
    thread.join()
    assert during > 3
    assert made == (packed if way == "written" else state)


class Slow:
    """Takes as long to be written as a test says."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()
        self.begun = 0

    def __getstate__(self) -> dict[str, object]:
        self.begun += 1
        self.goes_on.wait(60)
        return {}


class WithTwo:
    def on_acquire(self, uid: str, state: object) -> None: ...


class WithOne:
    def on_acquire(self, uid: str) -> None: ...


class WithAny:
    def on_acquire(self, *uids: str, **more: str) -> None: ...


def test_a_state_is_for_an_on_acquire_of_two_arguments():
    assert takes_state(WithTwo().on_acquire)
    assert not takes_state(WithOne().on_acquire)
    assert not takes_state(WithAny().on_acquire)
    assert not takes_state(None)


def test_on_acquire_gets_its_state_and_on_release_tells_it():
    got: list[object] = []
    hooks = Hooks(lambda uid, state: got.append((uid, state)), lambda uid: uid * 2, carries=True)
    told: list[object] = []
    hooks.start("on_acquire", "u", lambda error, _: told.append(error), State("it"))
    eventually(lambda: told, "the first has it")
    hooks.start("on_acquire", "v", lambda error, _: told.append(error), None)
    eventually(lambda: len(told) == 2, "there is none")
    hooks.start("on_release", "u", lambda error, state: told.append((error, state)))
    assert got == [("u", "it"), ("v", None)]
    assert told == [None, None, (None, "uu")]
