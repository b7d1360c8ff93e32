"""Many new uids at once: what one process makes of them, and what a call for each would cost."""

from __future__ import annotations

import asyncio
import gc
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from unittest import mock

import ray

import ray_route
from benchmarks.harness import Plot, Report, Sample, take_turns, timed
from benchmarks.setting import SERVICE, deployed, local_client
from ray_route.client.coalescer import Done
from ray_route.protocol.wire import pack_question, unpack_answers

QUESTION = "N look-ups of new uids at once, in tasks and in threads, and an actor call for each"
_WAYS = ("tasks", "threads", "one bulk call", "an actor call each")
_THREADS = 64
_ALIKE = 10

_MANY = 10_000

_numbers = itertools.count()


@ray.remote(num_cpus=0)
class Echo:
    """Says what it is told."""

    async def say(self, words: list[str]) -> list[str]:
        """Return the same."""
        return words


def run(*, quick: bool) -> Report:
    """Measure all sizes."""
    sizes, runs = ((10, 1_000), 3) if quick else ((1, 10, 100, 1_000, 5_000), 7)
    report = Report("coalesce", QUESTION, ("at once", "way", "ms", "look-ups/s", "router calls"))
    with (
        local_client("bench-coalesce") as client,
        deployed(client),
        # What the router does: without reads from Redis, which have a benchmark of their own.
        mock.patch.object(client._session, "may_read", return_value=False),
    ):
        per_size = {size: _measure(client, size, runs, report) for size in sizes}
        known = _known(client, 1_000, runs, report)
        _in_one_go(client, 3 * runs, report)
        _same_uid(client, report)
    crowd = per_size[1_000]
    factor = crowd["an actor call each"].over(crowd["tasks"])
    report.aim("1,000 new at once, against an actor call each (times)", "at least", 25, factor)
    factor = known["an actor call each"].over(known["tasks"])
    report.aim("1,000 that the router knows, the same (times)", "at least", 25, factor)
    report.plots["time"] = Plot(
        "Placing N new uids at once",
        "uids",
        "ms",
        {
            way: ([*map(float, sizes)], [per_size[size][way].median * 1e3 for size in sizes])
            for way in _WAYS
        },
    )
    return report


