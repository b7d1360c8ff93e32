"""Many links: reading, sweeping and examining them takes time in proportion, and no memory.

Short form; `make long` runs the long one, with two million.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from damagebench import SERVICE, Bench

from ray_route.clock import Deadline
from ray_route.store.bulk import BulkReader
from ray_route.store.connect import Store
from ray_route.store.scripts import plain_call

pytestmark = pytest.mark.slow

LONG = [pytest.mark.long, pytest.mark.timeout(3600)]


def memory_mb() -> float:
    text = Path("/proc/self/status").read_text()
    (line,) = [line for line in text.splitlines() if "VmRSS" in line]
    return int(line.split()[1]) / 1000


@contextmanager
def measured(what: str, count: int, at_most_mb: float) -> Iterator[None]:
    before, begun = memory_mb(), time.perf_counter()
    yield
    took, grown = time.perf_counter() - begun, memory_mb() - before
    print(f"{what}: {took:.2f} s, {took / count * 1e6:.2f} us each, {grown:.0f} MB")
    assert grown < at_most_mb


@pytest.mark.parametrize("count", [20_000, pytest.param(2_000_000, marks=LONG)])
def test_many_links_are_placed_read_swept_and_examined(
    store: Store, namespace: str, count: int
) -> None:
    async def scenario() -> None:
        async with Bench(store, namespace).running() as bench:
            uids = [f"user-{number}" for number in range(count)]
            with measured("placed", count, 2_000):
                for start in range(0, count, 5_000):
                    some = dict.fromkeys(uids[start : start + 5_000], 0)
                    await bench.directory.compute(SERVICE, some, None)
            assert bench.links.cache.held <= 1_000_000
            reader = BulkReader(store, bench.keys, SERVICE, list(bench.shards.counters.seen))
            with measured("read", count, 1_000):
                owned = reader.read([uid.encode() for uid in uids], Deadline.after(600))
            assert (owned.failed, min(owned.codes)) == ({}, 2)
            with measured("swept", count, 500):
                assert await bench.directory.sweep(SERVICE) == 0
            link = bench.keys.link(bench.keys.shard(uids[-1]), SERVICE, uids[-1])
            bench.store.one(plain_call("SET", link, "garbage"))
            with measured("examined", count, 500):
                assert [damage.key for damage in await bench.examine()] == [link]

    asyncio.run(scenario())
    store.one(plain_call("FLUSHALL", "ASYNC"))
