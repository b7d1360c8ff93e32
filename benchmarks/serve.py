"""Sessions on Ray Serve: who moves when replicas come and die, and what a request costs."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray import serve

from benchmarks.harness import Report, Sample, others_took, wait_for_quiet
from benchmarks.peers import PEERS, REPLICAS, Chat, Peer, running_serve

QUESTION = "sessions that move at each event, and requests, by way of routing"
_ANSWER_S = 30.0
_AT_ONCE = 50
_KNOWN = 200
_NESTED, _NESTED_S = 20, 5.0
_FRESH = 200
_WAIT_S = 60.0
_CONCURRENT = 16
_NAMES = itertools.count()

Homes = dict[str, str]
EVENTS = (
    "fresh ids on two replicas",
    "max/mean",
    "moved without event",
    "moved on scale-out",
    "survivors' moved on death",
    "victim's moved twice",
    "failed after death",
    "nested calls that hang",
)


@ray.remote(num_cpus=0)
class Elsewhere:
    """Another process, with a router of its own."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._handle = serve.get_app_handle(peer.app)

    async def homes(self, sessions: list[str]) -> Homes:
        """Ask for all sessions at once."""
        asked = {name: self._peer.ask(self._handle, name) for name in sessions}
        return {name: (await answer)[0] for name, answer in asked.items()}


def run(*, quick: bool) -> Report:
    """Measure costs in turns, then events peer by peer."""
    count, runs, rounds = (300, 3, 1) if quick else (1_000, 7, 3)
    report = Report("serve", QUESTION, ("what", *(peer.name for peer in PEERS)))
    with running_serve():
        handles = {peer: peer.deploy(Chat, REPLICAS) for peer in PEERS}
        _costs(report, handles, runs)
        seen: dict[Peer, list[dict[str, float]]] = {peer: [] for peer in PEERS}
        for _ in range(rounds):
            for peer in PEERS:
                seen[peer].append(_events(peer, count))
        for peer in PEERS:
            serve.delete(peer.app, _blocking=False)
        hanging = {peer: _nested(peer) for peer in PEERS}
    for what in EVENTS[:-1]:
        samples = {peer: Sample([found[what] for found in seen[peer]]) for peer in PEERS}
        _row(report, what, samples)
    _row(report, EVENTS[-1], {peer: Sample([float(hanging[peer])]) for peer in PEERS})
    for what in EVENTS:
        limit = 1.02 if what == "max/mean" else 0
        report.aim(what, "at most", limit, report.samples[f"sticky: {what}"])
    return report


def _row(report: Report, what: str, samples: Mapping[Peer, Sample]) -> None:
    for peer, sample in samples.items():
        report.samples[f"{peer.name}: {what}"] = sample
    report.rows.append((what, *(_shown(samples[peer]) for peer in PEERS)))


def _shown(sample: Sample) -> str:
    low, high = f"{sample.low:.4g}", f"{sample.high:.4g}"
    return low if low == high else f"{sample.median:.4g} ({low} to {high})"


# What a request costs.


def _costs(report: Report, handles: Mapping[Peer, Any], runs: int) -> None:
    sessions = _names(_KNOWN)
    for peer in PEERS:
        _homes(peer, handles[peer], sessions)
    medians: dict[Peer, list[float]] = {peer: [] for peer in PEERS}
    tails: dict[Peer, list[float]] = {peer: [] for peer in PEERS}
    rates: dict[Peer, list[float]] = {peer: [] for peer in PEERS}
    for number in range(runs):
        others_took.append(wait_for_quiet())
        for peer, took in _in_turns(handles, sessions).items():
            medians[peer].append(1e3 * statistics.median(took))
            tails[peer].append(1e3 * statistics.quantiles(took, n=100, method="inclusive")[98])
        first = number % len(PEERS)
        for peer in PEERS[first:] + PEERS[:first]:
            rates[peer].append(asyncio.run(_rate(peer, handles[peer], sessions * 2)))
    p50 = {peer: Sample(medians[peer]) for peer in PEERS}
    _row(report, "p50 of a known session, ms", p50)
    _row(report, "p99 of a known session, ms", {peer: Sample(tails[peer]) for peer in PEERS})
    _row(report, "requests/s, 16 at a time", {peer: Sample(rates[peer]) for peer in PEERS})
    by_name = {peer.name: sample for peer, sample in p50.items()}
    ratio = by_name["sticky"].over(by_name["consistent hash"])
    report.aim("p50, against consistent hash (times)", "at most", 1.10, ratio)


def _in_turns(handles: Mapping[Peer, Any], sessions: Sequence[str]) -> dict[Peer, list[float]]:
    """Time single requests, one of each peer after the other, each first in turn."""
    took: dict[Peer, list[float]] = {peer: [] for peer in PEERS}
    for number, name in enumerate(sessions):
        first = number % len(PEERS)
        for peer in PEERS[first:] + PEERS[:first]:
            began = time.perf_counter()
            _home(peer, handles[peer], name)
            took[peer].append(time.perf_counter() - began)
    return took


