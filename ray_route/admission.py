"""Which calls a pod may serve: its membership, and its own lease on every uid. No I/O here."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from enum import Enum

from ray_route.clock import Clock, Deadline, now
from ray_route.model import Link

# A pod stops this much before the router may call its lease ended, whatever their clocks' rates.
_LEASE_SHARE = 0.9

# A router that asked for a release acts on it within a minute or takes it back. Later the link
# in Redis says all that a mark could.
_MARK_S = 300.0


class Membership:
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
        """Take in a renewal; False if it came too late, which ends the membership for ever.

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
    used: bool = True
    running: int = 0


class Admissions:
    """The uids that one incarnation serves, each under a lease of its own. Thread-safe."""

    def __init__(self, pod: int, membership: Membership, clock: Clock = now) -> None:
        self.membership = membership
        self.running = 0
        self._pod = pod
        self._clock = clock
        self._lock = threading.Lock()
        self._left = threading.Condition(self._lock)
        self._held: dict[str, _Held] = {}
        self._released: dict[str, tuple[int, float]] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._held)

    # Calls.

    def enter(self, uid: str, epoch: int, incarnation: int) -> tuple[Verdict, str]:
        """Judge a call; count it as running if it is admitted. A refusal has a reason."""
        with self._lock:
            verdict, reason = self._judge(uid, epoch, incarnation)
            if verdict is Verdict.ADMIT:
                held = self._held[uid]
                held.running += 1
                held.used = True
                self.running += 1
            return verdict, reason

    def leave(self, uid: str) -> None:
        """Stop counting a call as running."""
        with self._lock:
            self.running -= 1
            held = self._held.get(uid)
            if held is not None:
                held.running -= 1
            if held is None or held.running == 0:
                self._left.notify_all()

    def wait_idle(self, deadline: Deadline) -> bool:
        """Wait until no call runs; False if some still do at the deadline."""
        with self._lock:
            return self._left.wait_for(lambda: self.running == 0, deadline.remaining())

    def _judge(self, uid: str, epoch: int, incarnation: int) -> tuple[Verdict, str]:
        if not self.membership.is_alive():
            return Verdict.REFUSE, "the pod's membership has ended"
        if self._closed:
            return Verdict.REFUSE, "the pod has been drained"
        if incarnation != self.membership.incarnation:
            return Verdict.REFUSE, f"this is incarnation {self.membership.incarnation}"
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
        if not self.membership.is_alive():
            return Verdict.REFUSE, "the pod's membership has ended"
        with self._lock:
            return self._judge_held(uid, epoch)

    # What Redis says.

    def judge_link(self, epoch: int, link: Link | None) -> str:
        """Judge a call by the link just read; return the reason of a refusal, or nothing."""
        mine = (self._pod, self.membership.incarnation, epoch)
        if link is None or (link.pod, link.incarnation, link.epoch) != mine:
            return "the directory does not confirm it"
        return ""

    def is_new(self, uid: str, epoch: int) -> bool:
        """True if the uid is not held under that epoch."""
        held = self._held.get(uid)
        return held is None or held.epoch < epoch

    def hold(self, uid: str, epoch: int, deadline: float) -> str:
        """Take the uid in until its own lease ends; return the reason why not, or nothing."""
        with self._lock:
            return self._hold(uid, epoch, deadline)

    def take(self, uid: str, epoch: int, deadline: float) -> str:
        """Hold the uid and count a call as running: Redis has just confirmed this very call.

        So it is admitted however little is left of the lease.
        """
        with self._lock:
            reason = self._hold(uid, epoch, deadline)
            if not reason:
                held = self._held[uid]
                held.running += 1
                held.used = True
                self.running += 1
            return reason

    def _hold(self, uid: str, epoch: int, deadline: float) -> str:
        verdict, reason = self._judge(uid, epoch, self.membership.incarnation)
        if verdict is Verdict.REFUSE:
            return reason
        held = self._held.get(uid)
        if held is not None and held.epoch == epoch:
            held.deadline = max(held.deadline, deadline)
        else:
            self._held[uid] = _Held(epoch, deadline, running=held.running if held else 0)
        return ""

    def holds(self, uid: str) -> bool:
        """True if the uid is held under any epoch."""
        return uid in self._held

    # Giving up.

    def release(self, uid: str, epoch: int, deadline: Deadline) -> bool:
        """Refuse the uid up to that epoch, and wait for its running calls.

        False if they don't end in time: then the uid is served again as before.
        """
        with self._lock:
            self._released[uid] = (epoch, self._clock() + _MARK_S)
            held = self._held.get(uid)
            idle = held is None or self._left.wait_for(
                lambda: held.running == 0, deadline.remaining()
            )
            if not idle:
                self._released.pop(uid, None)  # taken back while it waited
            return idle

    def forget(self, uid: str, epoch: int) -> None:
        """Drop a released uid."""
        with self._lock:
            held = self._held.get(uid)
            if held is not None and held.epoch <= epoch:
                del self._held[uid]

    def reopen(self, uid: str, epoch: int) -> None:
        """Take a release back: what Redis confirms is served again."""
        with self._lock:
            if self._mark(uid) == epoch:
                del self._released[uid]

    def reopen_all(self) -> None:
        """Take every release back, and open again: the router that asked for them is no more."""
        with self._lock:
            self._released.clear()
            self._closed = False

    def cap(self, uid: str, epoch: int, deadline: float) -> None:
        """End the uid's own lease earlier."""
        with self._lock:
            held = self._held.get(uid)
            if held is not None and held.epoch == epoch:
                held.deadline = min(held.deadline, deadline)

    def close(self) -> None:
        """Admit nothing any more."""
        with self._lock:
            self._closed = True

    def _mark(self, uid: str) -> int:
        epoch, until = self._released.get(uid, (0, 0.0))
        return epoch if self._clock() < until else 0

    # What is held.

    def holdings(self) -> dict[str, int]:
        """Return all uids held, with their epochs."""
        with self._lock:
            return {uid: held.epoch for uid, held in self._held.items()}

    def review(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return the uids used since the last review, and the idle ones whose lease is over."""
        used, idle = {}, {}
        at = self._clock()
        with self._lock:
            for uid, held in self._held.items():
                if held.used or held.running:
                    used[uid] = held.epoch
                    held.used = False
                elif at >= held.deadline:
                    idle[uid] = held.epoch
            for uid in [uid for uid, (_, until) in self._released.items() if at >= until]:
                del self._released[uid]
        return used, idle
