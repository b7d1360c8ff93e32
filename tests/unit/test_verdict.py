"""The demo's verdict: green on good histories, red on every kind of bad one."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from ray_route import cli
from ray_route.demo.replay import DemoError, Plan
from ray_route.demo.report import print_outcome
from ray_route.demo.trace import Trace
from ray_route.demo.verdict import Ack, History, Kill, Outcome, Owner, Record, ScaleOut, judge
from ray_route.model import Life, Pod, RoutingState

A, B, C, NEW = Owner(0, 1), Owner(1, 1), Owner(2, 1), Owner(3, 1)
REBORN = Owner(0, 2)

ONCE = "every event was handled exactly once"
ONE_POD = "every uid was handled by exactly one pod"
KILL = "only the uids of the pod that died moved"
SCALE_OUT = "adding pods moved no uid"
LINKS = "the directory names the pod that handled the uid last"


def history(*handled: tuple[str, Owner], alive: Sequence[Owner] = (), **more: Any) -> History:
    """Record a replay in which every witness agrees: event i was handled as `handled[i]` says."""
    log = [uid for uid, _ in handled]
    acks = [Ack(event, uid, owner) for event, (uid, owner) in enumerate(handled)]
    kill = more.get("kill")
    living = {*alive, *(owner for _, owner in handled)} - ({kill.victim} if kill else set())
    return History(
        log=log,
        acks=acks,
        records={owner: record(acks, owner) for owner in living},
        links={uid: owner.pod for uid, owner in handled},
        **more,
    )


def record(acks: Sequence[Ack], owner: Owner) -> Record:
    mine = [ack for ack in acks if ack.owner == owner]
    return Record([ack.event for ack in mine], Counter(ack.uid for ack in mine))


def broken(seen: History) -> set[str]:
    return {check.promise for check in judge(seen) if not check.kept}


def problems(seen: History) -> str:
    return "\n".join(problem for check in judge(seen) for problem in check.problems)


PLAIN = history(("u", A), ("v", B), ("u", A), ("w", C), ("v", B))
# u's pod dies after event 2: its uids u and x move, x back to the same index in its next life.
KILLED = history(
    ("u", A), ("v", B), ("x", A), ("u", B), ("v", B), ("x", REBORN), ("u", B),
    kill=Kill(A, 3), alive=[REBORN],
)  # fmt: skip
# Pod 3 comes after event 1 and gets the new uid w.
SCALED = history(("u", A), ("v", B), ("w", NEW), ("u", A), ("v", B), scale_out=ScaleOut([3], 2))


@pytest.mark.parametrize("seen", [PLAIN, KILLED, SCALED], ids=["plain", "kill", "scale-out"])
def test_a_good_history_keeps_every_promise(seen):
    assert broken(seen) == set()


def test_each_promise_is_checked_where_it_applies():
    assert [check.promise for check in judge(PLAIN)] == [ONCE, ONE_POD, LINKS]
    assert KILL in {check.promise for check in judge(KILLED)}
    assert SCALE_OUT in {check.promise for check in judge(SCALED)}


def test_pod_0_is_a_pod_and_what_it_holds_is_counted():
    (finding,) = (check.finding for check in judge(KILLED) if check.promise == KILL)
    assert "pod 0 died after event 3 with 2 uids: 2 of them came again and moved" in finding
    assert "0 of the 1 others moved" in finding


def test_a_dead_pods_uids_may_move_to_pods_that_were_added():
    seen = history(
        ("u", A), ("v", B), ("w", NEW), ("u", NEW), ("v", B),
        scale_out=ScaleOut([3], 2), kill=Kill(A, 3),
    )  # fmt: skip
    assert broken(seen) == set()
    assert "the new pods got 1 new uids, and 1 of the dead pod's" in judge(seen)[3].finding


# Exactly once.


def test_a_lost_event():
    seen = replace(PLAIN, acks=PLAIN.acks[:-1], failures={4: "TimeoutError: late"})
    assert ONCE in broken(seen)
    assert "1 events without an acknowledgement (4): TimeoutError: late" in problems(seen)


def test_an_event_that_was_lost_without_a_trace():
    lost = PLAIN.acks[2]
    seen = replace(PLAIN, acks=[a for a in PLAIN.acks if a is not lost])
    seen = replace(seen, records={**seen.records, A: record(seen.acks, A)})
    assert broken(seen) == {ONCE}


def test_an_event_acknowledged_twice():
    seen = replace(PLAIN, acks=[*PLAIN.acks, PLAIN.acks[1]])
    assert broken(seen) == {ONCE}
    assert "1 events acknowledged more than once (1)" in problems(seen)


def test_an_event_handled_twice_by_one_pod():
    twice = Record([0, 2, 2], {"u": 3})
    seen = replace(PLAIN, records={**PLAIN.records, A: twice})
    assert broken(seen) == {ONCE}
    assert "1 events handled twice by pod 0 (2)" in problems(seen)


def test_an_event_handled_by_a_second_pod_whose_answer_was_lost():
    also = Record([1, 4, 2], {"v": 2, "u": 1})
    seen = replace(PLAIN, records={**PLAIN.records, B: also})
    assert broken(seen) == {ONCE}
    assert "1 events handled by pod 1, not acknowledged by it (2)" in problems(seen)
    assert "1 events in the records of two living pods (2)" in problems(seen)


def test_an_acknowledged_event_that_the_pod_does_not_remember():
    seen = replace(PLAIN, records={**PLAIN.records, A: Record([0], {"u": 1})})
    assert broken(seen) == {ONCE}
    assert "1 events acknowledged by pod 0, not in its record (2)" in problems(seen)


def test_an_event_counted_for_another_uid():
    seen = replace(PLAIN, records={**PLAIN.records, A: Record([0, 2], {"u": 1, "v": 1})})
    assert broken(seen) == {ONCE}
    assert "2 uids that pod 0 counted wrongly (u, v)" in problems(seen)


def test_an_event_acknowledged_for_another_uid():
    acks = [*PLAIN.acks[:3], PLAIN.acks[3]._replace(uid="v"), PLAIN.acks[4]]
    assert ONCE in broken(replace(PLAIN, acks=acks))


def test_an_event_that_was_never_sent():
    stray = Ack(99, "u", A)
    seen = replace(PLAIN, acks=[*PLAIN.acks, stray])
    seen = replace(seen, records={**seen.records, A: record(seen.acks, A)})
    assert ONCE in broken(seen)


def test_a_pod_that_died_unasked():
    records = {owner: kept for owner, kept in PLAIN.records.items() if owner != C}
    assert broken(replace(PLAIN, records=records)) == {ONCE}


def test_repeats_that_the_pod_recognized_are_told():
    seen = replace(PLAIN, records={**PLAIN.records, A: Record([0, 2], {"u": 2}, repeats=1)})
    assert broken(seen) == set()
    assert "1 came again to the same pod and counted once" in judge(seen)[0].finding


def test_a_dead_pods_repeats_elsewhere_are_no_second_handling():
    # Event 3 was handled by A too, whose answer was lost with it: nobody remembers that.
    assert ONCE not in broken(KILLED)


# One pod for each uid.


def test_a_uid_on_two_pods():
    seen = history(("u", A), ("v", B), ("u", B))
    assert broken(seen) == {ONE_POD}
    assert "1 uids handled by several pods (u)" in problems(seen)


def test_a_uid_on_two_pods_by_turns():
    assert ONE_POD in broken(history(("u", A), ("u", B), ("u", A)))


def test_a_pod_that_lost_its_memory_is_another_owner():
    assert ONE_POD in broken(history(("u", A), ("u", REBORN)))


# The death of a pod.


def test_a_survivors_uid_that_moved_on_kill():
    seen = history(("u", A), ("v", B), ("u", C), ("v", C), kill=Kill(A, 2))
    assert broken(seen) == {ONE_POD, KILL}
    assert "1 uids of living pods that moved (v)" in problems(seen)


def test_a_dead_pods_uid_that_moved_twice():
    seen = history(("u", A), ("v", B), ("u", B), ("u", C), kill=Kill(A, 2))
    assert broken(seen) == {ONE_POD, KILL}
    assert "1 uids that moved more than once (u)" in problems(seen)


def test_a_uid_that_moved_back_to_a_dead_life():
    seen = history(("u", A), ("v", B), ("u", B), ("u", A), kill=Kill(A, 2))
    assert {ONE_POD, KILL} <= broken(seen)
    assert "1 uids that moved back (u)" in problems(seen)


def test_a_uid_that_moved_before_the_death():
    seen = history(("u", A), ("u", B), ("v", B), ("v", B), kill=Kill(A, 2))
    assert broken(seen) == {ONE_POD, KILL}
    assert "1 uids that moved before the death (u)" in problems(seen)


def test_a_pod_that_was_to_be_killed_and_lives():
    alive = {A: record(KILLED.acks, A)}
    assert KILL in broken(replace(KILLED, records={**KILLED.records, **alive}))


# Pods that are added.


def test_a_uid_that_moved_to_a_new_pod():
    seen = history(("u", A), ("v", B), ("u", NEW), ("v", B), scale_out=ScaleOut([3], 2))
    assert broken(seen) == {ONE_POD, SCALE_OUT}
    assert "1 uids that had a pod moved (u)" in problems(seen)


def test_a_uid_that_moved_between_old_pods_on_scale_out():
    seen = history(("u", A), ("v", B), ("u", B), ("w", NEW), scale_out=ScaleOut([3], 2))
    assert broken(seen) == {ONE_POD, SCALE_OUT}


def test_a_kill_does_not_excuse_what_moved_before_it():
    seen = history(
        ("u", A), ("v", B), ("u", NEW), ("v", B), ("v", B),
        scale_out=ScaleOut([3], 2), kill=Kill(A, 4),
    )  # fmt: skip
    assert {ONE_POD, SCALE_OUT, KILL} <= broken(seen)


def test_a_new_pod_that_is_not_there():
    assert SCALE_OUT in broken(replace(SCALED, scale_out=ScaleOut([3, 4], 2)))


def test_a_new_pod_that_was_there_before():
    assert SCALE_OUT in broken(replace(SCALED, scale_out=ScaleOut([3], 3)))


# The directory.


@pytest.mark.parametrize("links", [{"u": 1, "v": 1, "w": 2}, {"v": 1, "w": 2}], ids=["other", "no"])
def test_a_link_that_is_not_where_the_uid_was_handled(links):
    seen = replace(PLAIN, links=links)
    assert broken(seen) == {LINKS}
    assert "1 uids whose link names another pod or none (u)" in problems(seen)


# What is printed, and the exit status.


def pod(owner: Owner) -> Pod:
    return Pod(owner.pod, RoutingState.READY, Life.ALIVE, 1.0, 1, "n", "a", owner.incarnation, 0.1)


def printed(seen: History, encoding: str = "utf-8") -> tuple[bool, str]:
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding=encoding), width=80, soft_wrap=True)
    living = {owner.pod: pod(owner) for owner in seen.records}
    kept = print_outcome(console, Outcome(seen, 2.0, living))
    console.file.flush()
    return kept, raw.getvalue().decode(encoding)


def test_the_report_says_who_handled_what_and_how_fast():
    kept, text = printed(KILLED)
    assert kept
    assert "7 events in 2.00 s: 4 events/s" in text
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines()]
    assert ["0", "dead", "0", "2", ""] in rows
    assert ["0", "alive", "1", "1", "1"] in rows
    assert ["all", "", "3", "7", ""] in rows
    assert text.count("✓") == len(judge(KILLED))


def test_a_violated_promise_is_marked_and_its_good_news_is_not_told():
    kept, text = printed(replace(PLAIN, acks=PLAIN.acks[:-1]))
    assert not kept
    assert f"✗ {ONCE}\n    1 events without an acknowledgement (4)\n" in text
    assert "records of 3 living pods agree" not in text


def test_the_report_can_be_printed_without_unicode():
    assert f"ok {ONCE}" in printed(PLAIN, "ascii")[1]
    assert f"FAILED {ONCE}" in printed(replace(PLAIN, acks=PLAIN.acks[:-1]), "ascii")[1]


def test_many_offenders_are_named_in_short():
    seen = history(*((f"u{n}", A) for n in range(1_200)))
    assert "1,200 events without an acknowledgement (0, 1, 2, 3, 4, …)" in problems(
        replace(seen, acks=[])
    )


@pytest.mark.parametrize(("seen", "status"), [(PLAIN, 0), (replace(PLAIN, links={}), 1)])
def test_the_exit_status_is_the_verdict(monkeypatch, capsys, seen, status):
    class Bootstrap:
        def __enter__(self) -> str:
            return "a stage"

        def __exit__(self, *_: object) -> None:
            pass

    living = {owner.pod: pod(owner) for owner in seen.records}
    monkeypatch.setattr("ray_route.cli.demo.bootstrap", lambda _: Bootstrap())
    monkeypatch.setattr("ray_route.cli.demo.perform", lambda *_: Outcome(seen, 1.0, living))
    with pytest.raises(SystemExit) as caught:
        cli.main(["demo", "--seed", "1"])
    assert caught.value.code == status
    assert LINKS in capsys.readouterr().out


# The plan.


def plan(events: int, **flags: bool) -> Plan:
    return Plan(Trace("log", tuple("u" * events)), 4, **flags)


@pytest.mark.parametrize("events", [3, 7, 100, 3_000, 59_835])
def test_windows_cover_the_log_once_and_begin_where_something_happens(events):
    planned = plan(events, kill=True, scale_out=True)
    windows = list(planned.windows())
    assert [event for window in windows for event in window] == list(range(events))
    starts = {window.start for window in windows}
    assert planned.kill_at == events // 2
    assert planned.scale_out_at == events // 3
    assert {planned.kill_at, planned.scale_out_at} <= starts - {0}
    assert max(len(window) for window in windows) <= 2_000


def test_pods_are_added_half_way_unless_one_dies_then():
    assert plan(100, scale_out=True).scale_out_at == 50
    assert plan(100).kill_at is None


def test_a_log_too_short_for_what_is_to_happen_is_refused():
    assert list(plan(1).windows()) == [range(1)]
    with pytest.raises(DemoError, match="log is too short: this takes 2 events at least"):
        plan(1, kill=True)
    with pytest.raises(DemoError, match="3 events"):
        plan(2, kill=True, scale_out=True)
