"""One look-up, by where it ends: in the process, in Redis, at the router; and Redis' own commands.

Each is timed alone, so that what the slowest one in a thousand takes is seen as well.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Sequence

import ray

from benchmarks.harness import Plot, Report, Sample, others_took, wait_for_quiet
from benchmarks.setting import SERVICE, deployed, local_client, plain, store_of
from benchmarks.warm_miss import wait_until_read
from ray_route import RouteClient
from ray_route.protocol.wire import pack_question

QUESTION = "how long one look-up takes, the slowest ones included, by where it ends"
_KNOWN = 10_000
_ASKED = 2_000
_LIFE_MS = 300_000
_POINTS = 60

Way = Callable[[int], object]


def run(*, quick: bool) -> Report:
    """Time each way alone, a part of each in every round."""
    rounds = 3 if quick else 15
    columns = ("where it ends", "µs, p50", "p99", "p99.9")
    report = Report("one_look_up", QUESTION, columns)
    with local_client("bench-one") as client, deployed(client):
        known = [f"user-{number}" for number in range(_KNOWN)]
        client.compute_linked_pods(known, SERVICE, timeout=120)
        wait_until_read(client)
        took: dict[str, list[float]] = {}
        for _ in range(rounds):
            others_took.append(wait_for_quiet())
            for name, number, way in _ways(client, known):
                took.setdefault(name, []).extend(_timed(number, way))
    for name, times in took.items():
        _add(report, name, sorted(times))
    report.plots["tail"] = Plot(
        "One look-up: how many take longer",
        "µs",
        "share of look-ups",
        {name: _tail(times) for name, times in took.items()},
    )
    return report


def _ways(client: RouteClient, known: Sequence[str]) -> list[tuple[str, int, Way]]:
    """Return what is timed, and how often in a round."""
    store, keys = store_of(client)
    redis, near = plain(store), client._session.near
    router = client._session.namespace.router
    uids = random.Random(7).sample(known, _KNOWN)  # noqa: S311 - a load, no secret
    own = [keys.link(keys.shard(uid), SERVICE, uid) for uid in uids]
    new = itertools.count(time.monotonic_ns())

    def known_uid(number: int) -> object:
        return client.compute_linked_pod(uids[number % _ASKED], SERVICE)

    def by_router(number: int) -> object:
        uid = uids[number % _ASKED]
        return ray.get(router.compute.remote(pack_question(SERVICE, {uid: 0})))

    near.flush()
    client._session.new_uids.note(SERVICE, 1, 1)  # as if uids were mostly known
    return [
        ("read from Redis", _ASKED, known_uid),  # then they are near
        ("a near hit", 5 * _ASKED, known_uid),
        ("redis-py GET", _ASKED, lambda number: redis.get(own[number])),
        (
            "redis-py SET NX GET",
            _ASKED,
            lambda _: redis.set(f"bench-{next(new)}", "1", nx=True, get=True, px=_LIFE_MS),
        ),
        ("by the router", 300, by_router),
        (
            "a new uid, by the router",
            300,
            lambda _: client.compute_linked_pod(f"new-{next(new)}", SERVICE),
        ),
    ]


def _timed(number: int, way: Way) -> list[float]:
    took = []
    for each in range(number):
        begun = time.perf_counter()
        way(each)
        took.append((time.perf_counter() - begun) * 1e6)
    return took


def _add(report: Report, name: str, times: Sequence[float]) -> None:
    figures = [times[int(share * (len(times) - 1))] for share in (0.5, 0.99, 0.999)]
    report.samples[name] = Sample(figures)
    report.rows.append((name, *(f"{figure:,.1f}" for figure in figures)))


def _tail(times: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return times, and which share takes at least as long; on logarithmic steps."""
    slowest, number = sorted(times, reverse=True), len(times)
    places = sorted({int(number ** (step / _POINTS)) for step in range(_POINTS + 1)})
    return [slowest[place - 1] for place in places], [place / number for place in places]
