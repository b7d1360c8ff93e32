"""Batch look-ups: how fast are they, and how near to what Redis can deliver."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import ray_route
from benchmarks.harness import Plot, Report, Sample, take_turns, timed
from benchmarks.processors import WHERE, Processors
from benchmarks.setting import (
    SERVICE,
    RawSocket,
    chunked,
    fill,
    local_client,
    names,
    one_by_one,
    plain,
    store_of,
)
from ray_route.client import batch

QUESTION = "links of N uids: a GET for each, MGETs by redis-py, this library, and a bare socket"
_SIZES = (100, 200, 500, 1_000, 2_000, 5_000)
_TRIED = 50_000
_ONE_BY_ONE = 3_000  # as many are read one by one; the rest is extrapolated
_UIDS_PER_FIGURE = 50_000
_PEERS = ("GET each", "MGET 500", "MGET best", "batch", "in process", "in tasks", "raw socket")


def run(*, quick: bool) -> Report:
    """Measure all sizes."""
    sizes = (1_000, 10_000, 100_000) if quick else (1_000, 10_000, 100_000, 200_000, 10**6)
    runs = 3 if quick else 7
    report = Report("batch", QUESTION, ("uids", "way", "µs per uid", "uids/s", "times GET each"))
    uids = names(max(sizes))
    with local_client("bench-batch") as client:
        store, keys = store_of(client)
        fill(store, keys, uids)
        best = _best_chunk(client, uids[:_TRIED], report)
        processors = Processors(plain(store))
        per_uid = {
            size: _measure(
                client, uids[:size], runs, best, processors if size == sizes[-1] else None
            )
            for size in sizes
        }
    for size, samples in per_uid.items():
        _add(report, size, samples)
    for way, took in processors.per_uid().items():
        parts = ", ".join(f"{w} {one * 1e6:.2f}" for w, one in zip(WHERE, took, strict=True))
        row = (f"{max(sizes):,}", f"{way}, processors", f"{sum(took) * 1e6:.2f}", parts, "")
        report.rows.append(row)
    _aim(report, per_uid)
    report.plots["time"] = Plot(
        "Reading the links of N uids",
        "uids",
        "µs per uid",
        {
            way: ([*map(float, sizes)], [per_uid[size][way].median * 1e6 for size in sizes])
            for way in _PEERS
        },
    )
    return report


def _best_chunk(client: ray_route.RouteClient, uids: list[str], report: Report) -> int:
    """Return how many uids an MGET by redis-py should have."""
    store, keys = store_of(client)
    redis = plain(store)
    peers = {
        str(size): lambda size=size: timed(lambda: chunked(redis, keys, uids, size)) / len(uids)
        for size in _SIZES
    }
    took = {size: sample.median for size, sample in take_turns(peers, 5).items()}
    redis.close()
    best = min(took, key=lambda size: took[size])
    report.rows += [
        (f"{len(uids):,}", f"MGET {size}", f"{one * 1e6:.2f}", f"{1 / one:,.0f}", "")
        for size, one in took.items()
    ]
    return int(best)


def _measure(
    client: ray_route.RouteClient,
    uids: list[str],
    runs: int,
    best: int,
    processors: Processors | None,
) -> dict[str, Sample]:
    store, keys = store_of(client)
    redis, raw = plain(store), RawSocket(store, keys, uids)
    few = uids[:_ONE_BY_ONE]
    # A thousand uids take 1 ms, the luck of one moment: the same number of uids for every figure.
    times = max(1, _UIDS_PER_FIGURE // len(uids))

    def per_uid(work: Callable[[], object]) -> float:
        return timed(lambda: [work() for _ in range(times)]) / times / len(uids)

    def ours(limit: int) -> float:
        with mock.patch.object(batch, "IN_PROCESS", limit):
            return per_uid(lambda: client.batch_get_linked_pod(uids, SERVICE))

    as_it_is = batch.IN_PROCESS
    peers = {
        "GET each": lambda: timed(lambda: one_by_one(redis, keys, few)) / len(few),
        "MGET 500": lambda: per_uid(lambda: chunked(redis, keys, uids)),
        "MGET best": lambda: per_uid(lambda: chunked(redis, keys, uids, best)),
        "batch": lambda: ours(as_it_is),
        "in process": lambda: ours(len(uids)),
        "in tasks": lambda: ours(0),
        "raw socket": lambda: per_uid(raw.read),
    }
    found = client.batch_get_linked_pod(uids, SERVICE)
    assert dict(found.items()) == dict(sorted(chunked(redis, keys, uids).items()))
    samples = take_turns(_watched(peers, len(uids) * times, processors), runs)
    redis.close()
    raw.close()
    return samples


def _watched(
    peers: dict[str, Callable[[], float]], uids: int, processors: Processors | None
) -> dict[str, Callable[[], float]]:
    """Note what each takes of the processors, but for the one that reads a part of the uids."""
    if processors is None:
        return peers
    return {
        way: work
        if way == "GET each"
        else lambda way=way, work=work: processors.during(way, uids, work)
        for way, work in peers.items()
    }


def _add(report: Report, size: int, samples: dict[str, Sample]) -> None:
    for way, sample in samples.items():
        report.samples[f"{size} {way}"] = sample
        factor = samples["GET each"].over(sample).median
        took = sample.median
        row = (f"{size:,}", way, f"{took * 1e6:.2f}", f"{1 / took:,.0f}", f"{factor:.1f}")
        report.rows.append(row)


def _aim(report: Report, per_uid: dict[int, dict[str, Sample]]) -> None:
    largest, smallest = per_uid[max(per_uid)], per_uid[min(per_uid)]
    size = f"{max(per_uid):,} uids"
    each, mget = (largest[way].over(largest["batch"]) for way in ("GET each", "MGET 500"))
    report.aim(f"{size}, against a GET for each (times)", "at least", 130, each)
    report.aim(f"{size}, against MGETs of 500 (times)", "at least", 1.6, mget)
    best = largest["MGET best"].over(largest["batch"])
    report.aim(f"{size}, against MGETs of the best size (times)", "at least", 1.3, best)
    if 10**6 in per_uid:
        grown = per_uid[10**6]["batch"].over(per_uid[10**5]["batch"])
        report.aim("time per uid, 10⁶ against 10⁵ (times)", "at most", 1.2, grown)
    small = smallest["batch"].over(smallest["MGET 500"])
    report.aim(f"{min(per_uid):,} uids, time against MGETs of 500 (times)", "at most", 1.1, small)
