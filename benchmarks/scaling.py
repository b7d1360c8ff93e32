"""Does a look-up stay as quick with more client processes, and with more links."""

from __future__ import annotations

import itertools
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence

import ray

import ray_route
from benchmarks.harness import Plot, Report, Sample, take_turns
from benchmarks.setting import SERVICE, address, deployed, local_client

QUESTION = "throughput against client processes, and time per look-up against links"
_CLIENTS = (1, 2, 4, 8)
_LINKS = (1_000, 10_000, 100_000, 1_000_000)
_ASKED = 1_000
_SECONDS = 2.0
_FLAT = 1.3
_PER_CALL = 50_000


@ray.remote(num_cpus=0)
class Client:
    """One client process, which looks up for some seconds and says how often it could."""

    def __init__(self, namespace: str, url: str) -> None:
        self._client = ray_route.connect(namespace, url)
        self._numbers = itertools.count()
        self._known = [f"user-{number}" for number in range(_ASKED)]
        self._client.compute_linked_pods(self._known, SERVICE)

    def hits(self, seconds: float) -> float:
        """Look up known uids; return look-ups per second."""
        known = itertools.cycle(self._known)
        return _rate(seconds, lambda: self._client.compute_linked_pod(next(known), SERVICE))

    def misses(self, seconds: float) -> float:
        """Look up new uids one by one."""
        return _rate(seconds, lambda: self._client.compute_linked_pod(self._new(), SERVICE))

    def bulk_misses(self, seconds: float) -> float:
        """Look up new uids by the thousand."""
        return 1_000 * _rate(
            seconds,
            lambda: self._client.compute_linked_pods([self._new() for _ in range(1_000)], SERVICE),
        )

    def _new(self) -> str:
        return f"new-{os.getpid()}-{next(self._numbers)}"


def _rate(seconds: float, work: Callable[[], object]) -> float:
    done, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        work()
        done += 1
    return done / (time.perf_counter() - begun)


def run(*, quick: bool) -> Report:
    """Measure."""
    report = Report("scaling", QUESTION, ("what", "number", "figure", "unit"))
    _against_clients(report, 1 if quick else 3)
    _against_links(report, _LINKS[:3] if quick else _LINKS, 3 if quick else 7)
    return report


# Client processes.


def _against_clients(report: Report, runs: int) -> None:
    ways = {"hits": "hits", "misses": "misses, one by one", "bulk_misses": "misses, 1,000 a call"}
    rates: dict[str, list[float]] = {way: [] for way in ways}
    with local_client("bench-clients") as client, deployed(client):
        clients = [Client.remote(client.namespace, address(client)) for _ in range(max(_CLIENTS))]
        ray.get([one.hits.remote(0.1) for one in clients])
        for count, way in itertools.product(_CLIENTS, ways):
            some = clients[:count]
            peers = {way: lambda some=some, way=way: _together(some, way)}
            sample = take_turns(peers, runs, warm_up=0)[way]
            rates[way].append(sample.median)
            report.samples[f"{count} clients {way}"] = sample
            row = (ways[way], f"{count} clients", f"{sample.median:,.0f}", "look-ups/s")
            report.rows.append(row)
        for one in clients:
            ray.kill(one)
    lines = {ways[way]: ([*map(float, _CLIENTS)], rates[way]) for way in ways}
    report.plots["clients"] = Plot(
        f"{os.cpu_count()} CPUs, one router", "client processes", "look-ups/s", lines
    )


def _together(clients: Sequence[object], way: str) -> float:
    rates: list[float] = ray.get([getattr(one, way).remote(_SECONDS) for one in clients])
    return sum(rates)


# Links.


def _against_links(report: Report, counts: Sequence[int], runs: int) -> None:
    times: dict[str, list[Sample]] = {}
    made = 0
    with local_client("bench-links") as client, deployed(client):
        for count in counts:
            for start in range(made, count, _PER_CALL):
                uids = [f"user-{number}" for number in range(start, min(count, start + _PER_CALL))]
                client.compute_linked_pods(uids, SERVICE, timeout=300)
            made = count
            for way, sample in _look_ups(client, count, runs).items():
                times.setdefault(way, []).append(sample)
                report.samples[f"{count} links {way}"] = sample
                row = (way, f"{count:,} links", f"{sample.median * 1e6:.2f}", "µs")
                report.rows.append(row)
    for way, samples in times.items():
        factor = Sample([samples[-1].median / samples[0].median])
        report.aim(f"{way}: {counts[-1]:,} links against {counts[0]:,}", "at most", _FLAT, factor)
    report.plots["links"] = Plot(
        f"{_ASKED:,} uids out of N",
        "links",
        "µs per look-up",
        {
            way: ([*map(float, counts)], [sample.median * 1e6 for sample in samples])
            for way, samples in times.items()
        },
    )


def _look_ups(client: ray_route.RouteClient, count: int, runs: int) -> dict[str, Sample]:
    """Look up uids spread over all links: known here, known to the router, and as stored."""
    drawn = random.Random(7).sample(range(count), _ASKED)  # noqa: S311 - a load, no secret
    asked = [f"user-{number}" for number in drawn]
    near = client._session.near

    def by_router(uid: str) -> object:
        near.drop(SERVICE, uid)
        return client.get_linked_pod(uid, SERVICE)

    client.compute_linked_pods(asked, SERVICE)
    peers = {
        "a near hit": lambda: _each(
            asked * 20, lambda uid: client.compute_linked_pod(uid, SERVICE)
        ),
        "by the router's cache": lambda: _median(asked[:200], by_router),
        "from Redis": lambda: _median(
            asked, lambda uid: client.get_linked_pod_not_cache(uid, SERVICE)
        ),
    }
    return take_turns(peers, runs)


def _each(asked: Sequence[str], look_up: Callable[[str], object]) -> float:
    """Return the time of one look-up, the middle one of all rounds."""
    took = []
    for start in range(0, len(asked), _ASKED):
        begun = time.perf_counter()
        for uid in asked[start : start + _ASKED]:
            look_up(uid)
        took.append((time.perf_counter() - begun) / _ASKED)
    return statistics.median(took)


def _median(asked: Sequence[str], look_up: Callable[[str], object]) -> float:
    took = []
    for uid in asked:
        begun = time.perf_counter()
        look_up(uid)
        took.append(time.perf_counter() - begun)
    return statistics.median(took)
