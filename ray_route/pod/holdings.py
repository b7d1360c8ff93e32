"""The uids of one pod process: for each, where it stands between nobody's and served.

A uid is nobody's until its release has ended. Its states, an absent uid having no entry:

    absent --confirmed--> ACQUIRING --acquired--> HELD --take--> ENDING --ended--> GIVEN
                                                                                     |
           absent <--settled (Redis names another link)------------------------------+
           ACQUIRING <--confirmed (Redis names this pod under a higher epoch)--------+
           ARRIVED <--settled (its link, which replaced this epoch, is this pod's)---+

A uid at GIVEN may have a state, which this pod keeps until another has it, or which it has fetched
from another, under the epoch at which it was given up. If its link becomes this pod's it has
ARRIVED, and is acquired, with the state, without waiting for a call.

A release that is asked for is a wish until `take` begins it: until then it can be taken back, and
nothing was taken from the uid. From then on the hook runs, once, to its end; the uid comes back to
this pod under a higher epoch only, and is acquired anew.

What the pod's lease does to all this is here; calls come in by `admission`, uids are given up by
`release`. No I/O in any of the three.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ray_route.clock import Clock, Deadline, now
from ray_route.pod.asked_releases import AskedReleases
from ray_route.pod.bell import Bell
from ray_route.pod.entries import UNHELD, Entry, Phase
from ray_route.pod.forgotten import Forgotten
from ray_route.pod.moments import Moments
from ray_route.pod.nobodys import Nobodys
from ray_route.pod.pod_lease import PodLease
from ray_route.pod.release_lines import ReleaseLines, Why
from ray_route.pod.scheduled import ScheduledRemovals
from ray_route.pod.states import State
from ray_route.pod.use_order import UseOrder
from ray_route.protocol.commands import Fate, Given, Outcome, Shown, Taken

# A link that a pod is told of has been written so lately that it lives for so long at the least.
_WRITTEN_S = 5.0


class Holdings:
    """The uids that a process serves, through all its incarnations. Thread-safe.

    `term` counts the lapses of the pod's lease: what was asked for or read in an earlier term is
    void. Whoever reads or changes the rest holds `lock`. `clock` is injected by tests.
    """

    def __init__(self, pod: int, lease: PodLease, idle_s: float, clock: Clock = now) -> None:
        self.pod = pod
        self.lease = lease
        self.term = 1
        self.entries: dict[str, Entry] = {}
        self.lock = threading.Lock()
        self.clock = clock
        self.closed = ""
        """Why nothing is admitted for a while; empty: it is."""
        self.shut = ""
        """Why nothing is admitted in this life any more; empty: it is."""
        self.leaving = False
        self.ready = ReleaseLines()
        self.asked = AskedReleases()
        self.moments = Moments()
        """Uids to look at when their patience ends, or their removal is due."""
        self.scheduled = ScheduledRemovals(self.moments)
        self.outcomes: list[Outcome | Taken] = []
        self.nobodys = Nobodys()
        self.arrived: dict[str, None] = {}
        """Uids that are this pod's, with a state, and have not been acquired."""
        self.to_acquire: dict[str, None] = {}
        """Those of them that are to be acquired without waiting for a call."""
        self.order = UseOrder()
        self.recalled_at = -math.inf
        """When all that is held was last told, to be restored: what was read before comes late."""
        self.forgotten = Forgotten()
        self.set_anew = Forgotten()
        """Uids whose links were lately set anew: what was read before comes late."""
        self.idle_s = idle_s
        self.work = Bell(self.lock)
        """For whoever gives uids up, or acquires those that have arrived."""
        self.news = Bell(self.lock)
        """For whoever tells the router what became of uids."""
        self.removals = Bell(self.lock)
        """For whoever has links removed."""
        self._idle = threading.Condition(self.lock)

    def __len__(self) -> int:
        """Number of uids that are this pod's load: not those given up."""
        return len(self.entries) - len(self.nobodys.given_up)

    @property
    def running(self) -> int:
        """How many calls run."""
        busy = [self.entries.get(uid) for uid in list(self.order.busy)]
        return sum(entry.running for entry in busy if entry is not None)

    def used(self, entry: Entry) -> None:
        """Take in that a uid is used now."""
        entry.used_at = self.clock()
        self.order.used(entry.uid)

    def is_confirmed(self, entry: Entry) -> bool:
        """True while Redis' word on a uid, given in this term, holds."""
        return entry.term == self.term and self.clock() < entry.until

    def is_to_end(self, entry: Entry, *, though_used: bool = False) -> bool:
        """True if a uid is to be given up, or to be dropped; `though_used`: by whatever else."""
        at = self.clock()
        due = at >= self.scheduled.at(entry.uid, entry.epoch)
        idle = not though_used and entry.is_idle(at, self.idle_s)
        return bool(entry.lost or entry.wishes or self.leaving or due or idle)

    def give(self, uid: str, entry: Entry) -> None:
        """Make a uid nobody's, up to the highest epoch asked for, and tell all who did."""
        epoch = max([entry.epoch, *(wish.epoch for wish in entry.wishes.values())])
        if epoch > entry.epoch:  # its state is that of a link that has ended
            entry.epoch, entry.state = epoch, None
        entry.phase, entry.given_at = Phase.GIVEN, self.clock()
        self._nobodys(uid, entry)
        wishes = entry.wishes
        self.asked.drop(uid, entry, *wishes)
        self.look_again(uid, entry)
        self.tell(*(self.given(uid, entry, n, wish.epoch) for n, wish in wishes.items()))

    def _nobodys(self, uid: str, entry: Entry) -> None:
        self.nobodys.add(uid, entry)
        self.arrived.pop(uid, None)
        self.order.drop(uid)
        if entry.removes:
            self.removals.ring()

    def tell(self, *outcomes: Outcome | Taken) -> None:
        """Have the router told what became of some uids."""
        if outcomes:
            self.outcomes += outcomes
            self.news.ring()

    @staticmethod
    def given(uid: str, entry: Entry, number: int, epoch: int) -> Outcome:
        """Tell that a uid was given up, and whether its state of that epoch is here."""
        has_state = entry.epoch == epoch and entry.has_own_state
        return Outcome(number, uid, epoch, given=True, has_state=has_state)

    def arrive(self, uid: str, entry: Entry, epoch: int) -> None:
        """Make a uid this pod's under an epoch that replaced the one of its state."""
        entry.epoch, entry.phase = epoch, Phase.ARRIVED
        if self.set_anew.epoch(uid) >= epoch:  # what was told of that kind was told to nobody
            entry.persistent = False
        entry.until = self.clock() + min(_WRITTEN_S, self.idle_s / 4)
        entry.tried, entry.removes, entry.term = False, Fate.STAYS, self.term
        if entry.state is not None:
            entry.state.arrived = False
        self.nobodys.drop(uid)
        self.arrived[uid] = None
        self.is_to_be_acquired(uid, entry)

    def is_to_be_acquired(self, uid: str, entry: Entry) -> None:
        """Have a uid that has arrived acquired; one that has failed, as its pod leaves alone."""
        if entry.phase is Phase.ARRIVED and (self.leaving or not entry.tried):
            self.to_acquire[uid] = None
            self.work.ring()

    @contextmanager
    def answering(self, uid: str) -> Iterator[None]:
        """Take in that Redis has answered about a uid, or has not, and, within, what it says."""
        try:
            yield
        finally:
            entry = self.entries.get(uid)
            well = entry is not None and (entry.lost or self.is_confirmed(entry))
            if self.ready.answered(uid, well=well):
                self.work.ring()
            elif entry is not None:
                self.is_to_be_acquired(uid, entry)

    def bar(self, uid: str, epoch: int, removes: Fate = Fate.STAYS) -> Entry:
        """Refuse a uid up to an epoch, of which nothing is held; return its entry."""
        entry = Entry(uid, epoch, Phase.GIVEN, self.term, removes=removes, given_at=self.clock())
        self.entries[uid] = entry
        self._nobodys(uid, entry)
        return entry

    def take_in(self, uid: str, epoch: int, state: State) -> bool:
        """Keep what has arrived of a uid; False if more is known of it, or nothing is admitted."""
        entry = self.entries.get(uid)
        if self.leaving or self.closed or self.shut:
            return False
        if self.has_arrived(uid, epoch):
            return True
        if entry is not None and (entry.phase not in UNHELD or entry.epoch >= epoch):
            if entry.phase is Phase.HELD and entry.epoch < epoch:
                entry.lost = True  # its link ended without a release
                self.look_at(uid, entry)
            return False
        self.bar(uid, epoch).state = state
        self.nobodys.come.add(uid)
        return True

    def has_arrived(self, uid: str, epoch: int) -> bool:
        """True if the state of that epoch has come here, and its uid is nobody's."""
        entry = self.entries.get(uid)
        if entry is None or (entry.epoch, entry.phase) != (epoch, Phase.GIVEN):
            return False
        return entry.state is not None and entry.state.arrived

    def forget(self, uid: str) -> None:
        """Drop an entry, and whatever has been asked about it so far."""
        epoch = self.entries.pop(uid).epoch
        self.order.drop(uid)
        self.nobodys.drop(uid)
        self.arrived.pop(uid, None)
        self.scheduled.over(uid, epoch)
        self.forgotten.add(uid, epoch, self.clock())

    def look_at(self, uid: str, entry: Entry) -> None:
        """Have something done about a uid, if it is to be given up."""
        if entry.phase is Phase.HELD and not entry.running and self.is_to_end(entry):
            why = Why.LOST if entry.lost else Why.ASKED if entry.wishes else Why.OWN
            if self.ready.add(uid, why):
                self.work.ring()

    def look_again(self, uid: str, entry: Entry) -> None:
        """Have a uid that may be busy looked at when the patience with that ends."""
        if entry.wishes:
            self.moments.set(uid, min(wish.until for wish in entry.wishes.values()))
        elif uid not in self.scheduled:
            self.moments.drop(uid)

    def look_for_idle(self) -> None:
        """Do the same for all that nobody has used for long, each once until it is used again."""
        idle = list(self.unused())
        for uid in idle:
            if (entry := self.entries.get(uid)) and not entry.persistent:
                self.look_at(uid, entry)
        self.order.unused(idle)

    def unused(self) -> Iterator[str]:
        """Yield uids that nobody has used for long."""
        at = self.clock()
        for uid in self.order.oldest():
            entry = self.entries.get(uid)
            if entry is not None and at < entry.used_at + self.idle_s:
                return
            yield uid

    def look_at_all(self) -> None:
        """Do the same for all there are."""
        for uid, entry in self.entries.items():
            self.look_at(uid, entry)

    def ended_call(self) -> None:
        """Let whoever waits for the last one go on."""
        if not self.order.busy:
            self._idle.notify_all()

    def wait_idle(self, deadline: Deadline) -> bool:
        """Wait until no call runs; False if some still do at the deadline."""
        with self.lock:
            return self._idle.wait_for(lambda: not self.order.busy, deadline.remaining())

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
        self.ready.clear()
        for uid, entry in self.entries.items():
            if entry.wishes and entry.phase is not Phase.ENDING:
                self.asked.drop(uid, entry, *entry.wishes)
            self.is_to_be_acquired(uid, entry)

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
            self.scheduled.clear()
            for uid, entry in list(self.entries.items()):
                if entry.phase in UNHELD:
                    self.forget(uid)
                else:
                    entry.lost = True
                    self.look_at(uid, entry)

    def lose_all(self) -> None:
        """End the lease for ever; what is held is lost, unsaved."""
        with self.lock:
            self.lease.end()
            self._void()
            for uid, entry in list(self.entries.items()):
                if entry.phase in UNHELD and entry.state is not None:
                    self.forget(uid)
                    continue
                entry.lost = entry.lost or entry.phase in (Phase.HELD, Phase.ACQUIRING)
                self.look_at(uid, entry)

    # What is held.

    def held(self) -> dict[str, int]:
        """Return the epochs of all uids held: never of one given up or lost."""
        kept = self.nobodys.kept
        return {uid: epoch for uid, (epoch, _) in self.memory()[1].items() if uid not in kept}

    def shown(self) -> Shown:
        """Return what a drain must know of."""
        with self.lock:
            undecided = self.nobodys.undecided
        # In this order: what is decided in between is counted twice, never passed over.
        return Shown(self.held(), self.running, undecided)

    def memory(self) -> tuple[bool, dict[str, tuple[int, bool]], dict[str, float]]:
        """Return whether the pod's lease has lapsed, and what the pod remembers of uids held.

        That is their epoch and kind, and of those whose own lease has ended how many seconds ago
        that was. One whose removal was due by then is not remembered, unless that may have been
        taken back. One that was given up is, if its state is kept here: it is never served under
        that epoch again.
        """
        with self.lock:
            at = self.clock()
            held, ago_s = {}, {}
            for uid, entry in self.entries.items():
                over, due = at >= entry.until, at >= self.scheduled.at(uid, entry.epoch)
                due = due and self.scheduled.fate(uid, entry.epoch) is Fate.GOES
                is_kept = uid in self.nobodys.kept and entry.may_stay
                gone = entry.phase is Phase.GIVEN and not is_kept
                if gone or entry.lost or (over and due):
                    continue
                held[uid] = (entry.epoch, entry.persistent)
                if over:
                    ago_s[uid] = at - entry.until
            return not self.lease.serves(), held, ago_s

    def unsettled(self, before: float) -> dict[str, Given]:
        """Return uids given up, or arrived, that Redis may still name this pod for.

        With their epochs, and what is to become of their links. Those whose links stay only if they
        were given up before a moment, since somebody may be moving them.
        """
        with self.lock:
            return self.nobodys.unsettled(self.entries, before)

    def unfinished(self) -> list[str]:
        """Return uids that are not given up yet, or whose state may be lost with this pod."""
        with self.lock:
            nobodys = self.nobodys
            given = nobodys.given_up
            return [uid for uid in self.entries if uid not in given or nobodys.has_state(uid)]

    @property
    def is_finished(self) -> bool:
        """True if there are none of those."""
        with self.lock:
            return not len(self) + self.nobodys.undecided
