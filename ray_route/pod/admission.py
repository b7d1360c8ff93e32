"""Which calls a pod may serve: its lease, and its own lease on every uid. No I/O here."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from ray_route.clock import Clock, Deadline, now
from ray_route.model import Link
from ray_route.protocol.commands import REFUSED_FOR_S

# A pod stops this much before the router may call its lease ended, whatever their clocks' rates.
_LEASE_SHARE = 0.9


class PodLease:
    """One incarnation's time in the service. Once it has ended it never comes back."""

    def __init__(
        self, incarnation: int, lease_s: float, asked_at: float, clock: Clock = now
    ) -> None:
        self.incarnation = incarnation
        self._lease_s = lease_s * _LEASE_SHARE
        self._clock = clock
        self._lock = threading.Lock()
        self._deadline = asked_at + self._lease_s

    def is_alive(self) -> bool:
        """True until the lease has run out, counted from before the last renewal was sent."""
        return self._clock() < self._deadline

    def renewed(self, asked_at: float) -> bool:
        """Take in a renewal; False if it came too late, which ends the lease for ever.

        A thread that wakes first after a freeze must not open the gate for calls that were
        admitted under the old lease.
        """
        with self._lock:
            if not self.is_alive():
                return False
            self._deadline = max(self._deadline, asked_at + self._lease_s)
            return True

    def end(self) -> None:
        """End it now."""
        with self._lock:
            self._deadline = float("-inf")


class Verdict(Enum):
    """What to do with a call."""

    ADMIT = "admit"
    CONFIRM = "confirm"
    REFUSE = "refuse"


@dataclass(slots=True)
class _Held:
    epoch: int
    deadline: float
    used_at: float
    persistent: bool = False
    running: int = 0


@dataclass(slots=True)
class _Mark:
    """One release's refusal of a uid, up to an epoch."""

    epoch: int
    until: float


