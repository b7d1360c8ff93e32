"""An upgrade's plan: each generation has pods of its own, and the newest word of it is believed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_route.controller.generations import completed, newer, turned_back, upgraded
from ray_route.policies import Autoscale
from ray_route.store.wanted import Upgrade, Wanted

FIRST = Wanted(3, "old", frozenset({1}))
HOW = Upgrade(0, 0, "", surge=2, drain_s=5.0, request="r1")


@given(st.sets(st.integers(0, 30)), st.integers(0, 20), st.integers(1, 9))
def test_a_generation_gets_indexes_that_nobody_has(taken: set[int], first: int, count: int) -> None:
    wanted = replace(FIRST, replicas=count, first=first)
    after = upgraded(wanted, taken, "new", HOW)
    assert not set(after.indexes) & {*taken, *wanted.indexes}
    lower = [set(range(start, start + count)) for start in range(after.first)]
    assert all(block & {*taken, *wanted.indexes} for block in lower)


INDEXES = st.sets(st.integers(0, 30), min_size=1)


@given(INDEXES, st.sets(st.integers(0, 30)))
def test_each_generation_keeps_its_gaps_through_an_upgrade(some: set[int], there: set[int]) -> None:
    wanted = FIRST.of(some)
    assert (wanted.indexes, wanted.replicas) == (tuple(sorted(some)), len(some))
    forth = upgraded(wanted, there, "new", HOW)
    block = range(forth.first, forth.first + len(some))
    assert forth.indexes == tuple(block)
    assert turned_back(forth).indexes == wanted.indexes
    assert completed(turned_back(forth)).gaps == wanted.gaps
    assert (completed(forth).gaps, completed(forth).indexes) == (frozenset(), tuple(block))


@pytest.mark.slow
@given(INDEXES, st.integers(1, 40), st.sets(st.integers(0, 40)))
def test_gaps_are_filled_first_and_what_is_there_is_wanted(
    some: set[int], replicas: int, there: set[int]
) -> None:
    wanted = replace(FIRST.of(some), cordons=frozenset({min(some), max(some)}))
    scaled = wanted.scaled(replicas)
    assert scaled.replicas == len(scaled.indexes) == replicas
    kept, new = set(scaled.indexes) & some, set(scaled.indexes) - some
    assert sorted(kept) == sorted(some)[: len(kept)], "the highest go"
    assert not (new and kept < some), "none goes while others come"
    free = set(range(max(new, default=0))) - some
    assert free <= new, "the lowest come"
    assert scaled.cordons == wanted.cordons & set(scaled.indexes)
    more = wanted.including(there)
    assert set(more.indexes) >= some | there
    assert set(more.indexes) & wanted.gaps <= there, "no gap is filled by itself"


def test_indexes_take_turns_when_all_goes_well() -> None:
    wanted, firsts = FIRST, []
    for _ in range(4):
        wanted = completed(upgraded(wanted, wanted.indexes, "new", HOW))
        firsts.append(wanted.first)
    assert firsts == [3, 0, 3, 0]
    assert (wanted.generation, wanted.cordons) == (5, frozenset())


def test_the_way_back_leads_to_what_there_was() -> None:
    forth = upgraded(FIRST, (), "new", HOW)
    back = turned_back(forth)
    assert back.upgrade is not None
    assert (back.upgrade.back, back.upgrade.recipe, back.upgrade.first) == (True, "new", 3)
    done = completed(back)
    assert done == replace(FIRST, step=3, ended_upgrades=("r1 undone",))
    again = upgraded(back, range(6), "newer", replace(HOW, request="r2"))
    assert (again.generation, again.first) == (3, 6), "none of its pods is like those of the one"
    assert again.ended_upgrades == ("r1 undone",), "it is given up for the next"


def test_the_last_upgrades_that_ended_are_remembered() -> None:
    wanted = FIRST
    for request in map(str, range(20)):
        wanted = completed(upgraded(wanted, (), "new", replace(HOW, request=request)))
    assert wanted.ended_upgrades[-3:] == ("17", "18", "19")
    assert len(wanted.ended_upgrades) < 10


def test_ray_knows_of_generations_and_redis_of_what_came_after() -> None:
    forth = upgraded(FIRST, (), "new", HOW)
    done = completed(forth)
    scaled = replace(done, replicas=5, cordons=frozenset({4}))
    assert newer(scaled, done) == scaled
    assert newer(replace(scaled, upgrade=forth.upgrade), done) == scaled, "a damaged field"
    assert newer(FIRST, forth) == forth, "a store of yesterday"
    assert newer(forth, None) == forth, "its note was not made any more"
    assert newer(None, forth) == forth
    found = newer(FIRST, done)
    assert found is not None
    assert (found.first, found.generation, found.replicas) == (3, 2, 1), "as many as are there"


def test_who_decides_how_many_pods_there_are_outlives_redis() -> None:
    begun = replace(FIRST, autoscale=Autoscale(1, 4, 500.0, None, 60.0), step=1)
    for found in (None, replace(begun, autoscale=None), FIRST):
        held = newer(found, begun)
        assert held is not None
        assert held.autoscale == begun.autoscale
    later = replace(begun.of([1, 3, 4]), cordons=frozenset({3}))
    assert newer(later, begun) == later
    assert newer(replace(begun, autoscale=None, step=2), begun) == replace(
        begun, autoscale=None, step=2
    )
