"""What a short-lived process pays: its imports, its first connect, a look-up, its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray

from benchmarks.harness import Report, Sample, others_took, wait_for_quiet
from benchmarks.setting import SERVICE, address, deployed, local_client

QUESTION = "a fresh Ray worker that connects, looks a known uid up, and closes; and does so again"
_UID = "known"
_Took = dict[str, tuple[float, float]]


@ray.remote(num_cpus=0, max_calls=1)
def _fresh(namespace: str, url: str) -> _Took:
    """Return wall and processor time of each step, in a process that ends after it."""
    took: _Took = {}

    def step(what: str, work: Callable[[], object]) -> Any:
        begun, ticks = time.perf_counter(), time.process_time()
        result = work()
        took[what] = time.perf_counter() - begun, time.process_time() - ticks
        return result

    step("import redis", lambda: __import__("redis"))
    connect = step("import ray_route", lambda: __import__("ray_route").connect)

    def task() -> None:
        with connect(namespace, url) as client:
            client.compute_linked_pod(_UID, SERVICE)

    client = step("first connect", lambda: connect(namespace, url))
    step("look-up", lambda: client.compute_linked_pod(_UID, SERVICE))
    again = step("connect beside it", lambda: connect(namespace, url))
    again.close()
    step("a task beside it", task)
    step("close", client.close)
    other = step("connect after it", lambda: connect(namespace, url))
    other.close()
    step("a task after it", task)
    return took


def run(*, quick: bool) -> Report:
    """Measure."""
    runs = 5 if quick else 15
    report = Report("connect", QUESTION, ("step", "ms", "ms of processor"))
    with local_client("bench-connect") as client, deployed(client):
        client.compute_linked_pod(_UID, SERVICE)
        others_took.append(wait_for_quiet())
        took = [ray.get(_fresh.remote(client.namespace, address(client))) for _ in range(runs)]
    for step in took[0]:
        wall, cpu = (Sample([one[step][part] * 1e3 for one in took]) for part in (0, 1))
        report.samples[step] = wall
        report.samples[f"{step}, processor"] = cpu
        report.rows.append((step, f"{wall.median:.1f}", f"{cpu.median:.1f}"))
    report.aim("close (ms)", "at most", 50, report.samples["close"])
    return report
