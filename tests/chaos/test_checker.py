"""The checker fails on histories that must fail: a checker that can't is worth nothing."""

from __future__ import annotations

from dataclasses import replace

from history import Acknowledged, Fault, History, Served, recovery_s, violations

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


def test_recovery_counts_from_the_fault_or_the_question() -> None:
    kill = Fault("kill", 2.2, incarnation=1)
    history = History([FIRST, SECOND], ACKS, [kill])
    assert recovery_s(history, "kill") == [3.1 - 2.2]
    assert recovery_s(history, "freeze") == []


def test_recovery_leaves_out_what_another_fault_lengthened() -> None:
    faults = [Fault("kill", 2.2, incarnation=1), Fault("freeze", 2.6, incarnation=2)]
    assert recovery_s(History([FIRST, SECOND], ACKS, faults), "kill") == []
