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

Here is what is known of the uids, and what more than one way of changing that has need of. Calls
come in by `admission`; what the router asks for comes by `release`, states by `incoming`; hooks
begin and end by `next_work`. What the pod's lease does to all this is in `terms`, and whether the
pod is open in `closing`. No I/O in any of them.
"""

from __future__ import annotations

import threading

from ray_route.clock import Clock, Deadline, now
from ray_route.pod.asked_releases import AskedReleases
from ray_route.pod.bell import Bell
from ray_route.pod.entries import Entry, Phase
from ray_route.pod.forgotten import Forgotten
from ray_route.pod.moments import Moments
from ray_route.pod.nobodys import Nobodys
from ray_route.pod.outcomes import Outcomes, given
from ray_route.pod.pod_lease import PodLease
from ray_route.pod.recalls import Recalls
from ray_route.pod.release_lines import ReleaseLines, Why
from ray_route.pod.scheduled import ScheduledRemovals
from ray_route.pod.use_order import UseOrder
from ray_route.protocol.commands import Fate


class Holdings:
    """The uids that a process serves, through all its incarnations.

    `term` counts the lapses of the pod's lease: what was asked for or read in an earlier term is
    void. Whoever reads or changes the rest holds `lock`, but for how many uids there are, and
    whether calls run. `clock` is injected by tests.
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
        self.outcomes = Outcomes(self.lock)
        self.nobodys = Nobodys()
        self.arrived: dict[str, None] = {}
        """Uids that are this pod's, with a state, and have not been acquired."""
        self.to_acquire: dict[str, None] = {}
        """Those of them that are to be acquired without waiting for a call."""
        self.order = UseOrder()
        self.recalls = Recalls()
        """When what is held was last told, to be restored: what was read before comes late."""
        self.forgotten = Forgotten()
        self.set_anew = Forgotten()
        """Uids whose links were lately set anew: what was read before comes late."""
        self.idle_s = idle_s
        self.work = Bell(self.lock)
        """For whoever gives uids up, or acquires those that have arrived."""
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

    def may_end(self, uid: str) -> bool:
        """True if a uid is to be given up, or dropped, and no call of it runs."""
        entry = self.entries.get(uid)
        held = entry is not None and entry.phase is Phase.HELD and not entry.running
        return held and entry is not None and self.is_to_end(entry)

    def give(self, uid: str, entry: Entry) -> None:
        """Make a uid nobody's, up to the highest epoch asked for, and tell all who did."""
        epoch = max([entry.epoch, *(wish.epoch for wish in entry.wishes.values())])
        if epoch > entry.epoch:  # all else that is known is of a link that has ended
            entry.epoch, entry.state, entry.persistent = epoch, None, False
            entry.removes = Fate.STAYS
        entry.phase, entry.given_at = Phase.GIVEN, self.clock()
        self._nobodys(uid, entry)
        wishes = entry.wishes
        self.asked.drop(uid, entry, *wishes)
        self.look_again(uid, entry)
        told = [given(uid, entry, n, wish.epoch) for n, wish in wishes.items()]
        self.outcomes.add(*told)

    def _nobodys(self, uid: str, entry: Entry) -> None:
        self.nobodys.add(uid, entry)
        self.arrived.pop(uid, None)
        self.order.drop(uid)
        if entry.removes:
            self.removals.ring()

    def bar(self, uid: str, epoch: int, removes: Fate = Fate.STAYS) -> Entry:
        """Refuse a uid up to an epoch, of which nothing is held; return its entry."""
        entry = Entry(uid, epoch, Phase.GIVEN, self.term, removes=removes, given_at=self.clock())
        self.entries[uid] = entry
        self._nobodys(uid, entry)
        return entry

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

    def look_at_all(self) -> None:
        """Do the same for all there are."""
        for uid, entry in self.entries.items():
            self.look_at(uid, entry)

    def look_again(self, uid: str, entry: Entry) -> None:
        """Have a uid that may be busy looked at when the patience with that ends."""
        if entry.wishes:
            self.moments.set(uid, min(wish.until for wish in entry.wishes.values()))
        elif uid not in self.scheduled:
            self.moments.drop(uid)

    def ended_call(self) -> None:
        """Let whoever waits for the last one go on."""
        if not self.order.busy:
            self._idle.notify_all()

    def wait_idle(self, deadline: Deadline) -> bool:
        """Wait until no call runs; False if some still do at the deadline."""
        with self.lock:
            return self._idle.wait_for(lambda: not self.order.busy, deadline.remaining())
