"""The uids of one pod process: for each, where it stands between nobody's and served.

A uid is nobody's until its release has ended. Its states, an absent uid having no entry:

    absent --confirmed--> ACQUIRING --acquired--> HELD --take--> ENDING --ended--> GIVEN
                                                                                     |
           absent <--settled (Redis names another link)------------------------------+
           ACQUIRING <--confirmed (Redis names this pod under a higher epoch)--------+

A release that is asked for is a wish until `take` begins it: until then it can be taken back, and
nothing was taken from the uid. From then on the hook runs, once, to its end; the uid comes back to
this pod under a higher epoch only, and is acquired anew.

Here is the state itself, and what the pod's lease does to it; calls come in by `admission`, uids
are given up by `release`. No I/O in any of the three.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field
from enum import Enum

from ray_route.clock import Clock, Deadline, now
from ray_route.pod.pod_lease import PodLease
from ray_route.protocol.commands import Outcome

# No read of a link takes longer; one that does is asked for again.
_ANY_READ_S = 60.0


class Phase(Enum):
    """Where a uid stands; one that is absent has none."""

    ACQUIRING = "acquiring"
    HELD = "held"
    ENDING = "ending"
    GIVEN = "given"


@dataclass(slots=True)
class Wish:
    """A release that is asked for: by which router, until when, and whether calls are refused."""

    router: int
    epoch: int
    until: float
    closes: bool
    term: int
    void: bool = False
    """It was taken back, or its router superseded, after the hook had been taken out to be run."""


@dataclass(slots=True)
class Entry:
    """What is known of one uid."""

    epoch: int
    phase: Phase
    term: int
    until: float = -math.inf
    """The end of the pod's own lease on the uid."""
    used_at: float = 0.0
    persistent: bool = False
    running: int = 0
    due_at: float = math.inf
    """When a scheduled removal is due."""
    lost: bool = False
    """Redis does not name this pod: nothing is saved, `on_lost` runs when its calls have ended."""
    begun: bool = False
    """Its hook runs: from here on nothing stops it."""
    removes: bool = False
    """It is given up by the pod itself: its link is to go."""
    given_at: float = math.inf
    wishes: dict[int, Wish] = field(default_factory=dict)

    def refuses_calls(self, at: float) -> bool:
        """True while it is to be given up as soon as its calls have ended."""
        return at >= self.due_at or any(wish.closes for wish in self.wishes.values())

    def is_idle(self, at: float, idle_s: float) -> bool:
        """True if nobody has used it for so long that the pod gives it up by itself."""
        return not (self.persistent or self.running) and at >= self.used_at + idle_s


