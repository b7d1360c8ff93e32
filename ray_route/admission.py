"""Which calls a pod may serve: its membership, and its own lease on every uid. No I/O here."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from enum import Enum

from ray_route.clock import Clock, now
from ray_route.model import Link

# A pod stops this much before the router may call its lease ended, whatever their clocks' rates.
_LEASE_SHARE = 0.9


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


class Admissions:
    """The uids that an incarnation serves, each under a lease of its own. Thread-safe."""

    def __init__(self, pod: int, membership: Membership, clock: Clock = now) -> None:
        self.membership = membership
        self._pod = pod
        self._clock = clock
        self._lock = threading.Lock()
        self._held: dict[str, _Held] = {}
        self._released: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._held)

    def check(self, uid: str, epoch: int, incarnation: int) -> tuple[Verdict, str]:
        """Judge a call, with the reason of a refusal."""
        if not self.membership.is_alive():
            return Verdict.REFUSE, "the pod's membership has ended"
        if incarnation != self.membership.incarnation:
            return Verdict.REFUSE, f"this is incarnation {self.membership.incarnation}"
        if epoch <= self._released.get(uid, 0):
            return Verdict.REFUSE, "the uid has been released"
        held = self._held.get(uid)
        if held is None or held.epoch < epoch or self._clock() >= held.deadline:
            return Verdict.CONFIRM, ""
        if held.epoch > epoch:
            return Verdict.REFUSE, f"the uid has epoch {held.epoch} now"
        return Verdict.ADMIT, ""

    def judge(self, epoch: int, link: Link | None) -> str:
        """Judge a call by the link just read; return the reason of a refusal, or nothing."""
        mine = (self._pod, self.membership.incarnation, epoch)
        if link is None or (link.pod, link.incarnation, link.epoch) != mine:
            return "the directory does not confirm it"
        return ""

    def is_new(self, uid: str, epoch: int) -> bool:
        """True if the uid has not been held under that epoch before."""
        held = self._held.get(uid)
        return held is None or held.epoch < epoch

    def hold(self, uid: str, epoch: int, deadline: float) -> str:
        """Take the uid in until its own lease ends; return the reason why not, or nothing."""
        with self._lock:
            if not self.membership.is_alive():
                return "the pod's membership has ended"
            if epoch <= self._released.get(uid, 0):
                return "the uid has been released"
            held = self._held.get(uid)
            if held is not None and held.epoch > epoch:
                return f"the uid has epoch {held.epoch} now"
            self._held[uid] = _Held(epoch, deadline)
        return ""
