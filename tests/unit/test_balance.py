"""Which uids a rebalancing moves: by weight, never too many, and never twice."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_route.controller.balance import Weights, loads_after, loads_of, plan, weights
from ray_route.model import UidMove
from ray_route.protocol.commands import Weighed

TOLERANCE = 0.1

LOADS = st.lists(
    st.lists(st.one_of(st.just(1.0), st.floats(0, 50), st.integers(0, 9).map(float)), max_size=40),
    min_size=1,
    max_size=8,
)


def named(loads: list[list[float]]) -> dict[int, dict[str, float]]:
    return {
        pod: {f"{pod}-{number}": weight for number, weight in enumerate(some)}
        for pod, some in enumerate(loads)
    }


def after(pods: Weights, moves: list[UidMove]) -> dict[int, dict[str, float]]:
    there = {pod: dict(uids) for pod, uids in pods.items()}
    for move in moves:
        there[move.target][move.uid] = there[move.source].pop(move.uid)
    return there


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(loads=LOADS, data=st.data(), tolerance=st.sampled_from([0.02, 0.1, 0.5]))
def test_a_plan_evens_out_moves_each_uid_once_and_leaves_nothing_to_do(
    loads: list[list[float]], data: st.DataObject, tolerance: float
) -> None:
    pods = named(loads)
    uids = [uid for some in pods.values() for uid in some]
    some_of = st.sets(st.sampled_from(uids)) if uids else st.just(set[str]())
    busy, fixed = data.draw(some_of), data.draw(some_of)
    moves = plan(pods, busy, fixed, tolerance)
    assert len({move.uid for move in moves}) == len(moves)
    for move in moves:
        assert move.uid in pods[move.source]
        assert move.target in pods
        assert move.target != move.source
        assert move.uid not in fixed
        assert move.busy == (move.uid in busy)
        assert move.weight == pods[move.source][move.uid] > 0
    assert [move.busy for move in moves] == sorted(move.busy for move in moves)
    there = after(pods, moves)
    assert max(loads_of(there).values()) <= max(loads_of(pods).values()) + 1e-6
    assert plan(there, busy, fixed, tolerance) == [], "a run right after a run moves nobody"


@settings(max_examples=40, deadline=None)
@given(counts=st.lists(st.integers(0, 400), min_size=2, max_size=8))
def test_equal_uids_are_spread_to_within_the_tolerance_by_as_few_moves_as_that_takes(
    counts: list[int],
) -> None:
    pods = named([[1.0] * count for count in counts])
    mean = sum(counts) / len(counts)
    moves = plan(pods, (), (), TOLERANCE)
    most = max(loads_of(after(pods, moves)).values())
    assert most <= max(mean * (1 + TOLERANCE), mean + 1) + 1e-6
    assert len(moves) <= sum(max(0, count - mean) for count in counts) + 1e-6
    if max(counts) <= mean * (1 + TOLERANCE):
        assert moves == []


def test_who_is_within_the_tolerance_is_left_alone_and_who_is_not_is_brought_well_within() -> None:
    assert plan(named([[1.0] * 108, [1.0] * 92]), (), (), TOLERANCE) == []
    assert len(plan(named([[1.0] * 112, [1.0] * 88]), (), (), TOLERANCE)) >= 7


def test_a_new_pod_gets_its_part() -> None:
    pods = named([[1.0] * 1_000] * 4 + [[]])
    moves = plan(pods, (), (), TOLERANCE)
    assert {move.target for move in moves} == {4}
    assert 600 <= len(moves) <= 800
    assert max(loads_after(pods, moves).values()) <= 800 * 1.1


def test_uids_with_a_call_move_only_where_nothing_else_helps() -> None:
    pods = named([[1.0] * 10, []])
    busy = {f"0-{number}" for number in range(5)}
    assert not any(move.uid in busy for move in plan(pods, busy, (), TOLERANCE))
    busy = {f"0-{number}" for number in range(8)}
    moves = plan(pods, busy, (), TOLERANCE)
    assert [move.uid in busy for move in moves] == [False] * 2 + [True] * 3


def test_one_uid_that_is_heavier_than_all_others_stays_and_light_ones_make_way() -> None:
    pods = named([[10.0, *[1.0] * 10], [1.0] * 10])
    moves = plan(pods, (), (), TOLERANCE)
    assert "0-0" not in {move.uid for move in moves}
    assert len(moves) == 5


def test_what_the_code_reports_counts_else_heads_and_half_at_the_most_the_time_of_calls() -> None:
    quiet = Weighed(dict.fromkeys("abcd", 1), {}, {}, [], [])
    assert weights({0: quiet}) == {0: dict.fromkeys("abcd", 1.0)}
    told = quiet._replace(loads={"a": 7.0}, shares={"a": 1.0})
    assert weights({0: told}) == {0: {"a": 7.0, "b": 1.0, "c": 1.0, "d": 1.0}}
    busy = quiet._replace(shares={"a": 0.6, "b": 0.6})
    assert weights({0: busy}) == {0: {"a": 1.5, "b": 1.5, "c": 0.5, "d": 0.5}}
    hardly = weights({0: quiet._replace(shares={"a": 1e-4}), 1: Weighed({}, {}, {}, [], [])})
    assert 1 <= hardly[0]["a"] < 1.001, "one short call makes nobody heavy"
    assert weights({}) == {}
