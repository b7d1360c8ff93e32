"""What it takes to move users with their states: many small ones, a large one, under calls."""

from __future__ import annotations

import re
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import ray_route
from benchmarks.harness import Plot, Report, Sample, others_took, wait_for_quiet
from benchmarks.setting import SERVICE, deployed, local_client

QUESTION = "users moved a second, seconds for a gigabyte, and what their callers notice"
_USERS, _QUICK_USERS = 10_000, 1_000
_GIGABYTE, _QUICK_BYTES = 1 << 30, 200 << 20
_CALLED = 50
_DRAIN_S = 300.0
_BESIDE_S = 1.0  # before and after a drain, to compare with
_STEP_S = 0.1


class Rooms:
    """Keeps a little of each user, or a lot."""

    def __init__(self) -> None:
        self.rooms: dict[str, dict[str, object]] = {}

    def on_acquire(self, uid: str, state: dict[str, object] | None) -> None:
        """Begin with what the last pod had."""
        self.rooms[uid] = state or {"said": 0, "load": b""}

    def on_release(self, uid: str) -> dict[str, object]:
        """Let it go."""
        return self.rooms.pop(uid)

    def say(self, uid: str) -> int:
        """Count."""
        room = self.rooms[uid]
        said = int(str(room["said"])) + 1
        room["said"] = said
        return said

    def fill(self, uid: str, size: int) -> None:
        """Have a lot to carry."""
        self.rooms[uid]["load"] = bytes(size)

    def watch(self, _: str) -> None:
        """Begin anew with what this process has in memory at most."""
        Path("/proc/self/clear_refs").write_text("5")

    def memory(self, _: str) -> tuple[int, int]:
        """Return the bytes that it has in memory, Ray's objects included: now, and at most."""
        status = Path("/proc/self/status").read_text()
        now, most = (re.search(rf"{name}:\s+(\d+) kB", status) for name in ("VmRSS", "VmHWM"))
        assert now is not None
        assert most is not None
        return int(now[1]) << 10, int(most[1]) << 10


