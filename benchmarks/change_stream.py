"""How soon a move reaches the near caches of many other processes."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import ray

import ray_route
from benchmarks.harness import Report, Sample, others_took, wait_for_quiet
from benchmarks.setting import PODS, SERVICE, Pod, address, deployed, local_client
from ray_route.client.change_reader import ChangeReader, Known
from ray_route.clock import now
from ray_route.config import RouteConfig
from ray_route.model import Link
from ray_route.protocol.welcome import Welcome
from ray_route.runtime.belief import Belief
from ray_route.state.link_cache import LinkCache
from ray_route.state.pod_table import PodTable
from ray_route.store.connect import Store
from ray_route.store.keys import Keys
from ray_route.store.url import parse_url

QUESTION = "from asking for a move until a process has dropped the old link, by processes"
_PROCESSES = (20, 200)
_READY_S = 120.0
_LATE_S = 30.0
_POLL_S = 0.05


class _Diary(LinkCache):
    """A near cache that notes when it was told to drop what."""

    def __init__(self, maxsize: int) -> None:
        super().__init__(maxsize)
        self.dropped: dict[str, float] = {}

    def drop(self, service: str, uid: str, up_to_epoch: int | None = None) -> Link | None:
        """Note the first time."""
        link = super().drop(service, uid, up_to_epoch)
        self.dropped.setdefault(uid, now())
        return link


@dataclass(frozen=True)
class _About:
    """What a reader needs to know, all of it picklable."""

    url: str
    namespace: str
    config: RouteConfig
    welcome: Welcome
    links: dict[str, Link]


def _read_changes(about: _About, line: Connection) -> None:
    """Follow the stream as a client process does, until told to stop."""
    table, near = PodTable(), _Diary(10_000)
    for records in about.welcome.tables.values():
        for record in records:
            table.update(SERVICE, record)
    for uid, link in about.links.items():
        near.put(SERVICE, uid, link, now())
    store = Store(parse_url(about.url), retries=0)
    keys = Keys(about.namespace, about.config.shards)
    known = Known(table, near, Belief(store, _nobody), lambda _: None)
    reader = ChangeReader(store, keys, about.config, known, about.welcome.position, now())
    reader.start()
    line.send("ready")
    line.recv()
    end = now() + _LATE_S
    while len(near.dropped) < len(about.links) and now() < end:
        time.sleep(_POLL_S)
    line.send(near.dropped)
    reader.stop()


def _nobody() -> Any:
    raise AssertionError("no router is asked")


def run(*, quick: bool) -> Report:
    """Measure."""
    report = Report(
        "change_stream", QUESTION, ("processes", "moves", "p50 ms", "p99 ms", "most ms")
    )
    moves = 30 if quick else 100
    for processes in _PROCESSES[:1] if quick else _PROCESSES:
        others_took.append(wait_for_quiet())
        with local_client("changes") as client, deployed(client, Pod):
            waits = _spread(client, processes, moves)
        p99 = statistics.quantiles(waits, n=100)[98]
        figures = (f"{1000 * value:.1f}" for value in (statistics.median(waits), p99, max(waits)))
        report.rows.append((str(processes), str(moves), *figures))
        report.samples[f"{processes} processes"] = Sample(waits)
        if processes == _PROCESSES[0]:
            report.aim("p99 with 20 processes (ms)", "at most", 250, Sample([1000 * p99]))
    return report


def _spread(client: ray_route.RouteClient, processes: int, moves: int) -> list[float]:
    """Move uids one after the other; return how long each process took to drop each."""
    uids = [f"user-{number}" for number in range(moves)]
    links: dict[str, Any] = client.compute_linked_pods(uids, SERVICE)
    welcome = ray.get(client._session.namespace.router.hello.remote())
    config = client._session.namespace.config
    about = _About(address(client), client.namespace, config, welcome, links)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # so that they share what they import
    lines = []
    for _ in range(processes):
        mine, theirs = context.Pipe()
        context.Process(target=_read_changes, args=(about, theirs), daemon=True).start()
        lines.append(mine)
    _hear(lines)
    asked = {}
    for uid in uids:
        asked[uid] = now()
        client.move(uid, SERVICE, (links[uid].pod + 1) % PODS)
    for line in lines:
        line.send("stop")
    notes = _hear(lines)
    return [dropped[uid] - asked[uid] for dropped in notes for uid in uids]


def _hear(lines: list[Connection]) -> list[Any]:
    heard = []
    for line in lines:
        if not line.poll(_READY_S):
            raise TimeoutError("a reader does not answer")
        heard.append(line.recv())
    return heard
