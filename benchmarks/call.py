"""A fenced call that follows its uid: what does it add to a plain actor call."""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import ray
from ray.util import ActorPool

from benchmarks.harness import Report, Sample, take_turns
from benchmarks.setting import deployed, local_client
from ray_route.client.streamed_call import AHEAD
from ray_route.client.sync_client import RouteClient

QUESTION = (
    "one call after the other: plain, by Ray's ActorPool, and on a near hit by call or handle"
)
_CALLS = 200
_UID = "user-1"
_IN_FLIGHT = 1_000


class Echo:
    """A service on threads."""

    def echo(self, text: str) -> str:
        """Return it."""
        return text

    def count(self, number: int) -> Iterator[int]:
        """Yield so many items."""
        for item in range(number):  # noqa: UP028 - Ray's streams want a generator's `send`
            yield item


class AsyncEcho:
    """A service on an event loop."""

    async def echo(self, text: str) -> str:
        """Return it."""
        return text

    async def count(self, number: int) -> AsyncIterator[int]:
        """Yield so many items."""
        for item in range(number):
            yield item


def run(*, quick: bool) -> Report:
    """Measure."""
    runs = 5 if quick else 25
    report = Report("call", QUESTION, ("service", "way", "µs per call", "times the plain call"))
    with local_client("bench-call") as client:
        for kind, cls in (("sync", Echo), ("async", AsyncEcho)):
            with deployed(client, cls, replicas=1, service=kind):
                one_by_one = take_turns(_peers(client, kind), runs)
                in_flight = take_turns(_in_flight(client, kind), runs)
                streamed = take_turns(_streamed(client, kind, cls), runs)
            _add(report, kind, one_by_one, 1.15)
            _add(report, f"{kind}, {_IN_FLIGHT} in flight", in_flight, 1.18)
            _add(report, f"{kind}, per streamed item", streamed, 1.2)
    return report


def _peers(client: RouteClient, service: str) -> dict[str, Callable[[], float]]:
    actor = client.actor(_UID, service)
    pool = ActorPool([actor])
    handle = client.service(service)[_UID]

    def pooled() -> Any:
        pool.submit(lambda one, text: one.echo.remote(text), "hello")
        return pool.get_next()

    ways: dict[str, Callable[[], Any]] = {
        "plain": lambda: ray.get(actor.echo.remote("hello")),
        "ActorPool": pooled,
        "call": lambda: client.call(_UID, service, "echo", "hello"),
        "handle": lambda: handle.echo.remote("hello").result(),
    }
    return {way: lambda work=work: _median(work) for way, work in ways.items()}


def _in_flight(client: RouteClient, service: str) -> dict[str, Callable[[], float]]:
    """Send many calls from one thread, each for a uid of its own, then take all results."""
    uids = [f"user-{number}" for number in range(_IN_FLIGHT)]
    actors = [client.actor(uid, service) for uid in uids]
    handles = [client.service(service)[uid] for uid in uids]
    client.service(service).map("echo", dict.fromkeys(uids, ("hello",)))  # no miss is measured

    def plain() -> None:
        for ref in [actor.echo.remote("hello") for actor in actors]:
            ray.get(ref)

    def by_handles() -> None:
        for response in [handle.echo.remote("hello") for handle in handles]:
            response.result()

    return {
        "plain": lambda: _each(plain),
        "handle": lambda: _each(by_handles),
    }


def _streamed(client: RouteClient, service: str, cls: type) -> dict[str, Callable[[], float]]:
    """Read a stream of items: of a plain actor, and of a pod."""
    actor: Any = ray.remote(num_cpus=0)(cls).remote()
    handle = client.service(service, cls)[_UID]
    options = {"num_returns": "streaming", "_generator_backpressure_num_objects": AHEAD}

    def plain() -> None:
        for ref in actor.count.options(**options).remote(_IN_FLIGHT):
            ray.get(ref)

    def by_handle() -> None:
        for _ in handle.count.remote(_IN_FLIGHT):
            pass

    return {
        "plain": lambda: _each(plain),
        "handle": lambda: _each(by_handle),
    }


def _each(work: Callable[[], None]) -> float:
    begun = time.perf_counter()
    work()
    return (time.perf_counter() - begun) / _IN_FLIGHT


def _median(work: Callable[[], Any]) -> float:
    """Return the time of one call of many; the rare slow ones are the machine's."""
    took = []
    for _ in range(_CALLS):
        begun = time.perf_counter()
        assert work() == "hello"
        took.append(time.perf_counter() - begun)
    return statistics.median(took)


def _add(report: Report, kind: str, samples: dict[str, Sample], at_most: float) -> None:
    for way, sample in samples.items():
        report.samples[f"{kind} {way}"] = sample
        factor = sample.over(samples["plain"])
        report.rows.append((kind, way, f"{sample.median * 1e6:.0f}", f"{factor.median:.2f}"))
        if way in {"call", "handle"}:
            what = f"{kind}: by {way}, against plain (times)"
            report.aim(what, "at most", at_most, factor)