class Caller:
    """Calls some users in turn, as fast as they answer, and notes each wait and each failure."""

    def __init__(self, client: ray_route.RouteClient, uids: Sequence[str]) -> None:
        self._client = client
        self._uids = uids
        self._ended = threading.Event()
        self.waits: list[float] = []
        self.at: list[float] = []
        self.failed = 0
        self.went_back = 0
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        said: dict[str, int] = {}
        while not self._ended.is_set():
            for uid in self._uids:
                begun = time.perf_counter()
                try:
                    count = self._client.call(uid, SERVICE, "say", uid, timeout=60)
                except ray_route.RouteError:
                    self.failed += 1
                    continue
                self.at.append(begun)
                self.waits.append(time.perf_counter() - begun)
                self.went_back += count <= said.get(uid, 0)
                said[uid] = count

    def during(self, begun: float, ended: float) -> list[float]:
        """Return the waits of the calls that began then, or waited then."""
        calls = zip(self.at, self.waits, strict=False)  # one may just be added
        return [wait for at, wait in calls if at <= ended and begun <= at + wait]

    def go_round(self) -> None:
        """Return when each has been called once more."""
        enough = len(self.waits) + self.failed + len(self._uids)
        while len(self.waits) + self.failed < enough:
            time.sleep(0.01)

    def __enter__(self) -> Caller:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def run(*, quick: bool) -> Report:
    """Measure."""
    report = Report("hand_over", QUESTION, ("what", "figure", "unit"))
    with local_client("bench-states") as client:
        _drained(report, client, _QUICK_USERS if quick else _USERS)
        _evened_out(report, client, _QUICK_USERS if quick else _USERS)
        size = _QUICK_BYTES if quick else _GIGABYTE
        _large(report, client, size, 1 if quick else 3)
        _hundred(report, client, size // 100)
    return report


def _drained(report: Report, client: ray_route.RouteClient, users: int) -> None:
    """Drain one of two pods while some users are called: once idle, once under calls."""
    with deployed(client, Rooms, replicas=2) as deployment:
        uids = [f"user-{number}" for number in range(2 * users)]
        _say(client, uids)
        moved, seconds = _drain(deployment)
        _note(report, "moved, nobody called", moved / seconds, "users/s")
    with deployed(client, Rooms, replicas=2) as deployment:
        uids = [f"called-{number}" for number in range(2 * users)]  # the others keep to one pod
        _say(client, uids)
        some = [uid for uid in uids if client.compute_linked_pod(uid, SERVICE).pod == 0]
        with _calling(client, some[:_CALLED]) as caller:
            time.sleep(_BESIDE_S)
            moved, seconds = _drain(deployment)
            ended = time.perf_counter()
            time.sleep(_BESIDE_S)
        waits = sorted(caller.during(ended - seconds, ended))
        report.plots["drain"] = _over_time(caller, ended - seconds, ended, moved)
        _note(report, "moved, under calls", moved / seconds, "users/s")
        _note(report, "longest pause of a called user", 1000 * waits[-1], "ms")
        _note(report, "wait of a call meanwhile, p50", 1000 * _at(waits, 0.5), "ms")
        _note(report, "wait of a call meanwhile, p99", 1000 * _at(waits, 0.99), "ms")
        _note(report, f"calls failed, of {len(waits):,}", caller.failed, "calls")
        _note(report, "counts that went back", caller.went_back, "counts")
        report.aim("calls failed in a drain", "at most", 0, Sample([float(caller.failed)]))
        report.aim("states lost in a drain", "at most", 0, Sample([float(caller.went_back)]))


def _over_time(caller: Caller, begun: float, ended: float, moved: int) -> Plot:
    """Draw the waits of calls, step by step."""
    steps = range(int(-_BESIDE_S / _STEP_S), int((ended - begun + _BESIDE_S) / _STEP_S))
    middle: tuple[list[float], list[float]] = [], []
    longest: tuple[list[float], list[float]] = [], []
    for step in steps:
        at = begun + step * _STEP_S
        waits = caller.during(at, at + _STEP_S)
        for line, figure in ((middle, statistics.median), (longest, max)) if waits else ():
            line[0].append(step * _STEP_S)
            line[1].append(1_000 * figure(waits))
    return Plot(
        f"Calls of {_CALLED} users, while they and {moved - _CALLED:,} others move",
        "seconds",
        f"ms that a call takes, in steps of {_STEP_S} s",
        {"longest": longest, "median": middle},
        linear=True,
        events={"drain begins": 0.0, "pod is empty": ended - begun},
    )


def _evened_out(report: Report, client: ray_route.RouteClient, users: int) -> None:
    """Rebalance at no limit after a pod was added, while some users are called."""
    with deployed(client, Rooms, replicas=1) as deployment:
        uids = [f"evened-{number}" for number in range(2 * users)]
        _say(client, uids)
        deployment.scale(2)
        with _calling(client, uids[:_CALLED]) as caller:
            before = len(caller.waits)
            others_took.append(wait_for_quiet())
            begun = time.perf_counter()
            done = deployment.rebalance(max_moves_per_s=1e6)
            seconds = time.perf_counter() - begun
        if done.problem:
            raise RuntimeError(done.problem)
        again = deployment.rebalance(dry_run=True)
        _note(report, "rebalanced, under calls", done.moved / seconds, "users/s")
        _note(report, "longest pause of a call meanwhile", 1000 * max(caller.waits[before:]), "ms")
        _note(report, "calls failed in a rebalancing", caller.failed, "calls")
        _note(report, "counts that went back in it", caller.went_back, "counts")
        _note(report, "users that stayed", len(done.kept), "users")
        _note(report, "users that a second run moves", len(again.moves), "users")
        report.aim("users that a second run moves", "at most", 0, Sample([float(len(again.moves))]))
        report.aim("calls failed in a rebalancing", "at most", 0, Sample([float(caller.failed)]))


@contextmanager
def _calling(client: ray_route.RouteClient, uids: Sequence[str]) -> Iterator[Caller]:
    """Call some users, each at least once before and once after what is measured."""
    with Caller(client, uids) as caller:
        caller.go_round()
        yield caller
        caller.go_round()


def _say(client: ray_route.RouteClient, uids: Sequence[str]) -> None:
    rooms = client.service(SERVICE)
    for start in range(0, len(uids), 1_000):
        rooms.map("say", {uid: (uid,) for uid in uids[start : start + 1_000]})


def _drain(deployment: ray_route.Deployment) -> tuple[int, float]:
    others_took.append(wait_for_quiet())
    begun = time.perf_counter()
    *_, last = deployment.drain(0, _DRAIN_S)
    if last.problem:
        raise RuntimeError(last.problem)
    return last.moved, time.perf_counter() - begun


def _large(report: Report, client: ray_route.RouteClient, size: int, runs: int) -> None:
    """Move one user who has a lot, there and back."""
    with deployed(client, Rooms, replicas=2):
        watchers = _watchers(client)
        client.call("ann", SERVICE, "fill", "ann", size, timeout=60)
        took = []
        for run in range(runs):
            pod = client.compute_linked_pod("ann", SERVICE).pod
            before = _watch(client, watchers)
            begun = time.perf_counter()
            client.move("ann", SERVICE, 1 - pod, timeout=120)
            client.call("ann", SERVICE, "say", "ann", timeout=60)
            took.append((time.perf_counter() - begun) * (1 << 30) / size)
            if run == 0:
                _note_memory(report, client, watchers, before, pod, size, "one state")
        sample = Sample(took)
        report.samples["a gigabyte"] = sample
        report.rows.append(("one state, until its next call", f"{sample.median:.2f}", "s/GB"))


def _hundred(report: Report, client: ray_route.RouteClient, size: int) -> None:
    """Drain a pod of a hundred users who have a good deal each."""
    with deployed(client, Rooms, replicas=2) as deployment:
        watchers = _watchers(client)
        uids = [f"large-{number}" for number in range(100)]
        _say(client, uids)
        for uid in uids:
            client.move(uid, SERVICE, 0)
            client.call(uid, SERVICE, "fill", uid, size, timeout=60)
        before = _watch(client, watchers)
        moved, seconds = _drain(deployment)
        assert moved >= len(uids)
        _note(report, "100 states in a drain", seconds * (1 << 30) / (100 * size), "s/GB")
        _note_most(report, client, watchers[1], before[1], 100 * size, "100 states, new pod")


def _watchers(client: ray_route.RouteClient) -> dict[int, str]:
    """Return a user of each of two pods."""
    for pod in (0, 1):
        client.move(f"watcher-{pod}", SERVICE, pod)
    return {pod: f"watcher-{pod}" for pod in (0, 1)}


def _watch(client: ray_route.RouteClient, watchers: dict[int, str]) -> dict[int, int]:
    """Have the pods notice what they have in memory at most; return what they have now."""
    for uid in watchers.values():
        client.call(uid, SERVICE, "watch", uid)
    return {pod: client.call(uid, SERVICE, "memory", uid)[0] for pod, uid in watchers.items()}


def _note_memory(
    report: Report,
    client: ray_route.RouteClient,
    watchers: dict[int, str],
    before: dict[int, int],
    pod: int,
    size: int,
    what: str,
) -> None:
    _note_most(report, client, watchers[pod], before[pod], size, f"{what}, old pod")
    _note_most(report, client, watchers[1 - pod], before[1 - pod], size, f"{what}, new pod")


def _note_most(
    report: Report, client: ray_route.RouteClient, uid: str, before: int, size: int, what: str
) -> None:
    most = client.call(uid, SERVICE, "memory", uid)[1]
    _note(report, f"{what}: memory at most, beyond before", (most - before) / size, "sizes")


def _at(waits: Sequence[float], share: float) -> float:
    return waits[int(share * (len(waits) - 1))]


def _note(report: Report, what: str, figure: float, unit: str) -> None:
    report.samples[what] = Sample([figure])
    report.rows.append((what, f"{figure:,.1f}" if figure % 1 else f"{figure:,.0f}", unit))
