"""What a pod of many users does for each call and every second: not more than one of few."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial

from benchmarks.harness import Report, Sample, others_took, wait_for_quiet
from ray_route.clock import now
from ray_route.model import Link
from ray_route.pod.admission import Admission, Verdict
from ray_route.pod.holdings import Holdings
from ray_route.pod.idle import look_for_idle
from ray_route.pod.in_use import in_use
from ray_route.pod.memory import shown
from ray_route.pod.next_work import NextWork
from ray_route.pod.pod_lease import PodLease
from ray_route.pod.release import Releases
from ray_route.protocol.commands import Outcome

QUESTION = "one call's admission, and a second's looks, in a pod of so many users"
_SIZES = (1_000, 10_000, 100_000)
_ROUNDS, _QUICK_ROUNDS = 9, 5
_USED = 100
_TIMES = 20
_LEASE_S, _IDLE_S = 240.0, 3_600.0
# Tables of 100,000 do not fit the processor's cache, those of 1,000 do.
_LIMIT = 3.0


class _Pod:
    """A pod's books, without its process: users "0", "1", … under epoch 7, of which 100 call."""

    def __init__(self, users: int) -> None:
        self.held = Holdings(0, PodLease(1, math.inf, now()), _IDLE_S)
        self.admission, self.releases = Admission(self.held), Releases(self.held)
        self.work = NextWork(self.held)
        self.used = [str(number) for number in range(0, users, users // _USED)]
        self._numbers = range(users, 10**9)
        for number in range(users):
            self._acquire(str(number))

    def _acquire(self, uid: str) -> None:
        link = Link(0, 1, 7, persistent=False, lease_s=_LEASE_S)
        self.admission.confirmed(uid, 7, link, now(), self.held.term)
        self.admission.acquired(uid, 7)

    def first_calls(self) -> int:
        """Take in users that are new."""
        some, self._numbers = self._numbers[:_USED], self._numbers[_USED:]
        for number in some:
            self._acquire(str(number))
        return _USED

    def calls(self) -> int:
        """Admit a call of each of those that call."""
        for uid in self.used:
            verdict, _ = self.admission.enter(uid, 7, 1)
            assert verdict is Verdict.ADMIT
            self.admission.leave(uid)
        return _USED

    def look(self) -> int:
        """Look for what is due, and for those that are idle, as every second."""
        self.releases.tick()
        look_for_idle(self.held)
        return 1

    def report(self) -> int:
        """Find those whose links must live on, as every tenth of their life."""
        since = now()
        self.calls()
        found = in_use(self.held, since)
        assert _USED <= len(found) <= 3 * _USED  # with those that have come last
        return 1

    def move(self) -> int:
        """Give up a few users to a mover, as each step of a drain does."""
        uids = dict.fromkeys(self.used[:10], 7)
        self.releases.release(1, uids, 60.0, closes=True, router=1)
        for work in self.work.take(len(uids)):
            assert self.work.may_begin(work)
            self.work.ended(work.uid, work.epoch, None)
        told: list[Outcome] = self.held.outcomes.take()
        assert len(told) == len(uids)
        for uid in uids:
            self.held.forget(uid)
            self._acquire(uid)
        return len(uids)

    def list_all(self) -> int:
        """List all, which a drain asks for at each of its looks, and a recovery once."""
        return len(shown(self.held).held)


_WORK: dict[str, Callable[[_Pod], int]] = {
    "a call, admitted and ended": _Pod.calls,
    "a first call, taken in": _Pod.first_calls,
    "a second's look for what is due or idle": _Pod.look,
    f"a report of {_USED} in use, their calls included": _Pod.report,
    "a user given up in a drain": _Pod.move,
    "a user in the list of all, as each look of a drain asks for": _Pod.list_all,
}


def run(*, quick: bool) -> Report:
    """Measure."""
    report = Report("many_uids", QUESTION, ("what", *(f"{size:,}" for size in _SIZES), "unit"))
    pods = [_Pod(size) for size in _SIZES]
    others_took.append(wait_for_quiet())
    for what, work in _WORK.items():
        samples = [_timed(partial(work, pod), quick=quick) for pod in pods]
        report.rows.append((what, *(f"{sample.median:,.2f}" for sample in samples), "µs"))
        report.samples |= {f"{what}, {n:,}": one for n, one in zip(_SIZES, samples, strict=True)}
        growth = Sample([samples[-1].median / samples[0].median])
        report.aim(f"{what}, of {_SIZES[-1]:,} against {_SIZES[0]:,}", "at most", _LIMIT, growth)
    return report


def _timed(work: Callable[[], int], *, quick: bool) -> Sample:
    """Return the processor time of one, in microseconds."""
    work()
    times = []
    for _ in range(_QUICK_ROUNDS if quick else _ROUNDS):
        begun = time.process_time()
        done = sum(work() for _ in range(_TIMES))
        times.append((time.process_time() - begun) / done * 1e6)
    return Sample(times)
