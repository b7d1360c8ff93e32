"""What an upgrade costs users: how often each moves, which calls fail, how long anybody waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray_route
from benchmarks.harness import Report, Sample, others_took, wait_for_quiet
from benchmarks.setting import PODS, SERVICE, deployed, local_client

QUESTION = "moves of each user in an upgrade, calls that fail meanwhile, and what callers notice"
_USERS, _QUICK_USERS = 10_000, 1_000
_CALLED = 100
_SLICE = 1_000


class Room:
    """One user's; knows how often it has moved."""

    version = 1

    def __init__(self, uid: str) -> None:
        self.uid = uid
        self.said = 0
        self.moves = 0

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.moves += 1

    def say(self) -> tuple[int, int]:
        """Count."""
        self.said += 1
        return self.said, self.version

    def moved(self) -> int:
        """Return how often it has moved."""
        return self.moves


class NextRoom(Room):
    """The next version."""

    version = 2


class Caller:
    """Calls some users in turn, as fast as they answer; checks that each count follows the last."""

    def __init__(self, client: ray_route.RouteClient, uids: Sequence[str]) -> None:
        self._rooms = client.service(SERVICE)
        self._said = dict.fromkeys(uids, 1)
        self._ended = threading.Event()
        self.waits: list[float] = []
        self.failed = 0
        self.wrong = 0
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._ended.is_set():
            for uid in self._said:
                self._call(uid)

    def _call(self, uid: str) -> None:
        begun = time.perf_counter()
        try:
            said, _ = self._rooms[uid].say.remote().result(timeout_s=60)
        except ray_route.RouteError:
            self.failed += 1
            return
        self.waits.append(time.perf_counter() - begun)
        self.wrong += said != self._said[uid] + 1
        self._said[uid] = said


@contextmanager
def _calling(client: ray_route.RouteClient, uids: Sequence[str]) -> Iterator[Caller]:
    caller = Caller(client, uids)
    caller._thread.start()
    try:
        yield caller
    finally:
        caller._ended.set()
        caller._thread.join()


def run(*, quick: bool) -> Report:
    """Measure."""
    report = Report("upgrade", QUESTION, ("what", "figure", "unit"))
    users = _QUICK_USERS if quick else _USERS
    uids = [f"user-{number}" for number in range(users)]
    with (
        local_client("bench-upgrade") as client,
        deployed(client, Room, PODS, per_uid=True) as deployment,
    ):
        _measure(report, client, deployment, uids)
    return report


def _measure(
    report: Report,
    client: ray_route.RouteClient,
    deployment: ray_route.Deployment,
    uids: Sequence[str],
) -> None:
    _each(client, uids, "say")
    with _calling(client, uids[:: len(uids) // _CALLED]) as caller:
        others_took.append(wait_for_quiet())
        before, begun = len(caller.waits), time.perf_counter()
        deployment.upgrade(NextRoom)
        seconds = time.perf_counter() - begun
    waits = sorted(caller.waits[before:])
    moves = [float(moved) for moved in _each(client, uids, "moved")]
    versions = {version for _, version in _each(client, uids, "say")}
    if versions != {NextRoom.version}:
        raise RuntimeError(f"users are served by versions {versions}")
    per_user = sum(moves) / len(moves)
    _note(report, f"upgrade of {PODS} pods with {len(uids):,} users", seconds, "s")
    _note(report, "moves of a user, mean", per_user, "moves")
    _note(report, "moves of a user, most", max(moves), "moves")
    _note(report, f"calls failed, of {len(waits):,}", caller.failed, "calls")
    _note(report, "counts that were not the next", caller.wrong, "counts")
    _note(report, "wait of a call meanwhile, p50", 1000 * _at(waits, 0.5), "ms")
    _note(report, "wait of a call meanwhile, p99", 1000 * _at(waits, 0.99), "ms")
    _note(report, "longest wait of a call", 1000 * waits[-1], "ms")
    report.aim("moves of a user", "at most", 1, Sample([per_user]))
    report.aim("calls failed in an upgrade", "at most", 0, Sample([float(caller.failed)]))
    report.aim("states lost in an upgrade", "at most", 0, Sample([float(caller.wrong)]))


def _each(client: ray_route.RouteClient, uids: Sequence[str], method: str) -> list[Any]:
    rooms, answers = client.service(SERVICE), []
    for start in range(0, len(uids), _SLICE):
        some = rooms.map(method, dict.fromkeys(uids[start : start + _SLICE], ()))
        answers += list(some.values())
    return answers


def _at(waits: Sequence[float], share: float) -> float:
    return waits[int(share * (len(waits) - 1))]


def _note(report: Report, what: str, figure: float, unit: str) -> None:
    report.samples[what] = Sample([figure])
    report.rows.append((what, f"{figure:,.2f}" if figure % 1 else f"{figure:,.0f}", unit))
