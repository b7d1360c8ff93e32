"""A real log and a Zipf load from several processes: how often is it a hit, how slow if not."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import ray
import redis

import ray_route
from benchmarks.harness import Report, Sample, take_turns
from benchmarks.setting import SERVICE, address, deployed, local_client
from ray_route.demo.trace import Trace, read_trace, zipf_trace
from ray_route.protocol.wire import pack_question, unpack_answers
from ray_route.store.keys import Keys

QUESTION = "look-ups of a log's recipients, shared out to 1, 2 and 4 client processes"
LOG = Path(__file__).resolve().parents[2] / "shared" / "data" / "college_msg.txt"
_ZIPF_PEOPLE = 100_000
_ZIPF_EVENTS = 60_000
_CLIENTS = (1, 2, 4)
_COLUMNS = ("load", "clients", "way", "hits", "look-ups/s", "times direct", "p50 µs", "p99 µs")
# How many events a process has seen before those that are timed, in the last rows.
_LIVED = 300_000
# A peer without a cache does the same for every look-up: a part of the load shows it.
_OF_PEERS = 2_000

_LATER = f"cached, after {_LIVED:,} events each"

_Took = list[float]


@ray.remote(num_cpus=0)
class Client:
    """One client process. Every method returns how long each look-up took, and the hits."""

    def __init__(self, namespace: str, url: str, shards: int) -> None:
        self._client = ray_route.connect(namespace, url)
        self._session = self._client._session
        self._redis = redis.Redis.from_url(url, protocol=2)
        self._keys = Keys(f"{namespace}-direct", shards)

    def forget(self) -> None:
        """Begin with an empty near cache."""
        self._session.near.flush()

    def live(self, seed: int) -> None:
        """See many events first, all at once; whom they are for is known then."""
        seen = set(zipf_trace(seed, _LIVED, _ZIPF_PEOPLE).recipients)
        self._client.compute_linked_pods(seen, SERVICE, timeout=120)

    def cached(self, uids: Sequence[str]) -> tuple[_Took, int]:
        """Look up as a user does."""
        before = self._session.near.hits
        took = _each(uids, lambda uid: self._client.compute_linked_pod(uid, SERVICE))
        return took, self._session.near.hits - before

    def by_hops(self, uids: Sequence[str]) -> tuple[_Took, int]:
        """Ask the router for every look-up."""
        compute = self._session.namespace.router.compute

        def look_up(uid: str) -> object:
            return unpack_answers(ray.get(compute.remote(pack_question(SERVICE, {uid: 0}))))

        return _each(uids, look_up), 0

    def direct(self, uids: Sequence[str]) -> tuple[_Took, int]:
        """Ask Redis for every look-up, placing by the same command."""

        def look_up(uid: str) -> object:
            key = self._keys.link(self._keys.shard(uid), SERVICE, uid)
            return self._redis.set(key, "0:1:1", nx=True, get=True, px=300_000)

        return _each(uids, look_up), 0


def _each(uids: Iterable[str], look_up: Callable[[str], object]) -> _Took:
    took = []
    for uid in uids:
        begun = time.perf_counter()
        look_up(uid)
        took.append(time.perf_counter() - begun)
    return took


def run(*, quick: bool) -> Report:
    """Measure both loads."""
    runs = 1 if quick else 5
    report = Report("mixed", QUESTION, _COLUMNS)
    with local_client("bench-mixed") as client, deployed(client):
        shards = client._session.namespace.config.shards
        clients = [
            Client.remote(client.namespace, address(client), shards) for _ in range(max(_CLIENTS))
        ]
        for name, trace in _loads().items():
            for count in _CLIENTS:
                _measure(report, name, trace, clients[:count], runs)
        for one in clients:
            ray.kill(one)
    return report


def _loads() -> dict[str, Trace]:
    zipf = zipf_trace(7, _ZIPF_EVENTS, _ZIPF_PEOPLE)
    return ({"log": read_trace(LOG)} if LOG.exists() else {}) | {"zipf": zipf}


def _measure(report: Report, name: str, trace: Trace, clients: Sequence[Any], runs: int) -> None:
    seen: dict[str, list[tuple[_Took, int]]] = {}
    is_last = (name, len(clients)) == ("zipf", max(_CLIENTS))

    def replay(way: str, events: Sequence[str]) -> float:
        ray.get([one.forget.remote() for one in clients])
        return timed(way, way, events)

    def later(events: Sequence[str]) -> float:
        ray.get([one.live.remote(seed) for seed, one in enumerate(clients, start=1_000)])
        return timed(_LATER, "cached", events)

    def timed(name: str, way: str, events: Sequence[str]) -> float:
        shares = [events[start :: len(clients)] for start in range(len(clients))]
        pairs = zip(clients, shares, strict=True)
        begun = time.perf_counter()
        answers = ray.get([getattr(one, way).remote(share) for one, share in pairs])
        took = time.perf_counter() - begun
        seen.setdefault(name, []).extend(answers)
        return took / len(events)

    few = trace.recipients[: _OF_PEERS * len(clients)]
    peers = {
        "cached": lambda: replay("cached", trace.recipients),
        "by_hops": lambda: replay("by_hops", few),
        "direct": lambda: replay("direct", few),
    }
    if is_last:
        peers[_LATER] = lambda: later(trace.recipients)
    samples = take_turns(peers, runs)
    if is_last:
        _aim(report, samples, len(clients))
    for way, sample in samples.items():
        report.samples[f"{name} {len(clients)} {way}"] = sample
        rate = f"{1 / sample.median:,.0f}"
        factor = f"{samples['direct'].over(sample).median:.1f}"
        row = (name, str(len(clients)), way, _share(way, seen[way]), rate, factor)
        report.rows.append((*row, *_percentiles(seen[way])))


def _aim(report: Report, samples: dict[str, Sample], count: int) -> None:
    for way, when in (("cached", "that have just begun"), (_LATER, f"after {_LIVED:,} events")):
        what = f"Zipf, {count} processes {when}, against a SET NX GET for each (times)"
        report.aim(what, "at least", 9, samples["direct"].over(samples[way]))


def _share(way: str, seen: Sequence[tuple[_Took, int]]) -> str:
    hits, asked = (sum(some) for some in zip(*((n, len(took)) for took, n in seen), strict=True))
    return f"{hits / asked:.1%}" if way in ("cached", _LATER) else ""


def _percentiles(seen: Sequence[tuple[_Took, int]]) -> tuple[str, str]:
    took = [one for some, _ in seen for one in some]
    p99 = statistics.quantiles(took, n=100, method="inclusive")[98]
    return f"{statistics.median(took) * 1e6:.1f}", f"{p99 * 1e6:.0f}"