async def _rate(peer: Peer, handle: Any, sessions: Sequence[str]) -> float:
    left = iter(sessions)

    async def work() -> None:
        for name in left:
            await peer.ask(handle, name)

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(_CONCURRENT)))
    return len(sessions) / (time.perf_counter() - began)


# Who moves.


def _events(peer: Peer, count: int) -> dict[str, float]:
    serve.delete(peer.app)  # sessions of another round would count as load
    handle = peer.deploy(Chat, REPLICAS)
    _await_replicas(peer, REPLICAS)
    found = {"fresh ids on two replicas": float(_disagreements(peer, handle))}
    names = _names(count)
    home = _homes(peer, handle, names)
    loads = Counter(home.values())
    found["max/mean"] = max(loads.values()) * REPLICAS / count
    found["moved without event"] = _differ(home, _homes(peer, handle, names))
    handle = peer.deploy(Chat, REPLICAS + 1)
    _await_replicas(peer, REPLICAS + 1)
    scaled = _homes(peer, handle, names)
    found["moved on scale-out"] = _differ(home, scaled)
    found.update(_death(peer, handle, scaled))
    return found


def _death(peer: Peer, handle: Any, home: Homes) -> dict[str, float]:
    victim, pid = peer.ask(handle, next(iter(home))).result(timeout_s=_ANSWER_S)
    os.kill(pid, signal.SIGKILL)
    failed: list[str] = []
    first = _homes(peer, handle, home, failed)
    time.sleep(3)  # Serve notices by its health check, every second here
    _await_replicas(peer, REPLICAS + 1)
    second = _homes(peer, handle, home)
    theirs = [name for name in home if home[name] == victim]
    others = [name for name in home if home[name] != victim]
    return {
        "survivors' moved on death": sum(
            {home[name], first.get(name, home[name]), second[name]} != {home[name]}
            for name in others
        ),
        "victim's moved twice": sum(
            first.get(name, second[name]) not in (victim, second[name]) for name in theirs
        ),
        # What was sent to the dead replica before anyone knew may fail, as with every router.
        "failed after death": max(0, len(failed) - _AT_ONCE),
    }


def _disagreements(peer: Peer, handle: Any) -> int:
    elsewhere: Any = Elsewhere.remote(peer)  # type: ignore[attr-defined]
    ray.get(elsewhere.homes.remote(_names(8)))
    names = _names(_FRESH)
    theirs = elsewhere.homes.remote(names)
    with ThreadPoolExecutor(_CONCURRENT) as pool:
        ours = dict(
            zip(names, pool.map(lambda name: _home(peer, handle, name), names), strict=True)
        )
    answer: Homes = ray.get(theirs)
    ray.kill(elsewhere)
    return _differ(ours, answer)


def _nested(peer: Peer) -> int:
    front = peer.deploy(Chat, REPLICAS, nested=True)
    hanging: int = front.many.remote(_names(_NESTED), _NESTED_S).result(timeout_s=_ANSWER_S)
    serve.delete(f"{peer.app}-nested", _blocking=False)
    return hanging


def _names(count: int) -> list[str]:
    batch = next(_NAMES)
    return [f"session-{batch}-{number}" for number in range(count)]


def _home(peer: Peer, handle: Any, name: str) -> str:
    replica: str = peer.ask(handle, name).result(timeout_s=_ANSWER_S)[0]
    return replica


def _homes(peer: Peer, handle: Any, names: Iterable[str], failed: list[str] | None = None) -> Homes:
    """Ask for all sessions, some at a time; those that fail are named, if that is wanted."""
    homes: Homes = {}
    wanted = list(names)
    for start in range(0, len(wanted), _AT_ONCE):
        some = wanted[start : start + _AT_ONCE]
        asked = {name: peer.ask(handle, name) for name in some}
        for name, answer in asked.items():
            try:
                homes[name] = answer.result(timeout_s=_ANSWER_S)[0]
            except Exception:
                if failed is None:
                    raise
                failed.append(name)
    return homes


def _differ(one: Homes, other: Homes) -> int:
    return sum(one[name] != other[name] for name in one)


def _await_replicas(peer: Peer, count: int) -> None:
    end = time.monotonic() + _WAIT_S
    while _replicas(peer) != count and time.monotonic() < end:
        time.sleep(0.2)
    time.sleep(1)  # until every process has been told


def _replicas(peer: Peer) -> int:
    states = serve.status().applications[peer.app].deployments["Chat"].replica_states
    return sum(states.values()) if set(states) <= {"RUNNING"} else 0
