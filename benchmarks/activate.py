"""First calls of users with an object each: their rate, their time, and what is kept of each."""

from __future__ import annotations

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray_route
from benchmarks.harness import Report, Sample, others_took, wait_for_quiet
from benchmarks.setting import SERVICE, address, local_client

QUESTION = "objects made a second, in bulk and one by one; one first call; memory per idle object"
_RUNS, _QUICK_RUNS = 5, 2
_BULK, _QUICK_BULK = 5_000, 1_000
_ALONE, _QUICK_ALONE = 500, 100
_SIDE_BY_SIDE = 8
_IDLE, _QUICK_IDLE = 100_000, 10_000
_AT_ONCE = 2_000
_PODS = 2
# What Dapr publishes for its actors: activations a second, and the 99th percentile of one.
_DAPR_RATE = 500.0
_DAPR_P99_MS = 6.2

_numbers = itertools.count()


class User:
    """Has one number of its own."""

    def __init__(self, uid: str) -> None:
        self.uid = uid
        self.calls = 0

    def add(self) -> int:
        """Count a call."""
        self.calls += 1
        return self.calls

    def memory(self) -> int:
        """Return the bytes that its pod's process has in memory."""
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def run(*, quick: bool) -> Report:
    """Measure."""
    report = Report("activate", QUESTION, ("what", "figure", "unit"))
    with local_client("bench-activate") as client:
        where: dict[str, Any] = {"namespace": client.namespace, "redis_url": address(client)}
        with ray_route.deploy(User, service=SERVICE, replicas=_PODS, per_uid=True, **where):
            users = client.service(SERVICE, User)
            _calls(report, users, quick=quick)
            _memory(report, users, _QUICK_IDLE if quick else _IDLE)
    return report


def _fresh(number: int) -> list[str]:
    return [f"user-{next(_numbers)}" for _ in range(number)]


def _calls(report: Report, users: Any, *, quick: bool) -> None:
    bulk, alone = (_QUICK_BULK, _QUICK_ALONE) if quick else (_BULK, _ALONE)
    _in_bulk(users, 100)  # what is opened at first use
    rates: dict[str, list[float]] = {"in bulk": [], "by 8 callers": [], "one after the other": []}
    waits: list[float] = []
    for _ in range(_QUICK_RUNS if quick else _RUNS):
        others_took.append(wait_for_quiet())
        rates["in bulk"].append(bulk / _in_bulk(users, bulk))
        rates["by 8 callers"].append(alone / _side_by_side(users, alone))
        begun = time.perf_counter()
        waits += [_first_call(users, uid) for uid in _fresh(alone)]
        rates["one after the other"].append(alone / (time.perf_counter() - begun))
    for way, values in rates.items():
        _add(report, f"first calls, {way}", Sample(values), "a second")
    waits.sort()
    for share in (0.5, 0.99):
        took = Sample([waits[int(share * len(waits))] * 1e3])
        _add(report, f"one first call, p{100 * share:.0f}", took, "ms")
    report.aim(
        "first calls in bulk, a second", "at least", 10 * _DAPR_RATE, Sample(rates["in bulk"])
    )
    report.aim("p99 of a first call, ms", "at most", _DAPR_P99_MS, took)


def _in_bulk(users: Any, number: int) -> float:
    calls = dict.fromkeys(_fresh(number), ())
    begun = time.perf_counter()
    counts = users.map("add", calls)
    took = time.perf_counter() - begun
    assert set(counts.values()) == {1}, "each has an object of its own"
    return took


def _side_by_side(users: Any, number: int) -> float:
    with ThreadPoolExecutor(_SIDE_BY_SIDE) as callers:
        begun = time.perf_counter()
        list(callers.map(lambda uid: _first_call(users, uid), _fresh(number)))
        return time.perf_counter() - begun


def _first_call(users: Any, uid: str) -> float:
    begun = time.perf_counter()
    assert users[uid].add.remote().result() == 1
    return time.perf_counter() - begun


def _memory(report: Report, users: Any, number: int) -> None:
    """Measure what an idle object takes, its own few bytes included."""
    asked = f"user-{next(_numbers)}"
    _in_bulk(users, _AT_ONCE)  # what so many calls at once take, and give back
    before = users[asked].memory.remote().result()
    for _ in range(0, number, _AT_ONCE):
        _in_bulk(users, _AT_ONCE)
    grown = users[asked].memory.remote().result() - before
    bytes_each = grown / (number / _PODS)
    _add(report, f"memory per idle object of {number:,}", Sample([bytes_each]), "bytes")
    begun = time.perf_counter()
    waits = sorted(_first_call(users, uid) for uid in _fresh(200))
    _add(report, "one first call beside them, p50", Sample([waits[100] * 1e3]), "ms")
    _add(
        report,
        "200 first calls beside them",
        Sample([200 / (time.perf_counter() - begun)]),
        "a second",
    )


def _add(report: Report, what: str, sample: Sample, unit: str) -> None:
    report.samples[what] = sample
    report.rows.append((what, f"{sample.median:,.1f}", unit))