class Holdings:
    """The uids that a process serves, through all its incarnations. Thread-safe.

    `term` counts the lapses of the pod's lease: what was asked for or read in an earlier term is
    void. Whoever reads or changes the rest holds `lock`. `clock` is injected by tests.
    """

    def __init__(self, pod: int, lease: PodLease, idle_s: float, clock: Clock = now) -> None:
        self.pod = pod
        self.lease = lease
        self.term = 1
        self.running = 0
        self.entries: dict[str, Entry] = {}
        self.lock = threading.Lock()
        self.clock = clock
        self.closed = ""
        """Why nothing is admitted for a while; empty: it is."""
        self.shut = ""
        """Why nothing is admitted in this life any more; empty: it is."""
        self.leaving = False
        self.ready: set[str] = set()
        """Uids that are to be given up or dropped, as far as their calls allow."""
        self.timed: set[str] = set()
        """Uids that a moment is set for."""
        self.confirming: set[str] = set()
        self.due: dict[str, tuple[int, float]] = {}
        """Epochs of uids, and when they are to be given up."""
        self.outcomes: list[Outcome] = []
        self.given_up: set[str] = set()
        """Uids that are nobody's, as far as this pod knows."""
        self._forgotten: dict[str, float] = {}
        self._all_forgotten_at = -math.inf
        self._idle_s = idle_s
        self._work = threading.Condition(self.lock)
        self._idle = threading.Condition(self.lock)
        self._woken = False

    def __len__(self) -> int:
        """Number of uids that are this pod's load: not those given up."""
        return len(self.entries) - len(self.given_up)

    def is_confirmed(self, entry: Entry) -> bool:
        """True while Redis' word on a uid, given in this term, holds."""
        return entry.term == self.term and self.clock() < entry.until

    def is_to_end(self, entry: Entry) -> bool:
        """True if a uid is to be given up, or to be dropped."""
        at = self.clock()
        return bool(
            entry.lost
            or entry.wishes
            or self.leaving
            or at >= entry.due_at
            or entry.is_idle(at, self._idle_s)
        )

    def give(self, uid: str, entry: Entry) -> None:
        """Make a uid nobody's, up to the highest epoch asked for, and tell all who did."""
        for number, wish in entry.wishes.items():
            self.outcomes.append(Outcome(number, uid, wish.epoch, given=True))
            entry.epoch = max(entry.epoch, wish.epoch)
        entry.wishes = {}
        entry.phase, entry.given_at = Phase.GIVEN, self.clock()
        self.given_up.add(uid)

    def bar(self, uid: str, epoch: int, *, removes: bool = False) -> Entry:
        """Refuse a uid up to an epoch, of which nothing is held; return its entry."""
        entry = Entry(epoch, Phase.GIVEN, self.term, removes=removes, given_at=self.clock())
        self.entries[uid] = entry
        self.given_up.add(uid)
        return entry

    def forget(self, uid: str) -> None:
        """Drop an entry, and whatever has been asked about it so far."""
        del self.entries[uid]
        self.given_up.discard(uid)
        at = self.clock()
        self._forgotten.pop(uid, None)  # the latest come last
        self._forgotten[uid] = at
        while (first := next(iter(self._forgotten))) and self._forgotten[first] < at - _ANY_READ_S:
            self._all_forgotten_at = self._forgotten.pop(first)

    def forgotten_at(self, uid: str) -> float:
        """Return when a uid was last forgotten: a link that was asked for until then is void."""
        return self._forgotten.get(uid, self._all_forgotten_at)

    def look_at(self, uid: str, entry: Entry) -> None:
        """Have something done about a uid, if it is to be given up."""
        if entry.phase is Phase.HELD and not entry.running and self.is_to_end(entry):
            self.ready.add(uid)
            self.wake()

    def look_at_all(self) -> None:
        """Do the same for all."""
        for uid, entry in self.entries.items():
            self.look_at(uid, entry)

    def wake(self) -> None:
        """Let whoever waits for something to do go on."""
        self._woken = True
        self._work.notify_all()

    def wait_for_work(self, seconds: float) -> None:
        """Return when something is to be done or told, or so many seconds later."""
        with self.lock:
            self._work.wait_for(lambda: self._woken, seconds)
            self._woken = False

    def ended_call(self) -> None:
        """Count one running call less."""
        self.running -= 1
        if self.running == 0:
            self._idle.notify_all()

    def wait_idle(self, deadline: Deadline) -> bool:
        """Wait until no call runs; False if some still do at the deadline."""
        with self.lock:
            return self._idle.wait_for(lambda: self.running == 0, deadline.remaining())

    # The pod's lease.

    def renew(self, asked_at: float) -> bool:
        """Take in a renewal sent at `asked_at`; False if the lease had lapsed by now.

        A thread that wakes first after a freeze must not open the gate for calls that were
        admitted under the old lease.
        """
        with self.lock:
            if not self.lease.serves():
                return False
            self.lease.extend(asked_at)
            return True

    def lapse(self) -> int:
        """Refuse all and keep all, until `resume`; void what was begun. Return the new term."""
        with self.lock:
            self.lease.suspend()
            self._void()
            return self.term

    def _void(self) -> None:
        self.term += 1
        self.confirming.clear()
        self.ready.clear()
        for entry in self.entries.values():
            if entry.phase is not Phase.ENDING:
                entry.wishes = {}

    def resume(self, term: int, asked_at: float) -> bool:
        """Serve again by a renewal sent at `asked_at` and confirmed, if both were in this term.

        Each uid is confirmed before its next call or hook.
        """
        with self.lock:
            if term == self.term:
                self.lease.extend(asked_at)
            self.look_at_all()
            return term == self.term and self.lease.serves()

    def begin(self, lease: PodLease, pod: int) -> None:
        """Begin another life: of what the last one held, nothing is saved."""
        with self.lock:
            self.lease.end()
            self._void()
            self.lease, self.pod = lease, pod
            self.closed = self.shut = ""
            self.leaving = False
            self.due.clear()
            for uid, entry in list(self.entries.items()):
                if entry.phase is Phase.GIVEN:
                    self.forget(uid)
                else:
                    entry.lost = True
                    self.look_at(uid, entry)

    def lose_all(self) -> None:
        """End the lease for ever; what is held is lost, unsaved."""
        with self.lock:
            self.lease.end()
            self._void()
            for uid, entry in self.entries.items():
                entry.lost = entry.lost or entry.phase in (Phase.HELD, Phase.ACQUIRING)
                self.look_at(uid, entry)

    # What is held.

    def held(self) -> dict[str, int]:
        """Return the epochs of all uids held: never of one given up or lost."""
        return {uid: epoch for uid, (epoch, _) in self.memory()[1].items()}

    def memory(self) -> tuple[bool, dict[str, tuple[int, bool]], dict[str, float]]:
        """Return whether the pod's lease has lapsed, and what the pod remembers of uids held.

        That is their epoch and kind, and of those whose own lease has ended how many seconds ago
        that was. One whose removal was due by then is not remembered.
        """
        with self.lock:
            at = self.clock()
            held, ago_s = {}, {}
            for uid, entry in self.entries.items():
                over = at >= entry.until
                if entry.phase is Phase.GIVEN or entry.lost or (over and entry.due_at < math.inf):
                    continue
                held[uid] = (entry.epoch, entry.persistent)
                if over:
                    ago_s[uid] = at - entry.until
            return not self.lease.serves(), held, ago_s

    def given(self, before: float) -> dict[str, tuple[int, bool]]:
        """Return uids given up that Redis may still name this pod for.

        With their epochs, and whether the link is to go, or else to be given back: this only if
        they were given up before a moment, since somebody may be moving them.
        """
        with self.lock:
            gone = {uid: self.entries[uid] for uid in self.given_up}
            return {
                uid: (entry.epoch, entry.removes)
                for uid, entry in gone.items()
                if entry.removes or entry.given_at < before
            }

    def in_use(self, since: float) -> dict[str, int]:
        """Return uids, with epochs, whose links must live on: used since, or being given up."""
        with self.lock:
            if not self.lease.serves():
                return {}
            return {
                uid: entry.epoch
                for uid, entry in self.entries.items()
                if entry.term == self.term
                and not entry.lost
                and entry.phase is not Phase.GIVEN
                and (
                    entry.running
                    or entry.used_at >= since
                    or entry.phase is not Phase.HELD
                    or self.is_to_end(entry)
                )
            }

    def unfinished(self) -> list[str]:
        """Return uids that are not given up yet."""
        with self.lock:
            return [uid for uid, entry in self.entries.items() if entry.phase is not Phase.GIVEN]
