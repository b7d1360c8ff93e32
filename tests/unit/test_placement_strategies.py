from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_route.errors import ConfigError
from ray_route.model import Life, PodRecord, RoutingState
from ray_route.placement import (
    Strategy,
    least_loaded,
    prefer_node,
    round_robin,
    strategy_named,
)


def pods(*indexes: int, node: str = "node-1") -> list[PodRecord]:
    return [
        PodRecord(index, 7, RoutingState.READY, Life.ALIVE, 0.0, node, "process", "actor", 1)
        for index in indexes
    ]


def place_many(
    place: Strategy, among: list[PodRecord], load: Mapping[int, float], number: int
) -> dict[int, float]:
    """Place as the router does: every placement counts as one unit of load."""
    after = dict(load)
    for turn in range(number):
        after[place(among, after, f"u{turn}", "node-1")] += 1
    return after


def test_a_burst_on_idle_pods_is_spread_exactly_evenly():
    after = place_many(least_loaded(), pods(0, 1, 2, 3), dict.fromkeys(range(4), 0.0), 100)
    assert after == {0: 25, 1: 25, 2: 25, 3: 25}


def test_unequal_loads_are_levelled_first():
    assert place_many(least_loaded(), pods(0, 1, 2), {0: 5.0, 1: 0.0, 2: 3.0}, 7) == {
        0: 5,
        1: 5,
        2: 5,
    }


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(1, 100))
def test_least_loaded_never_leaves_the_least_loaded(loads: list[int], number: int):
    load = {pod: float(units) for pod, units in enumerate(loads)}
    among = pods(*load)
    place = least_loaded()
    for turn in range(number):
        least = min(load.values())
        chosen = place(among, load, f"u{turn}", None)
        assert load[chosen] == least
        load[chosen] += 1


def test_pods_within_the_tolerance_take_turns_and_others_get_nothing():
    load = {0: 1.0, 1: 3.0, 2: 3.1}
    place = least_loaded(load_tolerance=2.0)
    chosen = Counter(place(pods(0, 1, 2), load, "u", None) for _ in range(100))
    assert chosen == {0: 50, 1: 50}


def test_a_pod_of_no_load_beside_idle_ones_gets_no_crowd():
    load = dict.fromkeys(range(3), 0.0)
    chosen = Counter(least_loaded()(pods(0, 1, 2), load, "u", None) for _ in range(300))
    # A new strategy each time, as many routers at once: none of the pods is everybody's first.
    assert all(chosen[pod] > 30 for pod in range(3))


def test_round_robin_takes_all_in_turn_whatever_their_load():
    place, among = round_robin(), pods(0, 5, 9)
    chosen = [place(among, {0: 99.0, 5: 0.0, 9: 1.0}, "u", None) for _ in range(9)]
    assert sorted(chosen[:3]) == [0, 5, 9]
    assert chosen == chosen[:3] * 3


def test_prefer_node_takes_the_least_loaded_pod_of_the_callers_node():
    among = [*pods(0, 1, node="near"), *pods(2, node="far")]
    load = {0: 9.0, 1: 8.0, 2: 0.0}
    assert {prefer_node()(among, load, "u", "near") for _ in range(5)} == {1}


@pytest.mark.parametrize("node", ["elsewhere", None])
def test_prefer_node_falls_back_to_any_node(node: str | None):
    among = [*pods(0, node="near"), *pods(2, node="far")]
    assert prefer_node()(among, {0: 1.0, 2: 0.0}, "u", node) == 2


def test_prefer_node_has_a_tolerance():
    place, load = prefer_node(load_tolerance=1.0), {0: 0.0, 1: 1.0}
    assert {place(pods(0, 1), load, "u", "node-1") for _ in range(4)} == {0, 1}


@pytest.mark.parametrize("name", ["least_loaded", "round_robin", "prefer_node", "together"])
def test_a_single_pod_is_always_chosen(name: str):
    place = strategy_named(name, 0.0)
    assert {place(pods(0), {0: 7.0}, "u", "node-1") for _ in range(3)} == {0}


def test_an_unknown_name_is_a_config_error_that_lists_the_known_ones():
    with pytest.raises(ConfigError, match="round_robin") as caught:
        strategy_named("fastest", 0.0)
    assert caught.value.option == "placement"
