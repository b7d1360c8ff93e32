"""A pod that joins late gets a share of the new uids that grows, not all of them."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest

from ray_route.model import Life, PodRecord, RoutingState
from ray_route.placement import Strategy, least_loaded, prefer_node, round_robin
from ray_route.router.placer import Placer
from ray_route.state.load_book import LoadBook
from ray_route.state.pod_table import PodTable

S = "chat"
RAMP_S = 30.0
BEGAN_US = 1_800_000_000_000_000


class Service:
    """Pods that began at some seconds, and what a router places on them."""

    def __init__(
        self, *began_s: float, load: float = 0.0, strategy: Strategy | None = None
    ) -> None:
        self.table, self.loads = PodTable(), LoadBook()
        self.began_s = began_s
        self.load = dict.fromkeys(range(len(began_s)), load)
        membership = SimpleNamespace(table=self.table, loads=self.loads)
        self.placer = Placer(membership, strategy or least_loaded(), "ns", RAMP_S)
        self._uids = iter(range(10**9))
        self.at(max(began_s))

    def at(self, seconds: float) -> None:
        """Have all pods report, at that time."""
        now_us = BEGAN_US + int(seconds * 1e6)
        for pod, began_s in enumerate(self.began_s):
            life = BEGAN_US + int(began_s * 1e6)
            ready = (RoutingState.READY, Life.ALIVE)
            where = (f"n{pod}", "process", "actor")
            record = PodRecord(pod, life, *ready, self.load[pod], *where, now_us, seq=now_us)
            self.table.update(S, record)
            self.loads.report(S, record)

    def place(self, uids: int, batch: int = 1, node: str | None = None) -> Counter[int]:
        taken: Counter[int] = Counter()
        for _ in range(uids // batch):
            names = [str(next(self._uids)) for _ in range(batch)]
            proposal = self.placer.propose(S, names, node)
            taken.update(proposal.chosen.values())
            for pod, count in proposal.arrivals():
                self.loads.propose(S, pod, count)
                self.loads.placed(S, pod, [2 * BEGAN_US] * count)
                self.loads.settle(S, pod, count)
                self.load[pod.pod] += count
        return taken


@pytest.mark.parametrize("batch", [1, 50])
def test_one_that_joins_four_gets_twice_an_equal_share_and_no_more(batch: int) -> None:
    service = Service(0, 0.3, 0.9, 1.9, 100, load=1_000.0)
    service.load[4] = 0.0
    service.at(101)
    taken = service.place(1_000, batch)
    assert taken[4] == 400
    assert {taken[pod] for pod in range(4)} == {150}


def test_the_limit_is_lifted_little_by_little() -> None:
    service = Service(0, 0, 0, 0, 100, load=1e9)
    service.load[4] = 0.0
    shares = []
    for seconds in (129, 137.5, 145, 152.5, 160):
        service.at(seconds)
        shares.append(service.place(1_000)[4])
    assert shares == sorted(shares)
    assert shares[0] == pytest.approx(400, abs=2)
    assert 500 < shares[2] < 900
    assert shares[-1] == 1_000


def test_pods_that_join_together_are_filled_evenly_at_once() -> None:
    assert set(Service(0, 0.5, 1.0, 1.9).place(400).values()) == {100}


def test_two_that_join_two_may_take_all_between_them() -> None:
    service = Service(0, 0, 50, 50, load=50.0)
    service.load[2] = service.load[3] = 0.0
    service.at(51)
    assert service.place(60) == {2: 30, 3: 30}


def test_loads_are_exact_again_after_each_placement() -> None:
    service = Service(0, 0, 0, 0, 100, load=10.0)
    service.load[4] = 0.0
    service.at(101)
    service.place(3)
    pods = service.table.available(S)
    assert dict(service.loads.ranked(S, pods)) == service.loads.load(S, pods)
    service.place(300)
    assert dict(service.loads.ranked(S, pods)) == service.loads.load(S, pods)


def test_where_no_other_can_take_them_it_takes_all() -> None:
    service = Service(0, 0, 0, 100, load=9.0, strategy=prefer_node())
    assert service.place(30, node="n3") == {3: 30}


def test_turns_are_taken_as_ever_where_loads_do_not_count() -> None:
    taken = Service(0, 0, 0, 100, load=9.0, strategy=round_robin()).place(400)
    assert set(taken.values()) == {100}
