"""What a link costs in memory, in Redis and in the router."""

from __future__ import annotations

import gc
import tracemalloc

from benchmarks.harness import Report, take_turns
from benchmarks.setting import PODS, empty
from ray_route.cache import LinkCache
from ray_route.clock import now
from ray_route.config import RouteConfig
from ray_route.model import Link
from ray_route.store.connect import Store
from ray_route.store.embedded import EmbeddedServer
from ray_route.store.keys import Keys
from ray_route.store.links import MAX_UIDS, LinkCalls, Writer
from ray_route.store.scripts import Call, command

QUESTION = "bytes per link in Redis and in the router's cache"
_INCARNATION = 1_795_483_922_349_900


def run(*, quick: bool) -> Report:
    """Measure."""
    count, runs = (50_000, 1) if quick else (200_000, 3)
    report = Report("memory", QUESTION, ("what", "bytes"))
    with EmbeddedServer() as server:
        store = empty(server)
        peers = {
            "a link in Redis": lambda: _link(store, count),
            "a plain key with a TTL": lambda: _plain(store, count),
            "a link in the router's cache": lambda: _cached(count),
        }
        samples = take_turns(peers, runs, warm_up=0 if quick else 1)
        store.close()
    for what, sample in samples.items():
        report.samples[what] = sample
        report.rows.append((what, f"{sample.median:.0f}"))
    report.aim("bytes per link in Redis", "at most", 180, samples["a link in Redis"])
    report.aim(
        "bytes per link in the router", "at most", 500, samples["a link in the router's cache"]
    )
    return report


def _used(store: Store) -> int:
    return int(store.infos()[0]["used_memory"])


def _link(store: Store, count: int) -> float:
    keys = Keys("bench", 256)
    calls = LinkCalls(keys, RouteConfig())
    by_shard: dict[int, list[str]] = {}
    for number in range(count):
        by_shard.setdefault(keys.shard(f"user-{number}"), []).append(f"user-{number}")
    store.one(Call("", ("FLUSHALL",)))
    before = _used(store)
    for shard, uids in by_shard.items():
        for start in range(0, len(uids), MAX_UIDS):
            some = uids[start : start + MAX_UIDS]
            owners = [f"{place % PODS}:{_INCARNATION}" for place in range(len(some))]
            store.one(calls.set_if_absent(Writer(1), shard, "bench", some, owners))
    return (_used(store) - before) / count


def _plain(store: Store, count: int) -> float:
    store.one(Call("", ("FLUSHALL",)))
    before = _used(store)
    keys = Keys("bench", 256)
    for start in range(0, count, MAX_UIDS):
        uids = [f"user-{number}" for number in range(start, min(start + MAX_UIDS, count))]
        names = [keys.link(keys.shard(uid), "bench", uid) for uid in uids]
        store.run([command("SET", name, "1", "PX", 3_600_000) for name in names])
    return (_used(store) - before) / count


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
