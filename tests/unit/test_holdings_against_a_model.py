"""Random histories of one pod, against a model of what Redis, the router and the hooks see.

Hypothesis' own state machines hardly ever get as far as a hook here (six planted bugs out of six
went unnoticed): the steps are weighted towards progress instead, and drawn from a seed.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from helpers import ManualClock

from ray_route.model import Link
from ray_route.pod import closing, terms
from ray_route.pod.admission import Admission, Told, Verdict
from ray_route.pod.entries import Phase
from ray_route.pod.holdings import Holdings
from ray_route.pod.idle import look_for_idle
from ray_route.pod.in_use import in_use
from ray_route.pod.kinds import set_kinds
from ray_route.pod.memory import epochs_held
from ray_route.pod.next_work import Kind, NextWork, Work
from ray_route.pod.pod_lease import PodLease
from ray_route.pod.release import Releases
from ray_route.pod.unsettled import unfinished, unsettled
from ray_route.protocol.commands import Fate, Outcome, Refreshed

POD, ANOTHER = 0, 1
POD_LEASE_S = 10.0
MARGIN_S, IDLE_S = 2.0, 5.0
STEPS = 500


class Uid(str):
    """A uid whose hash, and so whose place in a set, is the same in every process."""

    __slots__ = ()

    def __hash__(self) -> int:
        return ord(self)


A, B, P = Uid("a"), Uid("b"), Uid("p")
# One's own lease ends before the pod's, the others' after it.
TTL_S = {A: 6.0, B: 16.0, P: 16.0}
# Whether a new link is persistent.
UIDS = {A: False, B: False, P: True}

WEIGHTS = {
    "call": 20,
    "leave": 8,
    "redis_reads": 16,
    "read_returns": 16,
    "acquire_ends": 10,
    "release": 1.5,
    "cancel": 0.5,
    "younger_router": 0.2,
    "end_at": 1.5,
    "set_kind": 2,
    "kinds_come": 4,
    "look": 8,
    "begin_hook": 9,
    "hook_ends": 7,
    "move": 4,
    "settle": 6,
    "place": 10,
    "report": 5,
    "report_returns": 5,
    "time": 6,
    "renew": 7,
    "renewed": 7,
    "redis_loses_record": 0.5,
    "resume": 7,
    "outage_begins": 0.3,
    "outage_ends": 4,
    "end_life": 5,
    "begin": 8,
    "leave_all": 0.2,
    "stay": 4,
    "close": 0.3,
    "open": 5,
}


@dataclass
class Named:
    """What Redis holds of one uid."""

    pod: int
    incarnation: int
    epoch: int
    ends_at: float
    replaced: int = 0
    due: bool = False
    """Its removal is scheduled: nothing lengthens its life."""
    persistent: bool = False


@dataclass
class Read:
    """A link that is being read."""

    uid: str
    epoch: int
    term: int
    incarnation: int
    asked_at: float
    lapses: int
    for_call: bool
    executed: bool = False
    link: Link | None = None


@dataclass
class Report:
    """A use report, and what it was answered."""

    uids: dict[str, int]
    told: Refreshed
    term: int
    asked_at: float

    def of(self, uid: str) -> Refreshed:
        ended = {u: epoch for u, epoch in self.told.ended.items() if u == uid}
        return Refreshed(ended, self.told.ending & {uid})


@dataclass
class Asked:
    """A release that the router has asked for."""

    uids: dict[str, int]
    router: int
    waiting: set[str] = field(default_factory=set)
    void: set[str] = field(default_factory=set)


class World:
    """One pod, its Redis and its router. Every step may be tried at any time."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.clock = ManualClock()
        self.incarnation = 1
        lease = PodLease(1, POD_LEASE_S, self.clock(), self.clock)
        self.held = Holdings(POD, lease, IDLE_S, self.clock)
        self.admission = Admission(self.held)
        self.releases = Releases(self.held)
        self.work = NextWork(self.held)
        self.diary: list[str] = []
        self.seen: Counter[str] = Counter()
        # Redis and the router.
        self.top = dict.fromkeys(UIDS, 0)
        self.links: dict[str, Named] = {}
        self.router = 1
        self.asked: dict[int, Asked] = {}
        self.to_move: list[tuple[str, int]] = []
        self.due_at: dict[tuple[str, int], float] = {}
        self.doubt_at: dict[tuple[str, int], float] = {}
        """When a removal would be due that somebody was about to take back, until that is known."""
        self.kinds: list[tuple[str, int, bool]] = []
        self.renewed_at = self.clock()
        self.outage = False
        self.life_ended = False
        self.renewals: list[float] = []
        self.resumptions: list[tuple[int, float]] = []
        self.lapsed = False
        self.leaving = False
        self.closed = False
        # What runs.
        self.calls: list[tuple[str, int]] = []
        self.reads: list[Read] = []
        self.acquiring: list[tuple[str, int]] = []
        self.taken: list[Work] = []
        self.hooks: list[Work] = []
        self.reports: list[Report] = []
        # In which lapse Redis has named this pod last, and what has run, by uid and epoch.
        self.confirmed: dict[tuple[str, int], int] = {}
        self.lapses = 0
        self.acquired: Counter[tuple[str, int]] = Counter()
        self.over: Counter[tuple[str, int]] = Counter()

    # What must hold.

    def owns(self, uid: str, epoch: int) -> bool:
        link = self.link_of(uid)
        mine = (POD, self.incarnation, epoch)
        return link is not None and (link.pod, link.incarnation, link.epoch) == mine

    def nothing_runs(self, uid: str) -> bool:
        others = [*self.acquiring, *((work.uid, work.epoch) for work in self.hooks)]
        return all(other != uid for other, _ in [*self.calls, *others])

    def has_reason(self, work: Work) -> bool:
        """True if somebody wants that uid to be given up, as far as the router and users know."""
        entry = self.held.entries[work.uid]
        asked = any(work.uid in it.waiting - it.void for it in self.asked.values())
        key = (work.uid, work.epoch)
        due_at = min(of.get(key, math.inf) for of in (self.due_at, self.doubt_at))
        due = self.clock() >= due_at
        persistent = self.links[work.uid].persistent
        unused = not persistent and self.clock() >= entry.used_at + IDLE_S
        return self.leaving or asked or due or unused

    def check(self) -> None:
        assert not (self.lapsed and self.held.lease.serves())
        running = Counter(uid for uid, _ in self.calls)
        assert self.held.running == len(self.calls)
        assert {u: e.running for u, e in self.held.entries.items() if e.running} == running
        for outcome in self.held.outcomes.take():
            self.take_outcome(outcome)
        for uid, entry in self.held.entries.items():
            if entry.persistent and not entry.lost and self.owns(uid, entry.epoch):
                assert self.links[uid].persistent, "it would never be given up for want of use"

    def take_outcome(self, outcome: Outcome) -> None:
        it = self.asked[outcome.release]
        assert outcome.uid in it.waiting, "told twice, or never asked for"
        assert outcome.epoch == it.uids[outcome.uid]
        it.waiting.discard(outcome.uid)
        self.seen["given" if outcome.given else "kept"] += 1
        key = (outcome.uid, outcome.epoch)
        if not outcome.given:
            assert all(work[:2] != key for work in [*self.taken, *self.hooks]), "it is not kept"
        else:
            assert all(work[:2] != key for work in self.hooks), "its hook runs"
            assert key not in self.calls
            assert self.over[key] == self.acquired[key], "given up without its hook"
            self.to_move.append(key)

    # Redis.

    def link_of(self, uid: str) -> Named | None:
        link = self.links.get(uid)
        if link is not None and self.clock() >= link.ends_at:
            del self.links[uid]
            return None
        return link

    def name(self, uid: str, pod: int) -> None:
        """Have Redis name that pod under a new epoch."""
        self.top[uid] += 1
        incarnation = self.incarnation if pod == POD else 99
        before = self.link_of(uid)
        kind = before.persistent if before else UIDS[uid]
        ends_at = math.inf if kind else self.clock() + TTL_S[uid]
        replaced = before.epoch if before else 0
        named = Named(pod, incarnation, self.top[uid], ends_at, replaced, persistent=kind)
        self.links[uid] = named

    def move_to(self, uid: str, pod: int) -> None:
        """Have another pod own a uid, if only for a while: links go from pod to pod."""
        self.name(uid, ANOTHER)
        if pod != ANOTHER:
            self.name(uid, pod)

    def regrant(self, uid: str) -> None:
        """Give a uid back to this pod; its link is still to go if its removal was scheduled."""
        before = self.links[uid]
        self.name(uid, POD)
        after = self.links[uid]
        if before.due:
            after.due, after.ends_at = True, before.ends_at
        due_at = self.due_at.get((uid, before.epoch), math.inf)
        self.due_at[uid, after.epoch] = due_at
        if before.epoch in {epoch for of, epoch in self.doubt_at if of == uid}:
            self.doubt_at[uid, after.epoch] = self.doubt_at[uid, before.epoch]
        self.seen["regranted"] += 1
        self.seen["regranted, to be removed"] += due_at < math.inf

    def refresh(self, uid: str, epoch: int) -> bool:
        """Keep a link alive; False if it is another's."""
        if not self.owns(uid, epoch):
            return False
        link = self.links[uid]
        if not link.due and link.ends_at < math.inf:
            link.ends_at = self.clock() + TTL_S[uid]
        return True

    def a_uid(self) -> str:
        return self.random.choice(list(UIDS))

    def place(self) -> None:
        uid = self.a_uid()
        link = self.link_of(uid)
        if not self.outage and not self.life_ended and (link is None or link.pod == ANOTHER):
            # The other pod gives up what it has at once.
            self.name(uid, POD if self.random.random() < 0.8 else ANOTHER)

    # Calls.

    def call(self) -> None:
        ours = [uid for uid in UIDS if (link := self.link_of(uid)) and link.pod == POD]
        uid = self.random.choice(ours or list(UIDS)) if self.random.random() < 0.9 else self.a_uid()
        epoch = self.top[uid] - self.random.choice([0] * 8 + [1, 2])
        incarnation = self.incarnation - (self.random.random() < 0.05)
        verdict, _ = self.admission.enter(uid, epoch, incarnation)
        if verdict is Verdict.ADMIT:
            assert incarnation == self.incarnation
            assert self.held.lease.serves()
            assert not self.closed
            assert self.confirmed[uid, epoch] == self.lapses, "admitted unconfirmed after a lapse"
            assert self.owns(uid, epoch), "admitted under a link that Redis does not hold"
            assert self.clock() < self.due_at.get((uid, epoch), math.inf), "its removal was due"
            assert self.acquired[uid, epoch] == 1
            assert self.over[uid, epoch] == 0, "it serves after its hook"
            assert all(other != uid for other, _ in self.acquiring)
            assert all(work.uid != uid for work in [*self.taken, *self.hooks])
            self.calls.append((uid, epoch))
            self.seen["calls"] += 1
        elif verdict is Verdict.CONFIRM:
            self.read(uid, epoch, for_call=True)

    def leave(self) -> None:
        if self.calls:
            uid, epoch = self.pop(self.calls)
            verdict, _ = self.admission.still(uid, epoch)
            if verdict is Verdict.ADMIT:
                assert self.owns(uid, epoch), "answered under a link that Redis does not hold"
            self.admission.leave(uid)

    def pop(self, some: list) -> object:
        return some.pop(self.random.randrange(len(some)))

    # Reads: sent, executed by Redis, returned; calls for one uid and epoch share theirs.

    def read(self, uid: str, epoch: int, *, for_call: bool) -> None:
        flying = any(r.for_call and (r.uid, r.epoch) == (uid, epoch) for r in self.reads)
        if not (for_call and (flying or (uid, epoch) in self.acquiring)):
            at, term = self.clock(), self.held.term
            self.reads.append(Read(uid, epoch, term, self.incarnation, at, self.lapses, for_call))

    def redis_reads(self) -> None:
        reads = [read for read in self.reads if not read.executed]
        if reads and not self.outage:
            read = self.random.choice(reads)
            read.executed = True
            link = self.link_of(read.uid)
            if link is not None:
                if link.ends_at - MARGIN_S <= self.clock():
                    self.refresh(read.uid, read.epoch)
                lease_s = min(link.ends_at - self.clock(), TTL_S[read.uid]) - MARGIN_S
                whose = (link.pod, link.incarnation, link.epoch)
                read.link = Link(*whose, link.persistent, lease_s, link.replaced)

    def read_returns(self) -> None:
        if not self.reads:
            return
        executed = [read for read in self.reads if read.executed]
        read = self.random.choice(executed or self.reads)
        self.reads.remove(read)
        link, mine = read.link, (POD, read.incarnation, read.epoch)
        if not read.executed or self.random.random() < 0.03:
            self.admission.unread(read.uid)
        elif link is None or (link.pod, link.incarnation, link.epoch) != mine:
            self.admission.denied(read.uid, read.epoch, read.term)
        else:
            is_back = read.uid in self.held.arrived  # which who closes the pod has been told
            told = self.admission.confirmed(read.uid, read.epoch, link, read.asked_at, read.term)
            if told in (Told.HELD, Told.ACQUIRE):
                self.confirmed[read.uid, read.epoch] = read.lapses
            if told is Told.ACQUIRE:
                assert is_back or not self.closed, "acquired by a pod that has told what it holds"
                self.begin_acquire(read.uid, read.epoch)

    def begin_acquire(self, uid: str, epoch: int) -> None:
        assert self.nothing_runs(uid), "acquired beside something of an earlier epoch"
        assert all(work.uid != uid for work in self.taken)
        assert self.acquired[uid, epoch] == 0, "acquired twice"
        assert (uid, epoch) not in self.to_move, "acquired after it was given up"
        assert self.owns(uid, epoch), "acquired under a link that Redis does not hold"
        self.acquiring.append((uid, epoch))

    def acquire_ends(self) -> None:
        if self.acquiring:
            uid, epoch = self.pop(self.acquiring)
            if self.random.random() < 0.9:
                self.acquired[uid, epoch] += 1
                self.seen["acquired"] += 1
                self.admission.acquired(uid, epoch)
            else:
                self.admission.not_acquired(uid, epoch)

    # The router: releases and moves.

    def release(self) -> None:
        uids = {uid: it.epoch for uid in UIDS if (it := self.link_of(uid)) and it.pod == POD}
        busy = any(uid in self.held.entries for uid in uids) or self.random.random() < 0.2
        if not (uids and busy) or self.outage or self.life_ended:
            return
        some = dict(self.random.sample(list(uids.items()), self.random.randint(1, len(uids))))
        number = len(self.asked) + 1
        self.asked[number] = Asked(some, self.router, set(some))
        patience_s, closes = self.random.uniform(0.2, 6), self.random.random() < 0.5
        how = {"closes": closes, "router": self.router}
        replaced = {uid: self.links[uid].replaced for uid in some}
        self.releases.release(number, some, patience_s, replaced=replaced, **how)

    def void(self, asked: Asked) -> None:
        """Note that no hook may begin because of this release any more."""
        asked.void |= asked.waiting

    def cancel(self) -> None:
        if self.asked:
            number = max(1, len(self.asked) - self.random.randrange(3))
            self.releases.cancel(number)
            self.void(self.asked[number])

    def younger_router(self) -> None:
        if not self.outage:
            self.router += 1
            self.releases.follow(self.router)
            self.closed = False
            for asked in self.asked.values():
                self.void(asked)

    def end_at(self) -> None:
        uid = self.a_uid()
        link = self.link_of(uid)
        if link is None or link.pod != POD or self.outage or self.life_ended:
            return
        while self.kinds:  # what was sent before comes before
            self.kinds_come()
        at = self.clock() + self.random.choice([0.5, 1, 3, 4 * IDLE_S])
        if self.releases.end_at(uid, link.epoch, at, replaced=link.replaced):
            # Of two removals the earlier one holds; of that Redis may not have heard.
            key, in_redis = (uid, link.epoch), link.ends_at - TTL_S[uid] if link.due else math.inf
            sooner = self.due_at.get(key, math.inf)
            doubted = {epoch for of, epoch in self.doubt_at if of == uid}
            if link.replaced and doubted & {link.replaced, link.epoch}:
                # What was known of the epoch that was replaced may be forgotten, or be kept.
                self.doubt_at[key] = min(sooner, self.doubt_at.get(key, math.inf))
                sooner = math.inf
            self.due_at[key] = min(at, sooner)
            if self.random.random() < 0.1:
                return  # Redis is away just then
            link.due, link.ends_at = True, min(at, in_redis) + TTL_S[uid]

    def set_kind(self) -> None:
        """Have somebody set a link anew, where it is."""
        uid, persistent = self.a_uid(), self.random.random() < 0.5
        link = self.link_of(uid)
        if link is None or link.pod != POD or self.outage or self.life_ended:
            return
        while self.kinds:  # what was sent before comes before
            self.kinds_come()
        if not self.releases.end_at(uid, link.epoch, math.inf, temporary=not persistent):
            return
        key = (uid, link.epoch)
        at = min(of.get(key, math.inf) for of in (self.due_at, self.doubt_at))
        if at < math.inf:
            self.doubt_at[key] = at
        if self.random.random() < (0.5 if link.due else 0.1):
            self.seen["taken back in vain"] += link.due
            return  # Redis is away just then
        self.due_at[key] = math.inf
        link.due, link.persistent = False, persistent
        link.ends_at = math.inf if persistent else self.clock() + TTL_S[uid]
        self.kinds.append((uid, link.epoch, persistent))
        self.seen["kinds"] += 1
        if self.random.random() < 0.4:  # who sets it dies
            self.kinds.clear()
            self.younger_router()

    def kinds_come(self) -> None:
        if self.kinds:
            uid, epoch, persistent = self.kinds.pop(0)
            set_kinds(self.held, {uid: (epoch, persistent)})
            self.doubt_at.pop((uid, epoch), None)

    def move(self) -> None:
        if self.to_move and not self.outage:
            uid, epoch = self.pop(self.to_move)
            if self.owns(uid, epoch) and self.random.random() < 0.7:
                self.seen["moved"] += 1
                self.move_to(uid, self.random.choice([POD, ANOTHER, ANOTHER]))

    def settle(self) -> None:
        if self.outage or self.life_ended or self.leaving:
            return
        given = unsettled(self.held, self.clock() - self.random.choice([-1, 0, 0.5]))
        given = {uid: it for uid, it in given.items() if (uid, it[0]) not in self.to_move}
        for uid, (epoch, fate) in given.items():
            link = self.links.get(uid)
            stays = link is not None and {
                Fate.STAYS: True,
                Fate.GOES: False,
                Fate.UNUSED: link.persistent,
                Fate.MAY_GO: not link.due,
            }.get(fate, True)
            self.seen["kept, in doubt"] += fate is Fate.MAY_GO and stays
            self.seen["gone, in doubt"] += fate is Fate.MAY_GO and not stays
            if self.owns(uid, epoch) and not stays:
                del self.links[uid]
            elif self.owns(uid, epoch):
                self.regrant(uid)
                if fate is Fate.MAY_GO:  # no removal that was asked for has reached Redis, or holds
                    self.due_at[uid, self.top[uid]] = math.inf
        if self.random.random() < 0.8:  # else the answer is lost, and it asks again
            settled = {uid: (it[0], self.present(uid, it[0])) for uid, it in given.items()}
            self.releases.settled(settled, given)
            for uid, (epoch, fate) in given.items():
                if fate is Fate.MAY_GO:
                    self.doubt_at.pop((uid, settled[uid][1] or epoch), None)

    def present(self, uid: str, epoch: int) -> int:
        """Return under which epoch this pod has a uid of which it has the state; 0: it has not."""
        link = self.link_of(uid)
        is_back = link is not None and self.owns(uid, link.epoch) and link.replaced == epoch
        return link.epoch if link is not None and is_back else 0

    def report(self) -> None:
        used = in_use(self.held, self.clock() - 1)
        if not self.outage:
            ended = {uid: epoch for uid, epoch in used.items() if not self.refresh(uid, epoch)}
            ending = {uid for uid in used.keys() - ended.keys() if self.links[uid].due}
            told = Refreshed(ended, ending)
            self.reports.append(Report(used, told, self.held.term, self.clock()))

    def report_returns(self) -> None:
        if self.reports:
            report = self.pop(self.reports)
            for uid, epoch in report.uids.items():
                until = report.asked_at + TTL_S[uid] - MARGIN_S
                self.admission.refreshed({uid: epoch}, report.of(uid), until, report.term)

    # Hooks.

    def look(self) -> None:
        self.releases.tick()
        self.check()
        look_for_idle(self.held)
        for work in self.work.to_confirm():
            self.read(work.uid, work.epoch, for_call=False)
        for work in self.work.to_acquire():
            self.seen["comes back"] += 1
            self.read(work.uid, work.epoch, for_call=True)
        for work in self.work.take(self.random.choice([1, 10])):
            assert self.nothing_runs(work.uid), "a hook beside a call or another hook"
            assert all(other.uid != work.uid for other in self.taken)
            if work.kind is Kind.RELEASE:
                assert self.held.lease.serves(), "taken past the lease"
                key = (work.uid, work.epoch)
                assert self.confirmed[key] == self.lapses, "taken unconfirmed after a lapse"
                assert self.owns(*key), "taken though it is not ours"
                assert self.has_reason(work), "nobody wants it released"
            self.taken.append(work)

    def begin_hook(self) -> None:
        if not self.taken:
            return
        work = self.pop(self.taken)
        if not self.work.may_begin(work):
            self.seen["not begun"] += 1
            return
        key = (work.uid, work.epoch)
        assert self.nothing_runs(work.uid), "a hook beside a call or another hook"
        assert self.acquired[key] == 1
        assert self.over[key] == 0, "a second hook"
        if work.kind is Kind.RELEASE:
            assert self.held.lease.serves(), "saved past the lease"
            assert self.confirmed[key] == self.lapses, "saved unconfirmed after a lapse"
            assert self.owns(*key), "saved though it is not ours"
        self.hooks.append(work)

    def hook_ends(self) -> None:
        if self.hooks:
            work = self.pop(self.hooks)
            self.over[work.uid, work.epoch] += 1
            self.seen[work.kind.value] += 1
            state = self.random.choice([None, "its state"])
            self.work.ended(work.uid, work.epoch, state)

    def leave_all(self) -> None:
        closing.leave_all(self.held)
        self.leaving = True

    def stay(self) -> None:
        closing.stay(self.held)
        self.leaving = self.closed = False

    def close(self) -> None:
        closing.close(self.held, "closed")
        self.closed = True

    def open(self) -> None:
        closing.reopen(self.held)
        self.closed = False

    # Time, and the pod's lease.

    def time(self) -> None:
        self.clock.tick(self.random.choice([0.01, 0.1, 0.3, 0.3, 1, 1, 2.5]))

    def renew(self) -> None:
        if not self.held.lease.serves() and not self.lapsed:
            self.lapse()
        if self.life_ended or self.outage:
            return
        self.renewed_at = self.clock()
        if self.lapsed:
            self.resumptions.append((self.held.term, self.clock()))
        else:
            self.renewals.append(self.clock())

    def renewed(self) -> None:
        if self.renewals and not self.life_ended:
            serves = self.held.lease.serves()
            assert terms.renew(self.held, self.pop(self.renewals)) is serves

    def redis_loses_record(self) -> None:
        """Have a renewal write the record back whole, which counts as a lapse."""
        if not self.life_ended:
            self.lapse()

    def lapse(self) -> None:
        terms.lapse(self.held)
        self.lapsed = True
        self.lapses += 1
        self.seen["lapsed"] += 1
        for asked in self.asked.values():
            self.void(asked)

    def resume(self) -> None:
        if self.resumptions and not self.life_ended:
            term, asked_at = self.pop(self.resumptions)
            if terms.resume(self.held, term, asked_at) and self.lapsed:
                assert term == self.held.term
                assert self.clock() < asked_at + 0.9 * POD_LEASE_S
                self.lapsed = False
                self.seen["resumed"] += 1

    def outage_begins(self) -> None:
        self.outage = True
        self.clock.tick(self.random.choice([0, 3, 9, 11]))

    def outage_ends(self) -> None:
        self.outage = False

    def end_life(self) -> None:
        """Have the router end a life that has been silent for its whole lease."""
        if self.lapsed and not self.outage and self.clock() >= self.renewed_at + POD_LEASE_S:
            self.life_ended = True
            self.resumptions.clear()
            self.renewals.clear()
            for uid in UIDS:
                link = self.link_of(uid)
                if link is not None and link.pod == POD and self.random.random() < 0.5:
                    self.name(uid, ANOTHER)

    def begin(self) -> None:
        """Have the pod hear that its life was ended, and begin another."""
        if not self.life_ended:
            return
        if self.random.random() < 0.5:
            terms.lose_all(self.held)
        self.incarnation += 1
        self.lapses += 1
        lease = PodLease(self.incarnation, POD_LEASE_S, self.clock(), self.clock)
        terms.begin(self.held, lease, POD)
        assert epochs_held(self.held) == {}
        self.renewed_at = self.clock()
        self.life_ended = self.lapsed = self.leaving = self.closed = False
        self.to_move.clear()
        for asked in self.asked.values():
            self.void(asked)
        for uid in UIDS:
            link = self.link_of(uid)
            if link is not None and link.pod == POD:
                self.name(uid, POD)
        self.seen["lives"] += 1

    # A history.

    def run(self) -> None:
        names, weights = list(WEIGHTS), list(WEIGHTS.values())
        for name in self.random.choices(names, weights, k=STEPS):
            self.step(name)
        self.come_to_rest()

    def step(self, name: str) -> None:
        self.diary.append(f"{self.clock():.2f} {name}")
        getattr(self, name)()
        self.check()

    def come_to_rest(self) -> None:
        """Let all that was begun end, and all be given up."""
        self.outage_ends()
        self.begin()
        for _ in range(100):
            for name in (
                "renew",
                "renewed",
                "resume",
                "redis_reads",
                "read_returns",
                "acquire_ends",
            ):
                self.step(name)
            for name in ("leave", "leave_all", "look", "begin_hook", "hook_ends", "report"):
                self.step(name)
            self.clock.tick(0.2)
            if self.is_given_up() and not (self.reads or self.calls or self.acquiring):
                break
        assert self.is_given_up()
        assert self.over == self.acquired, "each epoch that was acquired has had one hook"
        for number, asked in self.asked.items():
            assert asked.waiting <= asked.void, f"release {number} was never told of"
        for uid, entry in self.held.entries.items():
            assert entry.phase is Phase.GIVEN
            verdict, _ = self.admission.enter(uid, entry.epoch, self.incarnation)
            assert verdict is Verdict.REFUSE
        self.releases.settled({uid: (it.epoch, 0) for uid, it in self.held.entries.items()})
        assert unfinished(self.held) == []

    def is_given_up(self) -> bool:
        return self.held.entries.keys() == self.held.nobodys.given_up.keys()


def run_history(seed: int) -> Counter[str]:
    world = World(seed)
    try:
        world.run()
    except BaseException:
        print(f"seed {seed}; the last steps: {'; '.join(world.diary[-25:])}")
        raise
    return world.seen


@pytest.mark.slow
def test_random_histories_break_no_rule():
    seen: Counter[str] = Counter()
    for seed in [*range(300), *(random.getrandbits(40) for _ in range(100))]:
        seen += run_history(seed)
    happened = (
        "calls",
        "acquired",
        "release",
        "lose",
        "given",
        "kept",
        "moved",
        "regranted",
    )
    more = ("regranted, to be removed", "comes back", "lapsed", "resumed", "lives", "not begun")
    kinds = ("kinds", "taken back in vain", "gone, in doubt", "kept, in doubt")
    for what in (*happened, *more, *kinds):
        assert seen[what] >= 4, f"{what}: {seen[what]} times only, this proves little"


@pytest.mark.long
@pytest.mark.timeout(600)
def test_many_random_histories_break_no_rule():
    for _ in range(10_000):
        run_history(random.getrandbits(40))
