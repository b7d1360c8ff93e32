"""What a link costs in memory, in Redis and in the router."""

from __future__ import annotations

import gc
import os
import tracemalloc
from collections.abc import Callable
from itertools import product
from pathlib import Path

import ray

import ray_route
from benchmarks.harness import Report, Sample, take_turns
from benchmarks.setting import PODS, Pod, empty, local_client
from ray_route.clock import now
from ray_route.config import RouteConfig
from ray_route.model import Link
from ray_route.state.link_cache import LinkCache
from ray_route.store.connect import Store
from ray_route.store.embedded import EmbeddedServer
from ray_route.store.keys import Keys
from ray_route.store.links import MAX_UIDS, LinkCalls, Writer
from ray_route.store.scripts import Call, plain_call

QUESTION = "bytes per link in Redis and in the router's cache"
# A server's hash table grows in jumps, and each server's at other fills, so what a link costs
# depends on how many there are: the target is held against the dearer of two counts.
COUNTS = (140_000, 250_000)
_INCARNATION = 1_795_483_922_349_900


def run(*, quick: bool) -> Report:
    """Measure."""
    runs = 1 if quick else 3
    report = Report("memory", QUESTION, ("what", "links", "bytes per link"))
    for flavor, count in product(("valkey", "redis"), COUNTS):
        peers = {
            f"a link in {flavor}": lambda f=flavor, n=count: _in_redis(_link, f, n),
            f"a plain key with a TTL in {flavor}": lambda f=flavor, n=count: _in_redis(
                _plain, f, n
            ),
        }
        _add(report, count, take_turns(peers, runs, warm_up=0))
    for flavor in ("valkey", "redis"):
        fullest = max(
            (report.samples[f"{count} a link in {flavor}"] for count in COUNTS),
            key=lambda sample: sample.median,
        )
        report.aim(f"bytes per link in {flavor}, at the worst count", "at most", 180, fullest)
    count = 50_000 if quick else 200_000
    peers = {
        "the router's cache alone": lambda: _cached(count),
        "the router's process": lambda: _router(count),
    }
    samples = take_turns(peers, runs, warm_up=0)
    _add(report, count, samples)
    report.aim("bytes per link in the router", "at most", 500, samples["the router's process"])
    return report


def _add(report: Report, count: int, samples: dict[str, Sample]) -> None:
    for what, sample in samples.items():
        report.samples[f"{count} {what}"] = sample
        report.rows.append((what, f"{count:,}", f"{sample.median:.0f}"))


def _in_redis(write: Callable[[Store, Keys, list[str]], None], flavor: str, count: int) -> float:
    """Measure on a server of its own: one that was emptied still frees what it held before."""
    keys = Keys("bench", 256)
    with EmbeddedServer(flavor) as server:
        store = empty(server)
        before = _used(store)
        write(store, keys, [f"user-{number}" for number in range(count)])
        assert _keys(store) >= count
        used = _used(store) - before
        store.close()
    return used / count


def _used(store: Store) -> int:
    return int(store.infos()[0]["used_memory"])


def _keys(store: Store) -> int:
    return int(store.one(Call("", ("DBSIZE",))))


def _link(store: Store, keys: Keys, uids: list[str]) -> None:
    calls = LinkCalls(keys, RouteConfig())
    by_shard: dict[int, list[str]] = {}
    for uid in uids:
        by_shard.setdefault(keys.shard(uid), []).append(uid)
    for shard, members in by_shard.items():
        for start in range(0, len(members), MAX_UIDS):
            some = members[start : start + MAX_UIDS]
            owners = [f"{place % PODS}:{_INCARNATION}" for place in range(len(some))]
            store.one(calls.set_if_absent(Writer(1), shard, "bench", some, owners))


def _plain(store: Store, keys: Keys, uids: list[str]) -> None:
    for start in range(0, len(uids), MAX_UIDS):
        names = [keys.link(keys.shard(uid), "bench", uid) for uid in uids[start : start + MAX_UIDS]]
        store.run([plain_call("SET", name, "1", "PX", 3_600_000) for name in names])


def _cached(count: int) -> float:
    cache = LinkCache(10 * count)
    gc.collect()
    tracemalloc.start()
    for number in range(count):
        text = f"{_INCARNATION}:{_INCARNATION + number}"
        incarnation, epoch = map(int, text.split(":"))
        link = Link(number % PODS, incarnation, epoch, persistent=False, lease_s=240.0)
        cache.put("bench", f"user-{number}", link, now())
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return used / count


def _router(count: int) -> float:
    """Return what a real router grows by, per link that it has placed."""
    with local_client("bench-memory") as client:
        host, port = client._session.namespace.url.nodes[0]
        url = f"redis://:{client._session.namespace.url.password}@{host}:{port}/0"
        options = {"namespace": client.namespace, "service": "bench", "replicas": PODS}
        with ray_route.deploy(Pod, **options, redis_url=url):
            # Enough for what does not grow with links: the log of decisions, imports, buffers.
            client.compute_linked_pods([f"warm-{number}" for number in range(30_000)], "bench")
            router = client._session.namespace.router
            before = ray.get(router.__ray_call__.remote(_resident))
            uids = [f"user-{number}" for number in range(count)]
            client.compute_linked_pods(uids, "bench", timeout=120)
            return (ray.get(router.__ray_call__.remote(_resident)) - before) / count


def _resident(_router: object) -> int:
    """Return this process's resident bytes, after a collection."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