def _measure(
    client: ray_route.RouteClient, size: int, runs: int, report: Report
) -> dict[str, Sample]:
    calls: dict[str, list[int]] = {way: [] for way in _WAYS}
    peers = {
        "tasks": lambda: _counted(client, size, _in_tasks, calls["tasks"]),
        "threads": lambda: _counted(client, size, _in_threads, calls["threads"]),
        "one bulk call": lambda: _timed(client, size, _in_bulk),
        "an actor call each": lambda: _timed(client, size, _by_calls),
    }
    samples = take_turns(peers, runs)
    for way, sample in samples.items():
        report.samples[f"{size} {way}"] = sample
        took = sample.median
        asked = sorted(calls[way])[len(calls[way]) // 2] if calls[way] else ""
        row = (f"{size:,}", way, f"{took * 1e3:.1f}", f"{size / took:,.0f}", str(asked))
        report.rows.append(row)
    return samples


_Work = Callable[[ray_route.RouteClient, Sequence[str]], list[object]]


def _known(
    client: ray_route.RouteClient, size: int, runs: int, report: Report
) -> dict[str, Sample]:
    """Look up what this process has forgotten and the router has not."""
    uids = [f"new-{next(_numbers)}" for _ in range(size)]
    client.compute_linked_pods(uids, SERVICE)

    def forgotten(work: _Work) -> float:
        client._session.near.flush()
        return _took(client, uids, work)

    peers = {
        "tasks": lambda: forgotten(_in_tasks),
        "an actor call each": lambda: forgotten(_by_calls),
    }
    samples = take_turns(peers, runs)
    for way, sample in samples.items():
        report.samples[f"{size} known {way}"] = sample
        took = sample.median
        row = (f"{size:,} known", way, f"{took * 1e3:.1f}", f"{size / took:,.0f}", "")
        report.rows.append(row)
    return samples


def _in_one_go(client: ray_route.RouteClient, runs: int, report: Report) -> None:
    """Look up many at once that the router knows, against the same list sent there and back."""
    uids = [f"new-{next(_numbers)}" for _ in range(_MANY)]
    client.compute_linked_pods(uids, SERVICE)
    echo = Echo.remote()

    def known() -> float:
        client._session.near.flush()
        return _took(client, uids, _in_bulk)

    def list_alone() -> float:
        gc.collect()
        return timed(lambda: ray.get(echo.say.remote(uids)))

    samples = take_turns({"one bulk call": known, "a list there and back": list_alone}, runs)
    for way, sample in samples.items():
        report.samples[f"{_MANY} known {way}"] = sample
        took = sample.median
        row = (f"{_MANY:,} known", way, f"{took * 1e3:.1f}", f"{_MANY / took:,.0f}", "")
        report.rows.append(row)
    rates = Sample([_MANY / took for took in samples["one bulk call"].values])
    report.aim(f"{_MANY:,} that the router knows, in one go (uids/s)", "at least", 300_000, rates)


def _timed(client: ray_route.RouteClient, size: int, work: _Work) -> float:
    return _took(client, [f"new-{next(_numbers)}" for _ in range(size)], work)


def _took(client: ray_route.RouteClient, uids: Sequence[str], work: _Work) -> float:
    gc.collect()  # one of Ray's whole heap takes 70 ms, and would hit one run in three
    begun = time.perf_counter()
    links = work(client, uids)
    took = time.perf_counter() - begun
    assert len(links) == len(uids)
    assert all(isinstance(link, ray_route.Link) for link in links)
    return took


def _counted(client: ray_route.RouteClient, size: int, work: _Work, calls: list[int]) -> float:
    with _counting(client) as sent:
        took = _timed(client, size, work)
    calls.append(len(sent))
    return took


@contextmanager
def _counting(client: ray_route.RouteClient) -> Iterator[list[int]]:
    """Note how many uids each call to the router carries."""
    coalescer, sent = client._session.computing.deciding, []
    send = coalescer._send

    def noted(service: str, wanted: dict[str, int], done: Done) -> None:
        sent.append(len(wanted))
        send(service, wanted, done)

    with mock.patch.object(coalescer, "_send", noted):
        yield sent


def _gathered(asked: Sequence[Callable[[], Awaitable[object]]]) -> list[object]:
    async def gather() -> list[object]:
        return list(await asyncio.gather(*(ask() for ask in asked)))

    return asyncio.run(gather())


def _in_tasks(client: ray_route.RouteClient, uids: Sequence[str]) -> list[object]:
    aclient = ray_route.AsyncRouteClient(client._session)
    return _gathered([lambda uid=uid: aclient.compute_linked_pod(uid, SERVICE) for uid in uids])


def _in_threads(client: ray_route.RouteClient, uids: Sequence[str]) -> list[object]:
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda uid: client.compute_linked_pod(uid, SERVICE), uids))


def _in_bulk(client: ray_route.RouteClient, uids: Sequence[str]) -> list[object]:
    return list(client.compute_linked_pods(uids, SERVICE).values())


def _by_calls(client: ray_route.RouteClient, uids: Sequence[str]) -> list[object]:
    compute = client._session.namespace.router.compute

    async def ask(uid: str) -> object:
        (link,) = unpack_answers(await compute.remote(pack_question(SERVICE, {uid: 0})))
        return link

    return _gathered([lambda uid=uid: ask(uid) for uid in uids])


def _same_uid(client: ray_route.RouteClient, report: Report) -> None:
    """Ask for each of a few new uids many times at once: duplicates travel once."""
    uids = [f"new-{next(_numbers)}" for _ in range(100)]
    with _counting(client) as sent:
        _in_tasks(client, uids * _ALIKE)
    assert sum(sent) == len(uids)
    report.rows.append((f"{_ALIKE} times {len(uids)}", "tasks", "", "", str(len(sent))))
