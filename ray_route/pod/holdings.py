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

from ray_route.clock import Clock, Deadline, now
from ray_route.pod.entries import UNHELD, Entry, Phase
from ray_route.pod.pod_lease import PodLease
from ray_route.pod.states import State
from ray_route.pod.use_order import UseOrder
from ray_route.protocol.commands import Outcome, Shown, Taken

# No read of a link takes longer; one that does is asked for again.
_ANY_READ_S = 60.0
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
        self.ready: set[str] = set()
        """Uids that are to be given up or dropped, as far as their calls allow."""
        self.timed: set[str] = set()
        """Uids that a moment is set for."""
        self.confirming: set[str] = set()
        self.due: dict[str, tuple[int, float]] = {}
        """Epochs of uids, and when they are to be given up."""
        self.outcomes: list[Outcome | Taken] = []
        self.given_up: set[str] = set()
        """Uids that are nobody's, as far as this pod knows."""
        self.kept: set[str] = set()
        """Those of them whose state is kept here for whoever has them next."""
        self.arrived: set[str] = set()
        """Uids that are this pod's, with a state, and have not been acquired."""
        self.order = UseOrder()
        self.recalled_at = -math.inf
        """When all that is held was last told, to be restored: what was read before comes late."""
        self._forgotten: dict[str, tuple[float, int]] = {}
        self._all_forgotten_at = -math.inf
        self._idle_s = idle_s
        self._work = threading.Condition(self.lock)
        self._idle = threading.Condition(self.lock)
        self._wakings = 0

    def __len__(self) -> int:
        """Number of uids that are this pod's load: not those given up."""
        return len(self.entries) - len(self.given_up)

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
        epoch = max([entry.epoch, *(wish.epoch for wish in entry.wishes.values())])
        if epoch > entry.epoch:  # its state is that of a link that has ended
            entry.epoch, entry.state = epoch, None
        entry.phase, entry.given_at = Phase.GIVEN, self.clock()
        self._nobodys(uid, entry)
        wishes, entry.wishes = entry.wishes, {}
        self.outcomes += [self.given(uid, entry, n, wish.epoch) for n, wish in wishes.items()]

    def _nobodys(self, uid: str, entry: Entry) -> None:
        self.given_up.add(uid)
        self.arrived.discard(uid)
        self.order.drop(uid)
        (self.kept.add if entry.has_own_state else self.kept.discard)(uid)

    @staticmethod
    def given(uid: str, entry: Entry, number: int, epoch: int) -> Outcome:
        """Tell that a uid was given up, and whether its state of that epoch is here."""
        has_state = entry.epoch == epoch and entry.has_own_state
        return Outcome(number, uid, epoch, given=True, has_state=has_state)

    def arrive(self, uid: str, entry: Entry, epoch: int) -> None:
        """Make a uid this pod's under an epoch that replaced the one of its state."""
        entry.epoch, entry.phase = epoch, Phase.ARRIVED
        entry.until = self.clock() + min(_WRITTEN_S, self._idle_s / 4)
        due_epoch, due_at = self.due.get(uid, (0, 0.0))
        entry.due_at = due_at if due_epoch == epoch else math.inf
        entry.tried, entry.removes, entry.term = False, False, self.term
        if entry.state is not None:
            entry.state.arrived = False
        self.nobodys_no_more(uid)
        self.arrived.add(uid)
        self.wake()

    def nobodys_no_more(self, uid: str) -> None:
        """Take in that a uid is this pod's again."""
        for uids in (self.given_up, self.kept, self.arrived):
            uids.discard(uid)

    def bar(self, uid: str, epoch: int, *, removes: bool = False) -> Entry:
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
        self.nobodys_no_more(uid)
        at = self.clock()
        self._forgotten.pop(uid, None)  # the latest come last
        self._forgotten[uid] = at, epoch
        while self._forgotten[first := next(iter(self._forgotten))][0] < at - _ANY_READ_S:
            self._all_forgotten_at, _ = self._forgotten.pop(first)

    def forgotten_at(self, uid: str) -> float:
        """Return when a uid was last forgotten: a link that was asked for until then is void."""
        return self._forgotten.get(uid, (self._all_forgotten_at, 0))[0]

    def forgotten_epoch(self, uid: str) -> int:
        """Return the epoch up to which a uid was lately given up here; 0: it was not."""
        return self._forgotten.get(uid, (0.0, 0))[1]

    def look_at(self, uid: str, entry: Entry) -> None:
        """Have something done about a uid, if it is to be given up."""
        if entry.phase is Phase.HELD and not entry.running and self.is_to_end(entry):
            self.ready.add(uid)
            self.wake()

    def look_for_idle(self) -> None:
        """Do the same for all that nobody has used for long."""
        stay = []
        for uid in self.unused():
            if (entry := self.entries.get(uid)) and not entry.persistent:
                self.look_at(uid, entry)
            else:
                stay.append(uid)
        self.order.unused(stay)

    def unused(self) -> Iterator[str]:
        """Yield uids that nobody has used for long."""
        at = self.clock()
        for uid in self.order.oldest():
            entry = self.entries.get(uid)
            if entry is not None and at < entry.used_at + self._idle_s:
                return
            yield uid

    def look_at_all(self) -> None:
        """Do the same for all there are."""
        for uid, entry in self.entries.items():
            self.look_at(uid, entry)

    def wake(self) -> None:
        """Let whoever waits for something to do go on."""
        self._wakings += 1
        self._work.notify_all()

    def wait_for_work(self, known: int, seconds: float) -> int:
        """Return when something is to be done or told, or so many seconds later.

        Returns how often there has been by then; whoever comes again names that as `known`.
        """
        with self.lock:
            self._work.wait_for(lambda: self._wakings != known, seconds)
            return self._wakings

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
        return {u: epoch for u, (epoch, _) in self.memory()[1].items() if u not in self.kept}

    def shown(self) -> Shown:
        """Return what a drain must know of."""
        with self.lock:
            undecided = sum(self.entries[uid].state is not None for uid in self.given_up)
        # In this order: what is decided in between is counted twice, never passed over.
        return Shown(self.held(), self.running, undecided)

    def memory(self) -> tuple[bool, dict[str, tuple[int, bool]], dict[str, float]]:
        """Return whether the pod's lease has lapsed, and what the pod remembers of uids held.

        That is their epoch and kind, and of those whose own lease has ended how many seconds ago
        that was. One whose removal was due by then is not remembered. One that was given up is, if
        its state is kept here: it is never served under that epoch again.
        """
        with self.lock:
            at = self.clock()
            held, ago_s = {}, {}
            for uid, entry in self.entries.items():
                over = at >= entry.until
                gone = entry.phase is Phase.GIVEN and (uid not in self.kept or entry.removes)
                if gone or entry.lost or (over and entry.due_at < math.inf):
                    continue
                held[uid] = (entry.epoch, entry.persistent)
                if over:
                    ago_s[uid] = at - entry.until
            return not self.lease.serves(), held, ago_s

    def unsettled(self, before: float) -> dict[str, tuple[int, bool]]:
        """Return uids given up, or arrived, that Redis may still name this pod for.

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

    def unfinished(self) -> list[str]:
        """Return uids that are not given up yet, or whose state may be lost with this pod."""
        with self.lock:
            given = self.given_up
            some = self.entries.items()
            return [uid for uid, it in some if uid not in given or it.state is not None]