class Admissions:
    """The uids that one incarnation serves, each under a lease of its own. Thread-safe.

    Calls that run, `on_acquire` included, are counted per uid; an entry with a call running is
    never dropped.
    """

    def __init__(self, pod: int, lease: PodLease, clock: Clock = now) -> None:
        self.lease = lease
        self.running = 0
        self._pod = pod
        self._clock = clock
        self._lock = threading.Lock()
        self._left = threading.Condition(self._lock)
        self._held: dict[str, _Held] = {}
        self._marks: dict[str, dict[int, _Mark]] = {}
        self._caps: dict[str, tuple[int, float]] = {}
        self._cancelled: set[int] = set()
        self._closed = False
        self._shut = False

    def __len__(self) -> int:
        return len(self._held)

    # Calls.

    def enter(self, uid: str, epoch: int, incarnation: int) -> tuple[Verdict, str]:
        """Judge a call; count it as running if it is admitted. A refusal has a reason."""
        with self._lock:
            verdict, reason = self._judge(uid, epoch, incarnation)
            if verdict is Verdict.ADMIT:
                self._run(self._held[uid])
            return verdict, reason

    def _run(self, held: _Held) -> None:
        held.running += 1
        held.used_at = self._clock()
        self.running += 1

    def leave(self, uid: str) -> None:
        """Stop counting a call as running."""
        with self._lock:
            self.running -= 1
            held = self._held[uid]
            held.running -= 1
            held.used_at = self._clock()
            if held.running == 0:
                self._left.notify_all()

    def wait_idle(self, deadline: Deadline) -> bool:
        """Wait until no call runs; False if some still do at the deadline."""
        with self._lock:
            return self._left.wait_for(lambda: self.running == 0, deadline.remaining())

    def _judge(self, uid: str, epoch: int, incarnation: int) -> tuple[Verdict, str]:
        if not self.lease.is_alive():
            return Verdict.REFUSE, "the pod's lease has ended"
        if self._closed or self._shut:
            return Verdict.REFUSE, "the pod has been drained"
        if incarnation != self.lease.incarnation:
            return Verdict.REFUSE, f"this is incarnation {self.lease.incarnation}"
        if epoch <= self._mark(uid):
            return Verdict.REFUSE, "the uid has been released"
        return self._judge_held(uid, epoch)

    def _judge_held(self, uid: str, epoch: int) -> tuple[Verdict, str]:
        held = self._held.get(uid)
        if held is None or held.epoch < epoch or self._clock() >= held.deadline:
            return Verdict.CONFIRM, ""
        if held.epoch > epoch:
            return Verdict.REFUSE, f"the uid has epoch {held.epoch} now"
        return Verdict.ADMIT, ""

    def still(self, uid: str, epoch: int) -> tuple[Verdict, str]:
        """Judge a call that has run, before its result leaves.

        A release that waits for this very call does not refuse it.
        """
        if not self.lease.is_alive():
            return Verdict.REFUSE, "the pod's lease has ended"
        with self._lock:
            return self._judge_held(uid, epoch)

    # What Redis says.

    def judge_link(self, epoch: int, link: Link | None) -> str:
        """Judge a call by the link just read; return the reason of a refusal, or nothing."""
        mine = (self._pod, self.lease.incarnation, epoch)
        if link is None or (link.pod, link.incarnation, link.epoch) != mine:
            return "the directory does not confirm it"
        return ""

    def begin_acquire(self, uid: str, epoch: int) -> bool:
        """Count the acquisition of a uid as a running call; False if it is held already.

        So a release waits for `on_acquire`, and `on_release` follows it. Ends with `leave`.
        """
        with self._lock:
            held = self._held.get(uid)
            if held is not None and held.epoch >= epoch:
                return False
            running = held.running if held else 0
            self._held[uid] = _Held(epoch, -math.inf, self._clock(), running=running)
            self._run(self._held[uid])
            return True

    def hold(self, uid: str, epoch: int, deadline: float, *, persistent: bool = False) -> str:
        """Take the uid in until its own lease ends; return the reason why not, or nothing."""
        with self._lock:
            return self._hold(uid, epoch, deadline, persistent=persistent)

    def take(self, uid: str, epoch: int, deadline: float) -> str:
        """Hold the uid and count a call as running: Redis has just confirmed this very call.

        So it is admitted however little is left of the lease.
        """
        with self._lock:
            held = self._held.get(uid)
            persistent = held is not None and held.persistent
            reason = self._hold(uid, epoch, deadline, persistent=persistent)
            if not reason:
                self._run(self._held[uid])
            return reason

    def _hold(self, uid: str, epoch: int, deadline: float, *, persistent: bool) -> str:
        verdict, reason = self._judge(uid, epoch, self.lease.incarnation)
        if verdict is Verdict.REFUSE:
            return reason
        capped_epoch, cap = self._caps.get(uid, (0, math.inf))
        if capped_epoch == epoch:
            deadline = min(deadline, cap)
        held = self._held.get(uid)
        if held is not None and held.epoch == epoch:
            held.deadline = max(held.deadline, deadline)
            held.persistent = persistent
        else:
            running = held.running if held else 0
            self._held[uid] = _Held(epoch, deadline, self._clock(), persistent, running)
        return ""

    def use(self, links: Mapping[str, Link], life_s: float) -> None:
        """Hold uids that callers have routed here, for so many seconds from now."""
        at = self._clock()
        with self._lock:
            for uid, link in links.items():
                if link.incarnation == self.lease.incarnation and not self._hold(
                    uid, link.epoch, at + life_s, persistent=link.persistent
                ):
                    self._held[uid].used_at = at

    # Giving up.

    def release(self, uid: str, epoch: int, deadline: Deadline, number: int = 0) -> bool:
        """Refuse the uid up to that epoch, and wait for its running calls.

        False if they don't end in time, or if the release was taken back: then the uid is served
        as before, as far as this release is concerned.
        """
        with self._lock:
            self._marks.setdefault(uid, {})[number] = _Mark(epoch, self._clock() + REFUSED_FOR_S)
            self._left.wait_for(
                lambda: self._is_idle(uid) or not self._stands(uid, number), deadline.remaining()
            )
            given_up = self._is_idle(uid) and self._stands(uid, number)
            if not given_up:
                self._unmark(uid, number)
            return given_up

    def _stands(self, uid: str, number: int) -> bool:
        """True unless the release has been taken back while it waited."""
        return number not in self._cancelled and number in self._marks.get(uid, {})

    def _is_idle(self, uid: str) -> bool:
        held = self._held.get(uid)
        return held is None or held.running == 0

    def holds(self, uid: str, up_to_epoch: int) -> bool:
        """True if the uid is held under an epoch up to that one."""
        held = self._held.get(uid)
        return held is not None and held.epoch <= up_to_epoch

    def forget(self, uid: str, epoch: int) -> None:
        """Drop a released uid."""
        with self._lock:
            held = self._held.get(uid)
            if held is not None and held.epoch <= epoch and held.running == 0:
                del self._held[uid]
                self._caps.pop(uid, None)

    def forget_all(self) -> list[str]:
        """Drop everything without a call running; return what was dropped."""
        with self._lock:
            dropped = [uid for uid, held in self._held.items() if held.running == 0]
            for uid in dropped:
                del self._held[uid]
            return dropped

    def reopen(self, uids: Iterable[str], number: int) -> None:
        """Take a release back, also one to come: what Redis confirms is served."""
        with self._lock:
            self._cancelled.add(number)
            for uid in uids:
                self._unmark(uid, number)
            self._left.notify_all()

    def reopen_all(self) -> None:
        """Take every release and an unfinished drain back: their router is no more."""
        with self._lock:
            self._marks.clear()
            self._closed = False
            self._left.notify_all()

    def _unmark(self, uid: str, number: int) -> None:
        marks = self._marks.get(uid, {})
        marks.pop(number, None)
        if not marks:
            self._marks.pop(uid, None)

    def _mark(self, uid: str) -> int:
        marks = self._marks.get(uid)
        if not marks:
            return 0
        at = self._clock()
        return max((mark.epoch for mark in marks.values() if at < mark.until), default=0)

    def cap(self, uid: str, epoch: int, deadline: float) -> None:
        """End the uid's own lease earlier, also one that is about to begin."""
        with self._lock:
            capped_epoch, cap = self._caps.get(uid, (0, math.inf))
            if epoch > capped_epoch or (epoch == capped_epoch and deadline < cap):
                self._caps[uid] = (epoch, deadline)
            held = self._held.get(uid)
            if held is not None and held.epoch == epoch:
                held.deadline = min(held.deadline, deadline)

    def close(self) -> None:
        """Admit nothing, until `open`."""
        with self._lock:
            self._closed = True

    def open(self) -> None:
        """Take `close` back."""
        with self._lock:
            self._closed = False

    def shut(self) -> None:
        """Admit nothing any more: others may own what this incarnation held."""
        with self._lock:
            self._shut = True

    # What is held.

    def holdings(self) -> dict[str, int]:
        """Return all uids held, with their epochs."""
        with self._lock:
            return {uid: held.epoch for uid, held in self._held.items()}

    def kinds(self) -> dict[str, tuple[int, bool]]:
        """Return all uids held, with their epochs, and whether their links were persistent."""
        with self._lock:
            return {uid: (held.epoch, held.persistent) for uid, held in self._held.items()}

    def review(self, since: float, idle_s: float) -> tuple[dict[str, int], dict[str, int]]:
        """Return the uids used since then, and the temporary ones idle for so many seconds.

        Also forgets marks and caps that can matter no more.
        """
        used, idle = {}, {}
        at = self._clock()
        with self._lock:
            for uid, held in self._held.items():
                if held.running or held.used_at >= since:
                    used[uid] = held.epoch
                elif not held.persistent and at >= max(held.deadline, held.used_at + idle_s):
                    idle[uid] = held.epoch
            self._prune(at)
        return used, idle

    def _prune(self, at: float) -> None:
        for uid, marks in list(self._marks.items()):
            for number in [number for number, mark in marks.items() if at >= mark.until]:
                self._unmark(uid, number)
        for uid, (_, deadline) in list(self._caps.items()):
            if at >= deadline + REFUSED_FOR_S:
                del self._caps[uid]
        if not self._marks:
            self._cancelled.clear()
