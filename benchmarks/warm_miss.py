"""A uid that has a link, and is not in the near cache: what does it cost to find it."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import ray

import ray_route
from benchmarks.harness import Report, Sample, take_turns
from benchmarks.setting import SERVICE, deployed, local_client, plain, store_of
from ray_route.protocol.wire import pack_question

QUESTION = "finding a uid that has a link and is not in the near cache"
_UIDS = 2_000
_BULK = 20_000
_NEW = 200
_READY_S = 10.0


@contextmanager
def _frozen() -> Iterator[None]:
    """Leave out of Python's garbage collector what is loaded by now, as a program may."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _no_collector() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


_IN_BULK = "compute_linked_pods"
_COLLECTOR: dict[str, Callable[[], AbstractContextManager[None]]] = {
    _IN_BULK: nullcontext,
    f"{_IN_BULK} after gc.freeze()": _frozen,
    f"{_IN_BULK} without the collector": _no_collector,
}


def run(*, quick: bool) -> Report:
    """Measure."""
    runs = 5 if quick else 15
    report = Report("warm_miss", QUESTION, ("way", "µs per look-up", "times GET"))
    with local_client("bench-miss") as client, deployed(client):
        uids = [f"user-{number}" for number in range(_BULK)]
        client.compute_linked_pods(uids, SERVICE, timeout=120)
        wait_until_read(client)
        processor: defaultdict[str, list[float]] = defaultdict(list)
        samples = take_turns(_peers(client, uids) | _in_bulk(client, uids, processor), runs)
    get = samples["redis-py GET"]
    for way, sample in samples.items():
        report.samples[way] = sample
        factor = sample.over(get).median
        report.rows.append((way, f"{sample.median * 1e6:.1f}", f"{factor:.2f}"))
    for way, took in processor.items():
        busy = Sample(took[1:])  # the first is a warm-up
        report.samples[f"{way}, processor"] = busy
        report.rows.append((f"{way}, processor", f"{busy.median * 1e6:.1f}", ""))
    miss = samples["compute_linked_pod"]
    report.aim("a warm miss, against redis-py GET (times)", "at most", 2.0, miss.over(get))
    bulk = Sample([1 / value for value in samples[_IN_BULK].values])
    report.aim("known uids in one call (uids/s)", "at least", 350_000, bulk)
    return report


def wait_until_read(client: ray_route.RouteClient) -> None:
    """Return once the client may read from Redis."""
    end = time.monotonic() + _READY_S
    while not client._session.may_read() and time.monotonic() < end:
        time.sleep(0.01)


def _peers(client: ray_route.RouteClient, uids: Sequence[str]) -> dict[str, Callable[[], float]]:
    store, keys = store_of(client)
    redis, session = plain(store), client._session
    some = uids[:_UIDS]
    own = {uid: keys.link(keys.shard(uid), SERVICE, uid) for uid in some}
    router = session.namespace.router
    numbers = iter(range(10**9))

    def missed(look_up: Callable[[str], object]) -> float:
        _forget(client)
        return _each(some, look_up)

    return {
        "compute_linked_pod": lambda: missed(lambda uid: client.compute_linked_pod(uid, SERVICE)),
        "get_linked_pod": lambda: missed(lambda uid: client.get_linked_pod(uid, SERVICE)),
        "get_linked_pod_not_cache": lambda: _each(
            some, lambda uid: client.get_linked_pod_not_cache(uid, SERVICE)
        ),
        "awaited": lambda: _awaited(client, some),
        "1,000 awaited at once": lambda: _at_once(client, some[:1_000]),
        "redis-py GET": lambda: _each(some, lambda uid: redis.get(own[uid])),
        "by the router": lambda: _each(
            some[:_NEW],
            lambda uid: ray.get(router.compute.remote(pack_question(SERVICE, {uid: 0}))),
        ),
        "a new uid": lambda: _each(
            [f"new-{next(numbers)}" for _ in range(_NEW)],
            lambda uid: client.compute_linked_pod(uid, SERVICE),
        ),
    }


def _in_bulk(
    client: ray_route.RouteClient, uids: Sequence[str], processor: dict[str, list[float]]
) -> dict[str, Callable[[], float]]:
    """Many at once, by what Python's garbage collector is let do; notes the processor's time."""

    def bulk(way: str) -> float:
        _forget(client)
        with _COLLECTOR[way]():
            begun, ticks = time.perf_counter(), time.process_time()
            client.compute_linked_pods(uids, SERVICE)
            processor[way].append((time.process_time() - ticks) / len(uids))
            return (time.perf_counter() - begun) / len(uids)

    return {way: lambda way=way: bulk(way) for way in _COLLECTOR}


def _forget(client: ray_route.RouteClient) -> None:
    client._session.near.flush()
    client._session.new_uids.note(SERVICE, 1, 1)


def _each(uids: Sequence[str], look_up: Callable[[str], object]) -> float:
    took = []
    for uid in uids:
        begun = time.perf_counter()
        look_up(uid)
        took.append(time.perf_counter() - begun)
    return statistics.median(took)


def _awaited(client: ray_route.RouteClient, uids: Sequence[str]) -> float:
    _forget(client)
    aclient = ray_route.AsyncRouteClient(client._session)

    async def ask() -> float:
        took = []
        for uid in uids:
            begun = time.perf_counter()
            await aclient.compute_linked_pod(uid, SERVICE)
            took.append(time.perf_counter() - begun)
        return statistics.median(took)

    return asyncio.run(ask())


def _at_once(client: ray_route.RouteClient, uids: Sequence[str]) -> float:
    _forget(client)
    aclient = ray_route.AsyncRouteClient(client._session)

    async def ask() -> float:
        begun = time.perf_counter()
        await asyncio.gather(*(aclient.compute_linked_pod(uid, SERVICE) for uid in uids))
        return (time.perf_counter() - begun) / len(uids)

    return asyncio.run(ask())
