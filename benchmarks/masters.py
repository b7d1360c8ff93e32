"""A batch from three masters of a Cluster, against one: does it read from all of them at once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager

import redis

from benchmarks.harness import Report, take_turns, timed
from benchmarks.setting import SERVICE, names
from ray_route.clock import Deadline
from ray_route.store.bulk import BulkReader
from ray_route.store.connect import Store
from ray_route.store.embedded import EmbeddedServer
from ray_route.store.keys import Keys
from ray_route.store.scripts import plain_call
from ray_route.store.url import parse_url

QUESTION = "links of N uids from Clusters of 1 and 3 masters, and from a lone server, in process"
_SLOTS = 16_384
_SHARDS = 256
_WAIT_S = 30.0
_AT_ONCE = 5_000


def run(*, quick: bool) -> Report:
    """Measure without Ray: what one process reads by itself."""
    count, runs = (100_000, 5) if quick else (300_000, 9)
    report = Report("masters", QUESTION, ("masters", "way", "µs per uid", "uids/s"))
    uids = names(count)
    with ExitStack() as stack:
        stores = {
            "a server": stack.enter_context(_lone_server()),
            "1 master": stack.enter_context(_cluster(1)),
            "3 masters": stack.enter_context(_cluster(3)),
        }
        keys = Keys("bench", _SHARDS)
        for store in stores.values():
            _fill(store, keys, uids)
        packed = [uid.encode() for uid in uids]
        peers = {
            name: lambda store=store: timed(lambda: _read(store, keys, packed)) / count
            for name, store in stores.items()
        }
        by_redis_py = {
            f"{name}, redis-py": lambda store=store: (
                timed(lambda: _by_redis_py(store, keys, uids[:_AT_ONCE])) / _AT_ONCE
            )
            for name, store in stores.items()
            if store.is_cluster
        }
        samples = take_turns({**peers, **by_redis_py}, runs)
    for name, sample in samples.items():
        report.samples[name] = sample
        took = sample.median
        masters, _, way = name.partition(", ")
        report.rows.append((masters, way or "batch", f"{took * 1e6:.2f}", f"{1 / took:,.0f}"))
    gain = samples["1 master"].over(samples["3 masters"])
    report.aim("3 masters against 1 (times as fast)", "at least", 0.9, gain)
    return report


def _read(store: Store, keys: Keys, uids: Sequence[bytes]) -> None:
    found = BulkReader(store, keys, SERVICE, [0] * keys.shards).read(uids, Deadline.after(60))
    assert not found.failed


def _by_redis_py(store: Store, keys: Keys, uids: Sequence[str]) -> None:
    """Read as redis-py does in a Cluster: an MGET for each slot."""
    found = store._client.mget_nonatomic([keys.link(keys.shard(u), SERVICE, u) for u in uids])
    assert all(found)


def _fill(store: Store, keys: Keys, uids: Sequence[str]) -> None:
    for start in range(0, len(uids), _AT_ONCE):
        some = uids[start : start + _AT_ONCE]
        store.run(
            [
                plain_call("SET", keys.link(keys.shard(u), SERVICE, u), "1:7:1795483922349900")
                for u in some
            ]
        )
    store.run(
        [plain_call("SET", keys.counter(s), "1795483922349901:1") for s in range(keys.shards)]
    )


@contextmanager
def _lone_server() -> Iterator[Store]:
    with EmbeddedServer() as server, closing(Store(parse_url(server.url))) as store:
        yield store


@contextmanager
def _cluster(masters: int) -> Iterator[Store]:
    with ExitStack() as stack:
        settings = ("cluster-enabled yes",)
        nodes = [
            stack.enter_context(EmbeddedServer(password="bench", settings=settings))  # noqa: S106 - on loopback
            for _ in range(masters)
        ]
        admins = [
            stack.enter_context(closing(redis.Redis(port=node.port, password="bench")))  # noqa: S106
            for node in nodes
        ]
        for rank, admin in enumerate(admins):
            first, end = (_SLOTS * place // masters for place in (rank, rank + 1))
            admin.execute_command("CLUSTER", "SET-CONFIG-EPOCH", rank + 1)
            admin.execute_command("CLUSTER", "ADDSLOTS", *range(first, end))
            admins[0].execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[rank].port)
        _wait_until_ready(admins)
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
        with closing(Store(parse_url(f"redis+cluster://:bench@{hosts}"))) as store:
            yield store


def _wait_until_ready(admins: Sequence[redis.Redis]) -> None:
    end = time.monotonic() + _WAIT_S
    while not all(admin.cluster("INFO")["cluster_state"] == "ok" for admin in admins):
        if time.monotonic() > end:
            raise RuntimeError("the cluster has not come up")
        time.sleep(0.05)
