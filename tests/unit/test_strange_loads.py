"""Loads that no pod should report take nobody's users away, and bring nobody all of them."""

from __future__ import annotations

import math

import pytest

from ray_route.errors import InvalidInputError
from ray_route.model import PodRecord
from ray_route.placement import least_loaded
from ray_route.pod.load_state import LoadState
from ray_route.state.load_book import LoadBook
from ray_route.store.pods import parse_table

STRANGE = ["nan", "-nan", "inf", "-inf", "-1", "1e999", "", "many", "0x"]


def table(loads: list[str]) -> list[PodRecord]:
    rows = {
        f"{pod}:{name}".encode(): value.encode()
        for pod, load in enumerate(loads)
        for name, value in {
            "incarnation": "7",
            "state": "READY",
            "life": "alive",
            "load": load,
            "node": "n",
            "process": "1-2-3",
            "actor": "a",
            "heartbeat": "9",
            "seq": "1",
        }.items()
    }
    return parse_table(rows)


@pytest.mark.parametrize("load", [math.nan, math.inf, -math.inf, -1.0, "many", [1]])
def test_a_pod_can_not_report_such_a_load(load: object):
    state = LoadState(0.0)
    state.report(3.0)
    with pytest.raises(InvalidInputError, match="finite number from 0 on"):
        state.report(load)  # type: ignore[arg-type]
    assert state.weighted(uids=1, running=1) == 3.0


@pytest.mark.parametrize("load", [*STRANGE, "1e308"])
def test_a_strange_load_in_redis_neither_hides_its_pod_nor_breaks_placement(load: str):
    pods = table(["5.0", load, "5.0"])
    assert [pod.pod for pod in pods] == [0, 1, 2]
    assert all(math.isfinite(pod.load) and pod.load >= 0 for pod in pods)
    book, strategy = LoadBook(), least_loaded()
    for pod in pods:
        book.report("chat", pod)
    placed = [0, 0, 0]
    loads = book.load("chat", pods)
    for number in range(300):
        chosen = strategy(pods, loads, f"u{number}", None)
        loads[chosen] += 1
        placed[chosen] += 1
    assert sum(placed) == 300
    assert min(placed[0], placed[2]) >= 95
