"""What it costs a process to read 100,000 links in use again before their leases end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import ray_route
from benchmarks.harness import Report, Sample, take_turns
from benchmarks.setting import SERVICE, deployed, local_client
from benchmarks.warm_miss import wait_until_read
from ray_route.client import refresh_ahead
from ray_route.clock import now

QUESTION = "processor time to look for links that end soon, and to read them again"
_LINKS = 100_000
_PATIENCE_S = 120.0


def run(*, quick: bool) -> Report:
    """Measure both, and their share of one processor."""
    links = _LINKS // 10 if quick else _LINKS
    report = Report("refresh_ahead", QUESTION, ("what", "links", "ms"))
    with local_client("bench-ahead") as client, deployed(client):
        uids = [f"user-{number}" for number in range(links)]
        client.compute_linked_pods(uids, SERVICE, timeout=300)
        wait_until_read(client)
        peers = {"look": lambda: _look(client, uids), "read": lambda: _read(client, uids)}
        samples = take_turns(peers, 3)
        lease_s = client._session.namespace.config.lease_s
    for what, sample in samples.items():
        report.samples[what] = sample
        report.rows.append((what, f"{links:,}", f"{sample.median * 1e3:.1f}"))
    ahead_s = (1 - refresh_ahead._AHEAD) * lease_s
    look, read = samples["look"], samples["read"]
    share = read.median / ahead_s + look.median / (refresh_ahead._PERIOD * lease_s)
    report.rows.append(("share of a processor", f"{links:,}", f"{share:.2%}"))
    report.aim("share of a processor", "at most", 0.02, Sample([share]))
    return report


def _look(client: ray_route.RouteClient, uids: list[str]) -> float:
    for uid in uids:
        client.get_linked_in_cache(uid, SERVICE)
    near = client._session.near

    def work() -> None:
        for slot in range(0, near.slots, refresh_ahead._SLOTS_PER_STEP):
            near.due(slot, refresh_ahead._SLOTS_PER_STEP, now() + 1e6)

    return _by_the_worker(client, work)


def _read(client: ray_route.RouteClient, uids: list[str]) -> float:
    size = refresh_ahead._UIDS_PER_READ

    def work() -> None:
        for start in range(0, len(uids), size):
            client._session._read_again(SERVICE, uids[start : start + size])

    return _by_the_worker(client, work)


def _by_the_worker(client: ray_route.RouteClient, work: Callable[[], None]) -> float:
    """Return the processor time that some work takes in the worker's thread."""
    took: list[float] = []
    done = threading.Event()

    def measured() -> None:
        begun = time.thread_time()
        work()
        took.append(time.thread_time() - begun)
        done.set()

    client._session.namespace.worker.put(measured)
    assert done.wait(_PATIENCE_S)
    return took[0]
