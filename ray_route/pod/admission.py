"""Which calls a pod may serve: those whose uid it holds, as Redis has confirmed. No I/O here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum

from ray_route.model import Link
from ray_route.pod.entries import UNHELD, Entry, Phase
from ray_route.pod.holdings import Holdings
from ray_route.pod.incoming import acquire_soon, arrive
from ray_route.pod.kinds import set_kind
from ray_route.pod.states import State
from ray_route.protocol.commands import Refreshed


class Verdict(Enum):
    """What to do with a call."""

    ADMIT = "admit"
    CONFIRM = "confirm"
    """Read the link from Redis, tell `confirmed` or `denied`, and ask again."""
    WAIT = "wait"
    """An earlier epoch of the uid is not over here: ask again soon."""
    REFUSE = "refuse"


class Told(Enum):
    """What became of a link that was read."""

    HELD = "held"
    ACQUIRE = "acquire"
    """Run `on_acquire`, then tell `acquired`."""
    WAIT = "wait"
    VOID = "void"
    """It was read in an earlier term, or the uid has been given up."""


class Admission:
    """Lets calls in, and takes in what Redis says of their uids. Thread-safe."""

    def __init__(self, held: Holdings) -> None:
        self._held = held

    # Calls.

    def enter(
        self,
        uid: str,
        epoch: int,
        incarnation: int,
        call: object = None,
        *,
        in_turn: bool = False,
    ) -> tuple[Verdict, str]:
        """Judge a call; count it as running if it is admitted. A refusal has a reason.

        `call` is what to `leave` with, which one that is interrupted in here has to do, too.

        One `in_turn` is made within a call that runs: it is admitted though others are not, for
        the release waits for that one, and that one for this.
        """
        with self._held.lock:
            verdict, reason = self._judge(uid, epoch, incarnation, in_turn=in_turn)
            if verdict is Verdict.ADMIT:
                entry = self._held.entries[uid]
                self._held.order.busy.add(uid)
                self._held.used(entry)
                if not entry.calls:
                    entry.calls = []
                    entry.call_time.begin(entry.used_at)
                entry.calls.append(call)
                if entry.wishes:
                    self._held.look_again(uid, entry)
            return verdict, reason

    def refusal(self, uid: str, epoch: int, incarnation: int) -> str:
        """Return why a call would be refused now; empty: it would not."""
        with self._held.lock:
            verdict, reason = self._judge(uid, epoch, incarnation, in_turn=False)
            return reason if verdict is Verdict.REFUSE else ""

    def _judge(
        self, uid: str, epoch: int, incarnation: int, *, in_turn: bool
    ) -> tuple[Verdict, str]:
        if not self._held.lease.serves():
            return Verdict.REFUSE, "the pod's lease has lapsed"
        closed = self._held.shut or ("" if in_turn else self._held.closed)
        if closed:
            return Verdict.REFUSE, closed
        if incarnation != self._held.lease.incarnation:
            return Verdict.REFUSE, f"this is incarnation {self._held.lease.incarnation}"
        entry = self._held.entries.get(uid)
        if entry is None:
            return Verdict.CONFIRM, ""
        if epoch > entry.epoch:
            idle = entry.phase is Phase.HELD and not (entry.running or entry.lost)
            over = entry.phase in UNHELD or idle
            return Verdict.CONFIRM if over else Verdict.WAIT, ""
        return self._judge_held(uid, entry, epoch, in_turn=in_turn)

    def _judge_held(
        self, uid: str, entry: Entry, epoch: int, *, in_turn: bool
    ) -> tuple[Verdict, str]:
        if epoch < entry.epoch:
            return Verdict.REFUSE, f"the uid has epoch {entry.epoch} now"
        if entry.phase in (Phase.ACQUIRING, Phase.ARRIVED):
            return Verdict.CONFIRM, ""
        is_due = self._held.clock() >= self._held.scheduled.at(uid, epoch)
        refuses = not in_turn and (is_due or entry.refuses_calls)
        if entry.phase is not Phase.HELD or entry.lost or refuses:
            return Verdict.REFUSE, "the uid has been released"
        return (Verdict.ADMIT if self._held.is_confirmed(entry) else Verdict.CONFIRM), ""

    def still(self, uid: str, epoch: int) -> tuple[Verdict, str]:
        """Judge a call that has run, before its result leaves; or that has waited, before it runs.

        A release that waits for this very call does not refuse it.
        """
        with self._held.lock:
            entry = self._held.entries[uid]  # it runs, so its entry stays
            if not self._held.lease.serves():
                return Verdict.REFUSE, "the pod's lease has lapsed"
            if entry.lost or entry.epoch != epoch:
                return Verdict.REFUSE, "the uid was lost"
            return (Verdict.ADMIT if self._held.is_confirmed(entry) else Verdict.CONFIRM), ""

    def is_over(self, uid: str, epoch: int) -> bool:
        """Say whether it is known that a uid is not held here under that epoch any more."""
        with self._held.lock:
            entry = self._held.entries.get(uid)
            if entry is None or epoch > entry.epoch:
                return False
            return epoch < entry.epoch or entry.lost or entry.phase in (Phase.ENDING, Phase.GIVEN)

    def leave(self, uid: str, call: object = None) -> None:
        """Stop counting a call as running; if it was interrupted, once more, and nothing is wrong.

        Also of one that was not admitted.
        """
        with self._held.lock:
            entry = self._held.entries.get(uid)
            if entry is None or entry.phase is not Phase.HELD:  # none runs
                return
            self._held.used(entry)
            if entry.calls and call in entry.calls:
                entry.calls.remove(call)
                if not entry.calls:
                    entry.call_time.end(entry.used_at)
            if not entry.calls:
                entry.calls = None
                self._held.order.busy.discard(uid)
            self._held.ended_call()
            self._held.look_at(uid, entry)

    # What Redis says.

    def confirmed(self, uid: str, epoch: int, link: Link, asked_at: float, term: int) -> Told:
        """Take in a link that names this pod's present incarnation and that epoch.

        `asked_at` is when, and `term` in which term, it was asked for.
        """
        with self._held.lock, _answering(self._held, uid):
            if term != self._held.term or not self._held.lease.serves():
                return Told.VOID
            entry = self._held.entries.get(uid)
            if _is_old(self._held, uid, epoch, asked_at):
                return Told.VOID
            until = asked_at + link.lease_s
            has_arrived = entry is not None and entry.phase is Phase.ARRIVED
            if entry is None or entry.epoch < epoch or (has_arrived and entry.epoch == epoch):
                return self._take_in(uid, epoch, entry, until, link)
            if epoch < entry.epoch or entry.lost or entry.phase is Phase.GIVEN:
                return Told.VOID
            if entry.phase is Phase.ACQUIRING:
                return Told.WAIT
            self._held.ready.read(uid, asked_at)
            set_kind(self._held, entry, persistent=link.persistent)
            _confirm(self._held, entry, until)  # an ENDING one, too: its link lives on meanwhile
            self._held.look_at(uid, entry)
            return Told.HELD if entry.phase is Phase.HELD else Told.VOID

    def _take_in(self, uid: str, epoch: int, entry: Entry | None, until: float, link: Link) -> Told:
        """Begin to acquire a uid, once an earlier epoch of it is over."""
        told = entry is not None and entry.phase is Phase.ARRIVED
        if (self._held.closed or self._held.shut) and not told:
            return Told.VOID  # who closed the pod has been told all that it holds
        if entry is None or entry.phase in UNHELD:
            at, term = self._held.clock(), self._held.term
            if at >= until:
                return Told.VOID  # its link may have ended since
            state = _state_of(entry, epoch, link)
            if state is not None and state.exports:
                return Told.WAIT
            if state is not None:
                state.arrived = False  # it is this pod's from here on, whatever on_acquire does
            self._held.scheduled.follow(uid, link.replaced, epoch)
            kind = link.persistent
            new = Entry(uid, epoch, Phase.ACQUIRING, term, until, at, kind, state=state)
            self._add(uid, new)
            return Told.ACQUIRE
        if entry.phase is Phase.HELD:  # its link ended without a release
            entry.lost = True
            self._held.look_at(uid, entry)
        return Told.WAIT

    def _add(self, uid: str, entry: Entry) -> None:
        self._held.entries[uid] = entry
        self._held.scheduled.over(uid, entry.epoch - 1)
        self._held.nobodys.drop(uid)
        self._held.arrived.pop(uid, None)
        self._held.used(entry)
        self._held.order.leased(uid)
        self._held.order.changing.add(uid)

    def acquired(self, uid: str, epoch: int) -> None:
        """Take in that `on_acquire` has ended well."""
        with self._held.lock:
            entry = self._held.entries[uid]
            assert entry.epoch == epoch
            assert entry.phase is Phase.ACQUIRING
            entry.phase = Phase.HELD
            self._held.order.changing.discard(uid)
            entry.state = None  # only now: until here it may have to be handed on
            self._held.used(entry)
            self._held.look_at(uid, entry)

    def state_of(self, uid: str) -> State | None:
        """Return the state that a uid is being acquired with."""
        with self._held.lock:
            return self._held.entries[uid].state

    def not_acquired(self, uid: str, epoch: int) -> None:
        """Take in that `on_acquire` has failed: the uid was never held, and may be tried again.

        Not if its release was asked for meanwhile: who asked for it takes it from here. A state
        stays where it is, for the next call, or for the next owner.
        """
        with self._held.lock:
            entry = self._held.entries[uid]
            assert entry.epoch == epoch
            assert entry.phase is Phase.ACQUIRING
            if entry.wishes:
                self._held.give(uid, entry)
            elif entry.state is not None and not entry.lost:
                arrive(self._held, uid, entry, epoch)
                entry.tried = True
            else:
                self._held.order.drop(uid)
                del self._held.entries[uid]
                self._held.forgotten.add(uid, epoch - 1, self._held.clock())
            self._held.scheduled.look_again(uid)

    def denied(self, uid: str, epoch: int, term: int) -> None:
        """Take in that Redis does not name this pod for that epoch: it is dropped unsaved."""
        with self._held.lock, _answering(self._held, uid):
            entry = self._held.entries.get(uid)
            if term == self._held.term and entry is not None and entry.epoch == epoch:
                if entry.phase is Phase.ARRIVED:
                    self._held.forget(uid)
                taken = entry.phase is Phase.ENDING and not entry.begun
                entry.lost = entry.lost or entry.phase is Phase.HELD or taken
                self._held.look_at(uid, entry)

    def refreshed(self, uids: Mapping[str, int], told: Refreshed, until: float, term: int) -> None:
        """Take in what a report of uids in use was answered; see `lengthened`."""
        for uid, epoch in told.ended.items():
            self.denied(uid, epoch, term)
        as_before = told.ended.keys() | told.ending
        self.lengthened({u: epoch for u, epoch in uids.items() if u not in as_before}, until, term)

    def lengthened(self, uids: Mapping[str, int], until: float, term: int) -> None:
        """Take in that links live on until a moment, at the least, if nobody removes them before.

        Not for a uid whose removal is scheduled, nor if its lease was void meanwhile.
        """
        with self._held.lock:
            for uid, epoch in uids.items():
                entry = self._held.entries.get(uid)
                ends = self._held.scheduled.at(uid, epoch) < math.inf
                if entry is None or entry.epoch != epoch or ends:
                    continue
                if term == entry.term == self._held.term and not entry.lost:
                    entry.until = max(entry.until, until)
                    self._held.order.leased(entry.uid)

    def unread(self, uid: str) -> None:
        """Take in that a link could not be read: the confirmation is asked for again."""
        with self._held.lock, _answering(self._held, uid):
            pass

    def use(self, links: Mapping[str, Link], life_s: float) -> None:
        """Hold uids that callers have routed here by other ways, for so many seconds from now."""
        with self._held.lock:
            at = self._held.clock()
            for uid, link in links.items():
                if link.incarnation == self._held.lease.incarnation and self._held.lease.serves():
                    self._use(uid, link, at, at + life_s)

    def _use(self, uid: str, link: Link, at: float, until: float) -> None:
        entry = self._held.entries.get(uid)
        if entry is None and link.epoch <= self._held.forgotten.epoch(uid):
            return  # old news of one that has left
        if entry is None or (link.epoch > entry.epoch and entry.phase is Phase.GIVEN):
            kind = link.persistent
            entry = Entry(uid, link.epoch, Phase.HELD, self._held.term, until, at, kind)
            self._add(uid, entry)
        elif link.epoch > entry.epoch and entry.phase is Phase.HELD:
            entry.lost = True
            self._held.look_at(uid, entry)
        elif link.epoch == entry.epoch and entry.phase is Phase.HELD and not entry.lost:
            _confirm(self._held, entry, until)  # of its kind a cache may know an old one
            self._held.used(entry)


@contextmanager
def _answering(held: Holdings, uid: str) -> Iterator[None]:
    """Take in that Redis has answered about a uid, or has not, and, within, what it says."""
    try:
        yield
    finally:
        entry = held.entries.get(uid)
        well = entry is not None and (entry.lost or held.is_confirmed(entry))
        if held.ready.answered(uid, well=well):
            held.work.ring()
        elif entry is not None:
            acquire_soon(held, uid, entry)


def _state_of(entry: Entry | None, epoch: int, link: Link) -> State | None:
    """Return the state to acquire a link with: that of exactly the epoch that it replaced."""
    if entry is None or entry.state is None:
        return None
    return entry.state if entry.epoch in (epoch, link.replaced) else None


def _confirm(held: Holdings, entry: Entry, until: float) -> None:
    held.order.leased(entry.uid)
    entry.until = max(until, entry.until) if entry.term == held.term else until
    entry.term = held.term


def _is_old(held: Holdings, uid: str, epoch: int, asked_at: float) -> bool:
    """True of news that was asked for too long ago.

    The uid may have been given up since, or its link set anew; or its server may have lost it
    since, and whoever restores that was not told of it here.
    """
    entry = held.entries.get(uid)
    if held.set_anew.voids(uid, epoch, asked_at):
        return True
    if entry is None and held.forgotten.voids(uid, epoch, asked_at):
        return True
    return (entry is None or entry.epoch < epoch) and asked_at <= held.recalls.at(uid)
