"""Choosing a pod: what it costs by the number of pods there are."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from types import SimpleNamespace

from benchmarks.harness import Report, Sample, take_turns
from ray_route.model import Life, PodRecord, RoutingState
from ray_route.placement import Strategy, strategy_named
from ray_route.router.placer import Placer
from ray_route.state.load_book import LoadBook
from ray_route.state.pod_table import PodTable

QUESTION = "processor time of choosing a pod for a new uid, and of counting its load, by pods"
_PODS = (4, 64, 1_000)
_BATCHES = (1, 1_000)
_SERVICE = "bench"
_NODES = 8


def run(*, quick: bool) -> Report:
    """Measure without Ray and Redis: what the router does in its own process."""
    count, runs = (2_000, 3) if quick else (10_000, 7)
    report = Report("placing", QUESTION, ("strategy", "pods", "uids at once", "µs a uid"))
    for name in ("least_loaded", "prefer_node", "round_robin", "one that looks at all pods"):
        peers = {
            f"{name}, {pods} pods, {batch} at once": _Placing(name, pods, batch, count)
            for pods in _PODS
            for batch in _BATCHES
        }
        samples = take_turns(peers, runs)
        for (key, sample), peer in zip(samples.items(), peers.values(), strict=True):
            report.samples[key] = sample
            row = (name, f"{peer.pods:,}", f"{peer.batch:,}", f"{sample.median * 1e6:.2f}")
            report.rows.append(row)
        if name != "one that looks at all pods":
            _aim(report, name, samples)
    return report


def _aim(report: Report, name: str, samples: Mapping[str, Sample]) -> None:
    lone = [samples[f"{name}, {pods} pods, 1 at once"] for pods in (_PODS[0], _PODS[-1])]
    what = f"{name}: a lone uid among {_PODS[-1]:,} pods, against {_PODS[0]} (times)"
    report.aim(what, "at most", 1.5, lone[1].over(lone[0]))


def _all_looked_at(
    pods: Sequence[PodRecord], load: Mapping[int, float], _: str, __: str | None
) -> int:
    return min(pods, key=lambda pod: load[pod.pod]).pod


class _Placing:
    """A router's placer, and what it places by."""

    def __init__(self, name: str, pods: int, batch: int, count: int) -> None:
        self.pods, self.batch, self._rounds = pods, batch, max(1, count // batch)
        self._table, self._loads = PodTable(), LoadBook()
        for pod in range(pods):
            self._table.update(_SERVICE, _record(pod))
        known = SimpleNamespace(table=self._table, loads=self._loads)
        self._placer = Placer(known, _strategy(name), "bench")
        self._numbers = itertools.count(10**15)

    def __call__(self) -> float:
        """Return the time per uid, the pods' heartbeats of one second included."""
        for pod in self._table.pods(_SERVICE).copy().values():
            self._table.update(_SERVICE, pod)
        begun = time.process_time()
        for _ in range(self._rounds):
            self._place()
        return (time.process_time() - begun) / self._rounds / self.batch

    def _place(self) -> None:
        uids = [f"u{next(self._numbers)}" for _ in range(self.batch)]
        arrivals = self._placer.propose(_SERVICE, uids, "n0").arrivals()
        for pod, links in arrivals:
            self._loads.propose(_SERVICE, pod, links)
        for pod, links in arrivals:
            self._loads.placed(_SERVICE, pod, [next(self._numbers)] * links)
            self._loads.settle(_SERVICE, pod, links)


def _record(pod: int) -> PodRecord:
    node = f"n{pod % _NODES}"
    return PodRecord(pod, 7, RoutingState.READY, Life.ALIVE, 0.0, node, "process", "actor", 1)


def _strategy(name: str) -> Strategy:
    return _all_looked_at if name.startswith("one") else strategy_named(name, 0.0)
