"""A hit in the near cache: what does it cost, and what would its peers cost."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from unittest import mock

from cachetools import TLRUCache

import ray_route
from benchmarks.harness import Plot, Report, Sample, take_turns
from benchmarks.setting import SERVICE, deployed, local_client, plain, store_of
from ray_route.clock import now

QUESTION = "finding a known uid: in the near cache, in other caches of a process, in Redis"
_THREADS = 4
_LOOKUPS = 200_000
_GETS = 5_000
_SIZES = (1, 1_000, 10_000, 100_000)
_USUAL = 10_000


def run(*, quick: bool) -> Report:
    """Measure all sizes of the set of uids that are asked for."""
    runs = 3 if quick else 9
    sizes = _SIZES[:3] if quick else _SIZES
    report = Report("near_hit", QUESTION, ("uids", "way", "µs per look-up", "times GET"))
    lines: dict[str, tuple[list[float], list[float]]] = {}
    with local_client("bench-near") as client, deployed(client):
        uids = [f"user-{number}" for number in range(max(sizes))]
        client.compute_linked_pods(uids, SERVICE, timeout=120)
        for size in sizes:
            samples = _measure(client, uids[:size], runs)
            _add(report, size, samples)
            if size == _USUAL:
                _aim(report, size, samples)
            for way, sample in samples.items():
                xs, ys = lines.setdefault(way, ([], []))
                xs.append(size)
                ys.append(sample.median * 1e6)
    report.plots["time"] = Plot(
        "Finding one of N known uids, drawn evenly", "uids", "µs per look-up", lines
    )
    return report


def _measure(client: ray_route.RouteClient, uids: Sequence[str], runs: int) -> dict[str, Sample]:
    store, keys = store_of(client)
    redis = plain(store)
    asked = random.Random(7).choices(uids, k=_LOOKUPS)  # noqa: S311 - a load, no secret
    own = {uid: keys.link(keys.shard(uid), SERVICE, uid) for uid in uids}
    compute, cached = client.compute_linked_pod, _Cachetools(client, uids)
    peers = {
        "compute_linked_pod": lambda: _each(asked, lambda uid: compute(uid, SERVICE)),
        "with a timeout": lambda: _each(asked, lambda uid: compute(uid, SERVICE, timeout=5)),
        "awaited": lambda: _awaited(client, asked),
        f"in {_THREADS} threads": lambda: _in_threads(asked, lambda uid: compute(uid, SERVICE)),
        "cachetools TLRUCache": lambda: _each(asked, cached.get),
        "redis-py GET": lambda: _each(asked[:_GETS], lambda uid: redis.get(own[uid]), 20),
    }
    with no_questions(client):
        samples = take_turns(peers, runs)
    redis.close()
    return samples


def _each(asked: Sequence[str], look_up: Callable[[str], object], chunk: int = 1_000) -> float:
    """Return the time of one look-up, less that of the loop and the function around it.

    The middle one of many chunks, each shorter than the turn that a busy machine gives to others.
    """
    return statistics.median(
        _chunk(asked[start : start + chunk], look_up) for start in range(0, len(asked), chunk)
    )


def _chunk(asked: Sequence[str], look_up: Callable[[str], object]) -> float:
    begun = time.perf_counter()
    for uid in asked:
        look_up(uid)
    between = time.perf_counter()
    for uid in asked:
        _nothing(uid)
    return (2 * between - begun - time.perf_counter()) / len(asked)


def _nothing(uid: str) -> str:
    return uid


def _awaited(client: ray_route.RouteClient, asked: Sequence[str], chunk: int = 1_000) -> float:
    aclient = ray_route.AsyncRouteClient(client._session)

    async def ask() -> list[float]:
        took = []
        for start in range(0, len(asked), chunk):
            begun = time.perf_counter()
            for uid in asked[start : start + chunk]:
                await aclient.compute_linked_pod(uid, SERVICE)
            took.append((time.perf_counter() - begun) / chunk)
        return took

    return statistics.median(asyncio.run(ask()))


def _in_threads(asked: Sequence[str], look_up: Callable[[str], object]) -> float:
    """Return the time of one look-up of all threads together: they share one interpreter lock."""
    parts = [asked[start::_THREADS] for start in range(_THREADS)]

    def work(some: Sequence[str]) -> None:
        for uid in some:
            look_up(uid)

    with ThreadPoolExecutor(_THREADS) as pool:
        begun = time.perf_counter()
        list(pool.map(work, parts))
        return (time.perf_counter() - begun) / len(asked)


class _Cachetools:
    """The same cache as one would make it of cachetools, with the lock that it needs."""

    def __init__(self, client: ray_route.RouteClient, uids: Sequence[str]) -> None:
        self._lock = Lock()
        self._links: TLRUCache[tuple[str, str], ray_route.Link] = TLRUCache(
            len(uids), ttu=lambda _, link, at: at + link.lease_s, timer=now
        )
        for uid in uids:
            self._links[SERVICE, uid] = client.compute_linked_pod(uid, SERVICE)

    def get(self, uid: str) -> ray_route.Link | None:
        """Return the link, with the lease that it was put with."""
        with self._lock:
            return self._links.get((SERVICE, uid))


@contextmanager
def no_questions(client: ray_route.RouteClient) -> Iterator[None]:
    """Fail if anything in here was not a hit."""
    with mock.patch.object(client._session, "may_read", side_effect=AssertionError):
        yield


def _add(report: Report, size: int, samples: dict[str, Sample]) -> None:
    for way, sample in samples.items():
        report.samples[f"{size} {way}"] = sample
        factor = samples["redis-py GET"].over(sample).median
        report.rows.append((f"{size:,}", way, f"{sample.median * 1e6:.2f}", f"{factor:.0f}"))


def _aim(report: Report, size: int, samples: dict[str, Sample]) -> None:
    hit, get = samples["compute_linked_pod"], samples["redis-py GET"]
    among = f"a hit among {size:,} uids"
    report.aim(f"{among} (µs)", "at most", 1.0, Sample([value * 1e6 for value in hit.values]))
    report.aim(f"{among}, against redis-py GET (times)", "at least", 100, get.over(hit))
