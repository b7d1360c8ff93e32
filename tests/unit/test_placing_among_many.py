"""Placing a uid looks at few pods, however many there are, and at the right ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_route.model import Life, PodRecord, RoutingState
from ray_route.placement import Loads, Strategy, least_loaded, prefer_node, round_robin
from ray_route.router.placer import Placer, Proposal
from ray_route.state.load_book import LoadBook
from ray_route.state.pod_table import PodTable

S = "chat"
LOOKS = Counter[str]()


class Watched(PodRecord):
    """A record that counts how often it is looked at."""

    def __getattribute__(self, name: str) -> Any:
        LOOKS["pods"] += 1
        return super().__getattribute__(name)


def record(pod: int, node: str = "n0") -> PodRecord:
    return Watched(pod, 7, RoutingState.READY, Life.ALIVE, 0.0, node, "process", "actor", 1)


class Space:
    """What a router places by, without a server: what is placed here is written at once."""

    def __init__(self, pods: int, strategy: Strategy, nodes: int = 1) -> None:
        self.table, self.loads = PodTable(), LoadBook()
        for pod in range(pods):
            self.table.update(S, record(pod, f"n{pod % nodes}"))
        self.placer = Placer(
            SimpleNamespace(table=self.table, loads=self.loads), strategy, "ns", 30.0
        )
        self._epochs = iter(range(10**6, 10**9))

    def propose(self, *uids: str, node: str | None = None) -> Proposal:
        return self.placer.propose(S, uids, node)

    def place(self, *uids: str, node: str | None = None) -> list[int]:
        proposal = self.propose(*uids, node=node)
        for pod, links in proposal.arrivals():
            self.loads.propose(S, pod, links)
            self.loads.placed(S, pod, [next(self._epochs) for _ in range(links)])
            self.loads.settle(S, pod, links)
        return list(proposal.chosen.values())

    def heartbeat(self, pod: int, load: float, at_us: int = 1) -> None:
        held = self.table.pods(S)[pod]
        values = {field.name: getattr(held, field.name) for field in fields(held)}
        new = Watched(**{**values, "load": load, "seq": held.seq + 1, "heartbeat_us": at_us})
        self.table.update(S, new)
        self.loads.report(S, new)


def looks(pods: int, strategy: Strategy, uids: Sequence[str]) -> int:
    """Count how often any pod is looked at while uids are placed, one after the other."""
    space = Space(pods, strategy, nodes=4)
    space.place("first", node="n0")
    LOOKS.clear()
    for uid in uids:
        space.place(uid, node="n0")
    return LOOKS["pods"]


@pytest.mark.parametrize("make", [least_loaded, round_robin, prefer_node])
def test_a_uid_takes_as_many_looks_among_a_thousand_pods_as_among_four(make: Any):
    uids = [f"u{number}" for number in range(50)]
    assert looks(1_000, make(), uids) == looks(4, make(), uids) < 20 * len(uids)


def test_a_strategy_of_ones_own_may_be_as_quick():
    def mine(
        pods: Sequence[PodRecord], load: Mapping[int, float], uid: str, node: str | None
    ) -> int:
        assert isinstance(load, Loads)
        return load.lightest() or 0

    assert looks(1_000, mine, ["a", "b"]) == looks(4, mine, ["a", "b"])


def test_many_uids_are_spread_exactly_evenly_in_batches_of_any_size():
    space, placed = Space(8, least_loaded()), Counter[int]()
    for size in (1, 7, 992, 1, 999, 8_000):
        placed.update(space.place(*[f"{size}-{number}" for number in range(size)]))
    assert placed == dict.fromkeys(range(8), 1_250)


@pytest.mark.parametrize("tolerance", [0.0, 3.0])
def test_with_a_tolerance_too_none_gets_more_than_that_ahead(tolerance: float):
    space, placed = Space(5, least_loaded(tolerance)), Counter[int]()
    for number in range(500):
        placed.update(space.place(f"u{number}"))
        counts = [placed[pod] for pod in range(5)]
        assert max(counts) - min(counts) <= tolerance + 1


def test_what_was_proposed_and_never_written_counts_no_more():
    space = Space(2, least_loaded())
    lost = space.propose(*[f"lost-{number}" for number in range(100)])
    assert Counter(lost.chosen.values()) == {0: 50, 1: 50}
    space.propose("lost")
    placed = space.place("a") + space.place("b")
    assert sorted(placed) == [0, 1]


def test_a_report_and_a_new_pod_are_heeded_at_once():
    space = Space(3, least_loaded())
    space.place("a", "b", "c")
    space.heartbeat(0, 9.0)
    space.heartbeat(1, 9.0)
    assert space.place("d") == [2]
    space.table.update(S, record(3))
    assert space.place("e") == [3]
    space.table.update(S, replace(record(2), state=RoutingState.DENY_NEW, seq=9))
    space.table.update(S, replace(record(3), life=Life.GONE, seq=9))
    assert set(space.place(*map(str, range(9)))) == {0, 1}


def test_the_pods_of_a_node_are_preferred_and_evened_out():
    space = Space(8, prefer_node(), nodes=4)
    assert Counter(space.place(*map(str, range(10)), node="n1")) == {1: 5, 5: 5}
    assert sorted(space.place(*map(str, range(6)), node="elsewhere")) == [0, 2, 3, 4, 6, 7]


_MOVES = st.tuples(
    st.sampled_from(["propose", "place", "left", "settle", "report"]),
    st.integers(0, 3),
    st.integers(0, 5),
)


@given(st.lists(_MOVES, max_size=30))
def test_loads_in_order_are_those_of_the_book_whatever_happens(moves: list[tuple[str, int, int]]):
    space = Space(4, least_loaded(), nodes=2)
    for at, (what, pod, number) in enumerate(moves):
        held = space.table.pods(S)[pod]
        if what == "propose":
            space.loads.propose(S, held, number)
        elif what == "settle":
            space.loads.settle(S, held, number)
        elif what == "left":
            space.loads.left(S, pod, 7, 10**6 + number)
        elif what == "report":
            space.heartbeat(pod, float(number), at)
        else:
            space.place(*[f"u{uid}" for uid in range(number)], node="n1")
        pods = space.table.available(S)
        ranked = space.loads.ranked(S, pods)
        assert ranked == space.loads.load(S, pods)
        for node in (None, "n0", "n1"):
            there = [pod.pod for pod in pods if node in (None, pod.node)]
            lightest = [ranked.lightest(turn, node=node) for turn in range(len(there))]
            least = min(ranked[pod] for pod in there)
            assert set(lightest) == {pod for pod in there if ranked[pod] == least}
