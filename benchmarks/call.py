"""A fenced call that follows its uid: what does it add to a plain actor call."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.util import ActorPool

from benchmarks.harness import Report, Sample, take_turns
from benchmarks.setting import deployed, local_client
from ray_route.client.sync_client import RouteClient

QUESTION = (
    "one call after the other: plain, by Ray's ActorPool, and on a near hit by call or handle"
)
_CALLS = 200
_UID = "user-1"


class Echo:
    """A service on threads."""

    def echo(self, text: str) -> str:
        """Return it."""
        return text


class AsyncEcho:
    """A service on an event loop."""

    async def echo(self, text: str) -> str:
        """Return it."""
        return text


def run(*, quick: bool) -> Report:
    """Measure."""
    runs = 5 if quick else 25
    report = Report("call", QUESTION, ("service", "way", "µs per call", "times the plain call"))
    with local_client("bench-call") as client:
        for kind, cls in (("sync", Echo), ("async", AsyncEcho)):
            with deployed(client, cls, replicas=1, service=kind):
                samples = take_turns(_peers(client, kind), runs)
            _add(report, kind, samples)
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


def _median(work: Callable[[], Any]) -> float:
    """Return the time of one call of many; the rare slow ones are the machine's."""
    took = []
    for _ in range(_CALLS):
        begun = time.perf_counter()
        assert work() == "hello"
        took.append(time.perf_counter() - begun)
    return statistics.median(took)


def _add(report: Report, kind: str, samples: dict[str, Sample]) -> None:
    for way, sample in samples.items():
        report.samples[f"{kind} {way}"] = sample
        factor = sample.over(samples["plain"]).median
        report.rows.append((kind, way, f"{sample.median * 1e6:.0f}", f"{factor:.2f}"))
    factor = samples["call"].over(samples["plain"])
    report.aim(f"a call to a {kind} pod, against a plain one (times)", "at most", 1.15, factor)
