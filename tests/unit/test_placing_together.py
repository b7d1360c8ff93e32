"""Uids of a group go to one pod, as long as that has room; a pod is never overfilled by groups."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray import cloudpickle

from ray_route.config import RouteConfig
from ray_route.errors import ConfigError
from ray_route.model import Life, PodRecord, RoutingState
from ray_route.placement import Loads, Strategy, before_slash, together
from ray_route.router.placer import Placer
from ray_route.state.load_book import LoadBook
from ray_route.state.pod_table import PodTable


def record(pod: int, **changes: Any) -> PodRecord:
    ready = (RoutingState.READY, Life.ALIVE)
    return replace(PodRecord(pod, 7, *ready, 0.0, "node", "process", "actor", 1), **changes)


class Space:
    """The placing part of a router, with services of so many pods."""

    def __init__(self, strategy: Strategy, **services: int) -> None:
        self.table, self.loads = PodTable(), LoadBook()
        for service, pods in services.items():
            for pod in range(pods):
                self.table.update(service, record(pod))
        membership = SimpleNamespace(table=self.table, loads=self.loads)
        self.placer = Placer(membership, strategy, "ns")
        self._epochs = iter(range(10**6, 10**9))

    def place(self, service: str, *uids: str) -> list[int]:
        proposal = self.placer.propose(service, uids, None)
        for pod, links in proposal.arrivals():
            self.loads.placed(service, pod, [next(self._epochs) for _ in range(links)])
        return list(proposal.chosen.values())

    def siblings(self, service: str, group: str, number: int, first: int = 0) -> list[int]:
        uids = [f"{group}/{each}" for each in range(first, first + number)]
        return [pod for uid in uids for pod in self.place(service, uid)]


@pytest.mark.parametrize(
    ("uid", "group"), [("a/1", "a"), ("a/b/c", "a"), ("a", None), ("/x", ""), ("a/", "a")]
)
def test_a_group_is_what_stands_before_the_first_slash(uid: str, group: str | None):
    assert before_slash(uid) == group


def test_siblings_are_together_and_groups_are_spread_over_all_pods():
    space = Space(together(), rollouts=4)
    homes = [space.siblings("rollouts", f"task-{group}", 8) for group in range(40)]
    assert all(len(set(home)) == 1 for home in homes)
    assert Counter(home[0] for home in homes) == dict.fromkeys(range(4), 10)


def test_siblings_that_come_in_one_batch_are_together_too():
    space = Space(together(), rollouts=4)
    uids = [f"task-{number % 6}/{number}" for number in range(48)]
    homes = dict(zip(uids, space.place("rollouts", *uids), strict=True))
    assert len({(before_slash(uid), pod) for uid, pod in homes.items()}) == 6


def test_those_who_come_when_pods_were_added_go_to_their_siblings():
    space = Space(together(), rollouts=2)
    homes = {group: space.siblings("rollouts", group, 8)[0] for group in "abcdef"}
    space.table.update("rollouts", record(2))
    later = {group: space.siblings("rollouts", group, 1, first=8)[0] for group in "abcdef"}
    assert later == homes
    assert space.siblings("rollouts", "new", 1) == [2]


def test_a_group_too_large_for_a_pod_goes_on_at_another_and_fills_none():
    space = Space(together(lead=8.0), rollouts=4)
    for other in range(40):
        space.place("rollouts", f"other-{other}")
    homes = space.siblings("rollouts", "crowd", 400)
    per_pod = Counter(homes)
    assert set(per_pod) == set(range(4))
    assert max(per_pod.values()) + 10 <= 1.25 * 110 + 8 + 1
    changes = sum(one != other for one, other in itertools.pairwise(homes))
    assert changes < 40, "in long runs, not one by one"


@given(
    st.lists(st.sampled_from(["a/{}", "b/{}", "c/{}", "single-{}"]), max_size=120),
    st.lists(st.integers(0, 200), min_size=1, max_size=6),
    st.floats(0, 2),
    st.floats(0, 20),
)
def test_no_pod_gets_a_sibling_beyond_its_room_unless_it_is_the_least_loaded(
    shapes: list[str], loads: list[int], over: float, lead: float
):
    place = together(over=over, lead=lead)
    among = [record(pod) for pod in range(len(loads))]
    load = Loads({pod: float(units) for pod, units in enumerate(loads)})
    for number, shape in enumerate(shapes):
        room = (1 + over) * sum(load.values()) / len(load) + lead
        chosen = place(among, load, shape.format(number), None)
        assert load[chosen] <= room or load[chosen] == min(load.values())
        load[chosen] += 1


def test_a_group_whose_pod_is_gone_goes_on_elsewhere_together():
    space = Space(together(), rollouts=4)
    (home,) = set(space.siblings("rollouts", "task", 5))
    space.table.update("rollouts", record(home, life=Life.GONE, seq=1))
    again = space.siblings("rollouts", "task", 5)
    assert len(set(again)) == 1
    assert home not in again


def test_a_pod_that_is_shown_as_full_gets_no_sibling_and_bends_no_mean():
    place, among = together(lead=0.0), [record(pod) for pod in range(3)]
    home = place(among, {0: 0.0, 1: 9.0, 2: 9.0}, "a/1", None)
    assert home == 0
    assert place(among, {0: math.inf, 1: 9.0, 2: 8.0}, "a/2", None) == 2
    assert place(among, {0: 0.0, 1: 2.0, 2: 10.0}, "a/3", None) == 0, "2 is far above the mean"
    assert place(among, {0: 40.0, 1: math.inf, 2: 8.0}, "a/4", None) == 2, "as full as no pod is"


def test_services_do_not_take_each_others_groups_along():
    place, among = together(), [record(0), record(1)]
    first = [
        place(among, Loads(loads, service=service), "same/1", None)
        for service, loads in (("chat", {0: 0.0, 1: 5.0}), ("game", {0: 5.0, 1: 0.0}))
    ]
    level = {0: 5.0, 1: 5.0}
    later = [
        place(among, Loads(level, service=service), "same/2", None) for service in ("chat", "game")
    ]
    assert first == later == [0, 1]
    assert LoadBook().ranked("chat", among).service == "chat"


def test_uids_of_no_group_are_spread_evenly():
    space = Space(together(), chat=4)
    assert Counter(space.place("chat", *map(str, range(100)))) == dict.fromkeys(range(4), 25)


def test_groups_are_what_the_callers_function_says():
    space = Space(together(lambda uid: uid[:3]), chat=4)
    assert len(set(space.place("chat", "abc1", "abc2", "abc3"))) == 1


def test_the_groups_that_were_not_asked_for_longest_are_forgotten():
    place, among = together(groups=2), [record(0), record(1)]
    place(among, {0: 0.0, 1: 5.0}, "a/1", None)
    place(among, {0: 0.0, 1: 5.0}, "b/1", None)
    place(among, {0: 0.0, 1: 5.0}, "a/2", None)
    place(among, {0: 0.0, 1: 5.0}, "c/1", None)  # now b is not known any more
    later = {0: 5.0, 1: 0.0}
    assert [place(among, later, f"{group}/9", None) for group in "abc"] == [0, 1, 1]


def test_it_has_a_name_and_can_be_sent_to_the_router():
    named = RouteConfig(placement="together").strategy()
    sent = cloudpickle.loads(cloudpickle.dumps(together(lambda uid: uid[0], over=0.5)))
    for place in (named, sent):
        assert place([record(0)], {0: 3.0}, "a/1", None) == 0


@pytest.mark.parametrize(
    ("option", "value"),
    [("over", -0.1), ("over", math.inf), ("lead", -1.0), ("lead", math.nan), ("groups", 0)],
)
def test_wrong_numbers_are_refused(option: str, value: Any):
    with pytest.raises(ConfigError) as caught:
        together(**{option: value})
    assert caught.value.option == option


def test_a_function_of_groups_that_fails_is_named_in_the_error():
    space = Space(together(lambda uid: uid[99]), chat=2)
    proposal = space.placer.propose("chat", ["ann"], None)
    assert isinstance(proposal.refused["ann"], ConfigError)
    assert "IndexError" in str(proposal.refused["ann"])
