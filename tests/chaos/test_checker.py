"""The checker fails on histories that must fail: a checker that can't is worth nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from history import (
    Acknowledged,
    Fault,
    History,
    Hook,
    Served,
    lives_between,
    recovery_s,
    unexplained_moves,
    violations,
)
from states import TakenBack, state_violations, taken_back

FIRST = Served("c1", "u", epoch=10, pod=0, incarnation=1, start=1.0, end=2.0)
SECOND = Served("c2", "u", epoch=11, pod=1, incarnation=2, start=2.5, end=3.0)
ACKS = [Acknowledged("c1", "u", 0.9, 2.1), Acknowledged("c2", "u", 2.2, 3.1)]


def found(*served: Served, faults: tuple[Fault, ...] = (), acks: list[Acknowledged] = ACKS) -> str:
    history = History(list(served), list(acks), list(faults))
    return "\n".join(violations(history, unserved_bound_s=1.5))


def test_a_good_history_passes() -> None:
    assert found(FIRST, SECOND) == ""


def test_two_pods_at_once() -> None:
    assert "was served by (0, 1) and (1, 2)" in found(FIRST, replace(SECOND, start=1.9))


def test_two_lives_of_one_pod_at_once() -> None:
    assert "was served by" in found(FIRST, replace(SECOND, pod=0, start=1.5))


def test_a_long_call_hides_no_later_overlap() -> None:
    inner = replace(FIRST, call="c3", start=1.2, end=1.3)
    assert "was served by" in found(FIRST, inner, replace(SECOND, start=1.9))


def test_a_call_that_a_freeze_stopped_ends_there() -> None:
    late = replace(FIRST, end=9.0)
    assert "was served by" in found(late, SECOND)
    assert found(late, SECOND, faults=(Fault("freeze", 1.5, incarnation=1),)) == ""


def test_a_call_that_begins_as_its_pod_wakes_was_admitted_before_the_freeze_or_never() -> None:
    freeze = Fault("freeze", 1.5, incarnation=1, until=2.8)
    woken = replace(FIRST, start=2.81, end=2.9, admitted=1.4)
    assert found(SECOND, woken, faults=(freeze,)) == ""
    for admitted in (None, 2.805):
        wrong = found(SECOND, replace(woken, admitted=admitted), faults=(freeze,))
        assert "was served by" in wrong
        assert "went back from epoch 11 to 10" in wrong


def test_a_pod_that_is_cut_off_may_serve_until_its_lease_ends_and_not_then() -> None:
    late, cut = replace(FIRST, start=1.4, end=9.0), Fault("partition", 1.5, 1, until=4.0)
    assert "was served by" in found(late, SECOND)
    assert found(late, SECOND, faults=(cut,)) == ""
    assert "was served by" in found(replace(late, start=1.6), SECOND, faults=(cut,))


def test_a_killed_call_ends_with_its_process() -> None:
    cut = replace(FIRST, end=None)
    overlap = replace(SECOND, start=1.2)
    kill = Fault("kill", 1.5, incarnation=1)
    assert "was served by" in found(cut, overlap, faults=(kill,), acks=ACKS[1:])
    assert found(cut, SECOND, faults=(kill,), acks=ACKS[1:]) == ""


def test_an_epoch_that_goes_back() -> None:
    assert "went back from epoch 10 to 9" in found(FIRST, replace(SECOND, epoch=9))


def test_an_epoch_of_two_owners() -> None:
    assert "epoch 10 names" in found(FIRST, replace(SECOND, epoch=10))


def test_a_lost_acknowledged_call() -> None:
    assert "c2 of u was acknowledged" in found(FIRST)
    assert "c2 of u was acknowledged" in found(FIRST, replace(SECOND, end=None))


def test_a_uid_that_waits_too_long() -> None:
    assert "waited 1.60 s" in found(FIRST, SECOND, acks=[Acknowledged("c1", "u", 0.5, 2.1)])


def test_which_lives_there_were_meanwhile() -> None:
    history = History([FIRST, SECOND], ACKS, [])
    assert lives_between(history, 2.1, 2.6) == {2}
    assert lives_between(history, 1.5, 2.5) == {1, 2}
    killed = History([replace(FIRST, end=None)], ACKS, [])
    assert lives_between(killed, 2.1, 2.6) == {1}


def test_recovery_counts_from_the_fault_or_the_question() -> None:
    kill = Fault("kill", 2.2, incarnation=1)
    history = History([FIRST, SECOND], ACKS, [kill])
    assert recovery_s(history, "kill") == [2.5 - 2.2]
    assert recovery_s(history, "freeze") == []


def test_recovery_leaves_out_what_another_fault_lengthened() -> None:
    faults = [Fault("kill", 2.2, incarnation=1), Fault("freeze", 2.4, incarnation=2)]
    assert recovery_s(History([FIRST, SECOND], ACKS, faults), "kill") == []


# What became of a user's count, which the pods keep in memory.

CALL_1 = Served("c1", "u", 10, pod=0, incarnation=1, start=1.0, end=1.1, count=1)
CALL_2 = Served("c2", "u", 10, pod=0, incarnation=1, start=2.0, end=2.1, count=2)
CALL_3 = Served("c3", "u", 11, pod=1, incarnation=2, start=5.0, end=5.1, count=3)
LOADED = Hook("acquire", "u", 10, pod=0, incarnation=1, start=0.5, end=0.9, count=0)
SAVED = Hook("release", "u", 10, pod=0, incarnation=1, start=3.0, end=3.5, count=2)
LOADED_2 = Hook("acquire", "u", 11, pod=1, incarnation=2, start=4.0, end=4.5, count=2)
SAVED_2 = Hook("release", "u", 11, pod=1, incarnation=2, start=6.0, end=6.5, count=3)
TOLD = [
    Acknowledged("c1", "u", 0.4, 1.2, count=1),
    Acknowledged("c2", "u", 1.9, 2.2, count=2),
    Acknowledged("c3", "u", 3.0, 5.2, count=3),
]
IN_ORDER = [LOADED, CALL_1, CALL_2, SAVED, LOADED_2, CALL_3, SAVED_2]


def states(
    *events: Hook | Served,
    faults: tuple[Fault, ...] = (),
    told: list[Acknowledged] = TOLD,
    shut_down: bool = True,
    is_saved: bool = True,
) -> str:
    history = planted(*events, faults=faults, told=told, shut_down=shut_down)
    history.is_saved = is_saved
    return "\n".join(state_violations(history))


def planted(
    *events: Hook | Served,
    faults: tuple[Fault, ...] = (),
    told: list[Acknowledged] = TOLD,
    shut_down: bool = True,
) -> History:
    served = [event for event in events if isinstance(event, Served)]
    hooks = [event for event in events if isinstance(event, Hook)]
    return History(served, list(told), list(faults), hooks, shut_down)


def but(*changes: tuple[Hook | Served, Hook | Served | None]) -> list[Hook | Served]:
    """The good history with some events changed, or left out."""
    events: list[Hook | Served] = []
    for event in IN_ORDER:
        changed = next((new for old, new in changes if old is event), event)
        events += [] if changed is None else [changed]
    return events


# A pod that is killed at 3.2, in the midst of its release, and what follows it.
KILL = Fault("kill", 3.2, incarnation=1)
KILLED = (SAVED, replace(SAVED, end=None))
UNSAVED = (SAVED, None)
FROM_0 = [(LOADED_2, replace(LOADED_2, count=0)), (CALL_3, replace(CALL_3, count=1))]
BACK = [*FROM_0, (SAVED_2, replace(SAVED_2, count=1))]
TOLD_BACK = [*TOLD[:2], replace(TOLD[2], count=1)]


def test_counts_that_are_handed_over_pass() -> None:
    assert states(*IN_ORDER) == ""
    assert taken_back(planted(*IN_ORDER)) == []


def test_a_count_that_goes_back_though_it_was_saved() -> None:
    assert "went from 2 at (0, 1) to 0" in states(*but(*BACK), told=TOLD_BACK)


def test_a_count_that_jumps() -> None:
    jumped = but(
        (LOADED_2, replace(LOADED_2, count=7)),
        (CALL_3, replace(CALL_3, count=8)),
        (SAVED_2, replace(SAVED_2, count=8)),
    )
    told = [*TOLD[:2], replace(TOLD[2], count=8)]
    assert "went from 2 at (0, 1) to 7" in states(*jumped, told=told)
    assert "went from 2 at (0, 1) to 7" in states(*jumped, told=told, faults=(KILL,))


def test_a_state_that_was_never_released_is_lost() -> None:
    lost = states(*but(UNSAVED, *BACK), told=TOLD_BACK)
    assert "u was lost by (0, 1)" in lost
    assert "it was not released" in lost


def test_a_state_that_a_pod_called_lost_though_it_lived() -> None:
    said = (SAVED, replace(SAVED, kind="lost"))
    assert "on_lost ran" in states(*but(said, *BACK), told=TOLD_BACK)


def test_a_kill_takes_a_user_back_to_what_was_saved() -> None:
    events = but(UNSAVED, *BACK)
    assert states(*events, told=TOLD_BACK, faults=(KILL,)) == ""
    assert taken_back(planted(*events, told=TOLD_BACK, faults=(KILL,))) == [TakenBack("u", KILL, 2)]


def test_a_kill_in_the_midst_of_a_save_leaves_either_count() -> None:
    assert states(*but(KILLED), faults=(KILL,)) == ""
    assert states(*but(KILLED, *BACK), told=TOLD_BACK, faults=(KILL,)) == ""


def test_a_kill_is_no_excuse_for_another_count_than_the_saved() -> None:
    wrong = but(
        UNSAVED,
        (LOADED_2, replace(LOADED_2, count=1)),
        (CALL_3, replace(CALL_3, count=2)),
        (SAVED_2, replace(SAVED_2, count=2)),
    )
    told = [*TOLD[:2], replace(TOLD[2], count=2)]
    assert "where [0] was saved" in states(*wrong, told=told, faults=(KILL,))


def test_a_kill_of_another_pod_or_a_later_one_is_no_excuse() -> None:
    events = but(UNSAVED, *BACK)
    for fault in (Fault("kill", 3.2, incarnation=7), Fault("kill", 4.2, incarnation=1)):
        assert "was lost" in states(*events, told=TOLD_BACK, faults=(fault,))


def test_a_count_in_memory_alone_dies_with_any_pod_that_had_it() -> None:
    back = but(*BACK)
    of_another = replace(KILL, at=3.8, incarnation=3)
    how = {"told": TOLD_BACK, "is_saved": False}
    assert "u went from 2 at (0, 1) to 0" in states(*back, **how)
    assert "u went from 2" in states(*back, faults=(replace(KILL, at=4.1),), **how)
    assert "u went from 2" in states(*back, faults=(of_another,), told=TOLD_BACK)
    assert states(*back, faults=(of_another,), **how) == ""
    cut_short = but(KILLED, *BACK)
    assert states(*cut_short, faults=(KILL,), **how) == ""


def test_a_freeze_is_an_excuse_unless_its_life_went_on() -> None:
    freeze = Fault("freeze", 1.5, incarnation=1, until=1.9)
    events = but(UNSAVED, *BACK)
    assert "was lost" in states(*events, told=TOLD_BACK, faults=(freeze,))
    asleep = replace(freeze, at=2.5, until=4.2)
    assert states(*events, told=TOLD_BACK, faults=(asleep,)) == ""


def test_a_life_did_not_go_on_that_ran_after_a_freeze_what_it_had_admitted_before() -> None:
    asleep = Fault("freeze", 2.5, incarnation=1, until=3.9)
    woken = replace(CALL_2, start=3.91, end=3.95, admitted=2.4)

    def found(call: Served) -> str:
        return states(*but(UNSAVED, *BACK, (CALL_2, call)), told=TOLD_BACK, faults=(asleep,))

    assert found(woken) == ""
    assert "was lost" in found(replace(woken, admitted=3.905))


@pytest.mark.parametrize("kind", ["cut", "crash", "full", "router", "move", "scale", "drain"])
def test_nothing_but_the_end_of_a_process_is_an_excuse(kind: str) -> None:
    fault = Fault(kind, 2.5, until=3.9, uids=frozenset("u"))
    assert "was lost" in states(*but(UNSAVED, *BACK), told=TOLD_BACK, faults=(fault,))


def test_a_pod_that_was_asked_to_leave_has_an_excuse_in_an_outage_alone() -> None:
    asked = Fault("restart", 2.5, incarnation=1)
    events = but(UNSAVED, *BACK)
    assert "was lost" in states(*events, told=TOLD_BACK, faults=(asked,))
    outage = Fault("stall", 2.4, until=3.0)
    assert states(*events, told=TOLD_BACK, faults=(asked, outage)) == ""
    assert "was lost" in states(
        *events, told=TOLD_BACK, faults=(asked, replace(outage, until=2.45))
    )


def test_a_state_that_nobody_released_at_the_end() -> None:
    events = but((SAVED_2, None))
    assert "u was lost by (1, 2)" in states(*events)
    assert states(*events, shut_down=False) == ""
    assert states(*events, faults=(Fault("kill", 9.0, incarnation=2),)) == ""


def test_a_call_that_is_missing_in_what_was_saved() -> None:
    short = but((SAVED, replace(SAVED, count=1)), (LOADED_2, replace(LOADED_2, count=1)))
    assert "counted to 2, and on_release had 1" in states(*short)


def test_a_call_that_was_counted_twice() -> None:
    twice = but((CALL_2, replace(CALL_2, count=1)))
    told = [TOLD[0], replace(TOLD[1], count=1), TOLD[2]]
    assert "counted [1, 1]" in states(*twice, told=told)


def test_a_call_beside_a_hook() -> None:
    early = but((CALL_1, replace(CALL_1, start=0.7)))
    assert "c1 ran beside on_acquire" in states(*early)
    late = but((CALL_2, replace(CALL_2, start=3.2, end=3.3)))
    assert "c2 ran beside on_release" in states(*late)
    long = but((CALL_2, replace(CALL_2, end=3.3)))
    assert "on_release ran at 3.0000, beside c2" in states(*long)


def test_two_calls_at_once_where_calls_take_turns() -> None:
    assert state_violations(planted(*IN_ORDER), turns=True) == []
    beside = planted(*but((CALL_1, replace(CALL_1, end=CALL_2.start + 0.01))))
    (wrong,) = state_violations(beside, turns=True)
    assert "c2 ran beside c1" in wrong
    assert state_violations(beside) == []


def test_a_call_after_the_release() -> None:
    late = but((CALL_2, replace(CALL_2, start=3.6, end=3.7)))
    assert "c2 ran at 3.6000, which nobody had acquired it for" in states(*late)


def test_a_call_under_another_epoch_than_was_acquired() -> None:
    assert "c2 had epoch 9, acquired was 10" in states(*but((CALL_2, replace(CALL_2, epoch=9))))


def test_a_release_that_runs_twice() -> None:
    again = replace(SAVED, start=3.6, end=3.7)
    assert "on_release ran at 3.6000, after on_release" in states(*IN_ORDER, again)


def test_a_release_of_what_was_never_acquired() -> None:
    assert "it was never acquired" in states(*but((LOADED, None), (CALL_1, None), (CALL_2, None)))


def test_an_acquire_that_runs_twice() -> None:
    again = replace(LOADED, start=2.5, end=2.6, count=2)
    assert "on_acquire ran again at 2.5000" in states(*IN_ORDER, again)
    assert "acquired twice under epoch 10" in states(*IN_ORDER, again)


def test_one_epoch_acquired_by_two() -> None:
    second = replace(LOADED_2, epoch=10)
    events = but((LOADED_2, second), (CALL_3, replace(CALL_3, epoch=10)))
    assert "acquired twice under epoch 10" in states(*events)


def test_an_acquire_beside_the_release_of_the_owner_before() -> None:
    early = but((LOADED_2, replace(LOADED_2, start=3.2)))
    assert "while (0, 1) had it until 3.5000" in states(*early)
    same_pod = replace(LOADED_2, start=3.2, pod=0, incarnation=1)
    assert "on_acquire ran beside on_release" in states(*but((LOADED_2, same_pod)))


def test_a_frozen_release_goes_on_after_its_uid_is_anothers() -> None:
    late = but((SAVED, replace(SAVED, end=4.8)))
    freeze = Fault("freeze", 3.1, incarnation=1, until=4.7)
    assert "while (0, 1) had it" in states(*late)
    assert states(*late, faults=(freeze,)) == ""


def test_an_answer_that_no_pod_counted() -> None:
    told = [TOLD[0], replace(TOLD[1], count=5), TOLD[2]]
    assert "c2 of u was told 5, which no pod counted" in states(*IN_ORDER, told=told)


def test_an_answer_that_is_older_than_one_before() -> None:
    told = [TOLD[0], TOLD[1], replace(TOLD[0], asked=2.3, answered=2.4), TOLD[2]]
    assert "c1 of u was told 1 under epoch 10, after 2" in states(*IN_ORDER, told=told)


def test_what_an_outage_costs_counts_from_its_end_and_without_the_users_hooks() -> None:
    history = planted(*IN_ORDER, faults=(Fault("cut", 2.3, until=3.0),))
    (wait,) = recovery_s(history, "cut")
    assert wait == pytest.approx(4.0 - 3.0 - 0.5)


def test_what_an_outage_costs_leaves_out_uids_that_met_another_fault() -> None:
    outage = Fault("cut", 2.3, until=3.0)
    kill = Fault("kill", 2.5, incarnation=1)
    assert recovery_s(planted(*IN_ORDER, faults=(outage, kill)), "cut") == []


def test_a_uid_that_was_moved_has_a_reason_to_leave() -> None:
    history = planted(*IN_ORDER)
    assert len(unexplained_moves(history)) == 1
    history.faults = [Fault("remove", 2.5, uids=frozenset("u"))]
    assert unexplained_moves(history) == []
    history.faults = [Fault("remove", 2.5, uids=frozenset("v"))]
    assert len(unexplained_moves(history)) == 1
