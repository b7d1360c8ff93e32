"""Many calls in flight from one thread, step by step: what the header, the gate and the client add.

The header with the pod's gate, without the client, is what a call costs that is made by hand, to a
pod that is known, and taken from Ray as it comes.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import ray

from benchmarks.call import AsyncEcho, Echo
from benchmarks.harness import Report, take_turns
from benchmarks.processors import workers_s
from benchmarks.setting import deployed, local_client
from ray_route.client.outgoing import Outgoing
from ray_route.client.sync_client import RouteClient
from ray_route.clock import Deadline
from ray_route.protocol.calls import packed

QUESTION = "1,000 calls for 1,000 uids at once from one thread: where their time goes"
COLUMNS = ("service", "way", "µs per call", "times plain", "processor here", "processor of workers")
CALLS = 1_000
_TEN = [f"value {number}" for number in range(10)]
_SERVICES: dict[str, tuple[type, dict[str, Any]]] = {
    "threads": (Echo, {}),
    "async": (AsyncEcho, {}),
    "threads-turns": (Echo, {"turns": True}),
    "async-turns": (AsyncEcho, {"turns": True}),
}


def run(*, quick: bool) -> Report:
    """Measure."""
    report = Report("in_flight", QUESTION, COLUMNS)
    with local_client("bench-in-flight") as client:
        for kind, (cls, options) in _SERVICES.items():
            with deployed(client, cls, replicas=1, service=kind, **options):
                _measure(report, client, kind, runs=5 if quick else 15)
    return report


def _measure(report: Report, client: RouteClient, kind: str, runs: int) -> None:
    spent: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def timed(way: str, work: Callable[[], None]) -> float:
        here, theirs, begun = time.thread_time(), workers_s(), time.perf_counter()
        work()
        took = time.perf_counter() - begun
        spent[way].append((time.thread_time() - here, workers_s() - theirs))
        return took / CALLS

    ways = _ways(client, kind)
    turns = {way: lambda way=way, work=work: timed(way, work) for way, work in ways.items()}
    samples = take_turns(turns, runs)
    for way, sample in samples.items():
        report.samples[f"{kind}: {way}"] = sample
        here, theirs = (sum(part[1:]) / runs / CALLS for part in zip(*spent[way], strict=True))
        times = f"{sample.over(samples['plain']).median:.2f}"
        micros = [f"{value * 1e6:.0f}" for value in (sample.median, here, theirs)]
        report.rows.append((kind, way, micros[0], times, *micros[1:]))


def _ways(client: RouteClient, service: str) -> dict[str, Callable[[], None]]:
    uids = [f"user-{number}" for number in range(CALLS)]
    links = client.compute_linked_pods(uids, service)
    handles = [client.service(service)[uid] for uid in uids]
    client.service(service).map("echo", dict.fromkeys(uids, ("hello",)))  # no miss is measured
    pod: Any = client.actor(uids[0], service)

    def header(uid: str) -> Any:
        call = Outgoing("", service, uid, "echo", (), {}, False, Deadline.after(60))
        return packed(call.header(links[uid]), ("hello",))

    return {
        "plain": lambda: _taken([pod.echo.remote("hello") for _ in uids]),
        "plain, a list of ten values": lambda: _taken([pod.echo.remote(_TEN) for _ in uids]),
        "header and gate": lambda: _taken(
            [pod._ray_route_call_packed.remote(header(uid)) for uid in uids]
        ),
        "handle": lambda: _results([handle.echo.remote("hello") for handle in handles]),
    }


def _taken(refs: list[Any]) -> None:
    for ref in refs:
        ray.get(ref)


def _results(responses: list[Any]) -> None:
    for response in responses:
        assert response.result() == "hello"
