"""How a pod gives uids up: asked to by the router, or by itself. No I/O here."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from enum import Enum
from functools import partial
from typing import Any, NamedTuple

from ray_route.pod.entries import UNHELD, Entry, Phase, Wish
from ray_route.pod.holdings import Holdings
from ray_route.pod.kinds import is_to_be_read, will_be_set
from ray_route.pod.release_lines import Why
from ray_route.pod.states import State
from ray_route.protocol.commands import Fate, Given, Outcome, Settlement, Taken

# As many uids may wait for their next owner to fetch their states: nobody serves them meanwhile.
# So the longest pause of one is the time in which so many are moved; fewer would leave the way to
# their next owner empty while messages are under way.
_KEPT_AT_ONCE = 128


class Kind(Enum):
    """Which hook is to run: `on_release`, or `on_lost` where Redis does not name this pod."""

    RELEASE = "release"
    LOSE = "lose"


class Work(NamedTuple):
    """A hook that is to run, or a link that is to be read before."""

    uid: str
    epoch: int
    term: int
    kind: Kind = Kind.RELEASE


class Releases:
    """Decides when a uid's hook may run; tells what became of each release. Thread-safe."""

    def __init__(self, held: Holdings) -> None:
        self._held = held
        self._lines = deque(Why)

    # What is asked for.

    def release(
        self,
        number: int,
        uids: Mapping[str, int],
        patience_s: float,
        *,
        closes: bool,
        router: int,
        replaced: Mapping[str, int] | None = None,
    ) -> None:
        """Have uids given up when their calls have ended; each has its `Outcome`.

        A uid that is still busy after `patience_s` seconds is kept as it was; one that only waits
        for its hook's turn is not busy, and is waited for until `cancel`. With `closes` its calls
        are refused meanwhile. `replaced` names the epochs that the uids' links replaced.
        """
        with self._held.lock:
            until, term = self._held.clock() + patience_s, self._held.term
            for uid, epoch in uids.items():
                self._arrive(uid, (replaced or {}).get(uid, 0), epoch)
                self._wish(number, uid, Wish(router, epoch, until, closes, term))

    def _arrive(self, uid: str, replaced: int, epoch: int) -> None:
        """Take in that a link of this pod replaced an epoch, whose state may be here."""
        self._held.scheduled.follow(uid, replaced, epoch)
        entry = self._held.entries.get(uid)
        if entry is None or entry.phase not in UNHELD or entry.epoch != replaced:
            return
        if entry.state is not None:
            self._held.arrive(uid, entry, epoch)

    def _wish(self, number: int, uid: str, wish: Wish) -> None:
        held, epoch = self._held, wish.epoch
        entry = held.entries.get(uid)
        if entry is not None and entry.phase is Phase.ARRIVED and entry.epoch <= epoch:
            # Nothing was acquired, so no hook runs: its state goes on.
            held.asked.add(uid, entry, number, wish)
            held.give(uid, entry)
            return
        if entry is None or (entry.epoch < epoch and entry.phase is Phase.GIVEN):
            # Nothing to give up; but a call that is on its way to be confirmed must be refused.
            entry = held.bar(uid, epoch)
        if entry.epoch > epoch or entry.phase is Phase.GIVEN:
            given = held.given(uid, entry, number, epoch)
            held.tell(given._replace(given=entry.epoch == epoch))
            return
        held.asked.add(entry.uid, entry, number, wish)
        if entry.epoch < epoch and entry.phase is Phase.HELD:
            entry.lost = True  # its link ended without a release
        held.look_again(uid, entry)
        held.look_at(uid, entry)

    def cancel(self, number: int) -> None:
        """Take a release back for all uids whose hook has not begun."""
        with self._held.lock:
            for uid in self._held.asked.of(number):
                entry = self._held.entries[uid]
                if entry.phase is Phase.ENDING:
                    entry.wishes[number].void = True
                else:
                    self._held.asked.drop(uid, entry, number)
                    self._held.look_again(uid, entry)

    def follow(self, router: int) -> None:
        """Take in that a younger router speaks, which writes only once no older one can.

        What older ones asked for, and has not begun, is void.
        """
        with self._held.lock:
            for entry in self._held.entries.values():
                for wish in entry.wishes.values():
                    wish.void = wish.void or wish.router < router
                if entry.phase is not Phase.ENDING:
                    self._held.asked.drop_void(entry, self._held.term)
            self._held.closed = ""

    def end_at(
        self,
        uid: str,
        epoch: int,
        at: float,
        *,
        temporary: bool = False,
    ) -> bool:
        """Have a uid given up at a moment, since its link is to go then; of two the earlier counts.

        At infinity it is about to be set anew, perhaps as a `temporary` one. False if it is being
        given up already, or has been.
        """
        with self._held.lock:
            entry = self._held.entries.get(uid)
            is_it = entry is not None and entry.epoch == epoch
            if entry is not None and is_it and entry.phase in (Phase.ENDING, Phase.GIVEN):
                return False
            if at == math.inf:
                will_be_set(self._held, uid, epoch, temporary=temporary)
            else:
                self._held.scheduled.set(uid, epoch, at)
            if entry is not None:
                self._held.look_again(uid, entry)
            return True

    def leave_all(self) -> None:
        """Have every uid given up as its calls end: the pod leaves."""
        with self._held.lock:
            self._held.leaving = True
            self._held.look_at_all()
            for uid in self._held.arrived:
                self._held.is_to_be_acquired(uid, self._held.entries[uid])

    def stay(self) -> None:
        """Take `leave_all` and `close` back: what has been released is settled."""
        with self._held.lock:
            self._held.leaving = False
            self._held.closed = ""

    def close(self, reason: str) -> None:
        """Admit nothing, until `open`."""
        with self._held.lock:
            self._held.closed = reason

    def open(self) -> None:
        """Take `close` back."""
        with self._held.lock:
            self._held.closed = ""

    def shut(self, reason: str) -> None:
        """Admit nothing in this life any more: others may own what it held."""
        with self._held.lock:
            self._held.shut = reason

    # What is to be done.

    def tick(self) -> None:
        """Look at the clock: wishes whose patience is over, removals that are due."""
        with self._held.lock:
            at = self._held.clock()
            for uid in self._held.moments.take(at):
                self._tick(uid, at)

    def _tick(self, uid: str, at: float) -> None:
        held = self._held
        epoch, due_at = held.scheduled.of(uid)
        if at >= due_at:
            _end(held, uid, epoch)
        entry = held.entries.get(uid)
        if at < due_at or (entry is not None and entry.epoch < epoch):
            held.scheduled.look_again(uid)
        if entry is None:
            return
        if entry.phase is not Phase.ENDING and not self._may_end(uid):
            self._lose_patience(uid, entry, at)
            held.look_again(uid, entry)
        held.look_at(uid, entry)

    def _lose_patience(self, uid: str, entry: Entry, at: float) -> None:
        """Keep a busy uid after all, if it is time."""
        for number, wish in [it for it in entry.wishes.items() if at >= it[1].until]:
            self._held.asked.drop(uid, entry, number)
            self._held.tell(Outcome(number, uid, wish.epoch, given=False))

    def look_for_idle(self) -> None:
        """Look whether nobody has used some uids for long."""
        with self._held.lock:
            self._held.look_for_idle()

    def take(self, limit: int) -> list[Work]:
        """Begin what is to be done, at most so many hooks: the only way in which one begins.

        Its uid is ENDING from here on; `ended` must follow. Nothing is released past the lease, or
        before Redis has confirmed the uid in this term (see `to_confirm`).
        """
        with self._held.lock:
            work: list[Work] = []
            take = partial(self._held.ready.take, is_fit=self._is_fit, may_end=self._may_end)
            for why in self._lines_to_take_from():
                while len(work) < limit and (uid := take(why)) is not None:
                    work.append(self._begun(uid, self._held.entries[uid]))
            return work

    def _lines_to_take_from(self) -> list[Why]:
        """Return the lines from which hooks may begin; another is the first each time."""
        self._lines.rotate()
        serves = self._held.lease.serves()
        has_room = serves and self._held.nobodys.soon_gone < _KEPT_AT_ONCE
        may = {Why.LOST: True, Why.OWN: serves, Why.ASKED: has_room}
        return [why for why in self._lines if may[why]]

    def _is_fit(self, uid: str) -> bool:
        """True if nothing of a uid has to be read before it is given up, or lost."""
        held, entry = self._held, self._held.entries[uid]
        return entry.lost or (held.is_confirmed(entry) and not is_to_be_read(held, entry))

    def _may_end(self, uid: str) -> bool:
        entry = self._held.entries.get(uid)
        held = entry is not None and entry.phase is Phase.HELD and not entry.running
        return held and entry is not None and self._held.is_to_end(entry)

    def _begun(self, uid: str, entry: Entry) -> Work:
        entry.phase = Phase.ENDING
        self._held.order.changing.add(uid)
        scheduled, stays = self._held.scheduled, bool(entry.wishes) or entry.persistent
        entry.removes = Fate.STAYS if stays else Fate.UNUSED
        if self._held.clock() >= scheduled.at(uid, entry.epoch):
            entry.removes = scheduled.fate(uid, entry.epoch)
        kind = Kind.LOSE if entry.lost else Kind.RELEASE
        return Work(uid, entry.epoch, self._held.term, kind)

    def to_confirm(self) -> list[Work]:
        """Return the next uids whose links must be read before they may be given up, each once."""
        held = self._held
        with held.lock:
            if not held.lease.serves():
                return []
            uids = held.ready.to_confirm(self._is_fit, self._may_end)
            return [Work(uid, held.entries[uid].epoch, held.term) for uid in uids]

    def to_acquire(self) -> list[Work]:
        """Return the uids that have arrived and are to be acquired, each once."""
        held = self._held
        with held.lock:
            if not (held.to_acquire and held.lease.serves()):
                return []
            some = [(uid, held.entries[uid]) for uid in held.to_acquire if uid in held.arrived]
            held.to_acquire.clear()
            return [
                Work(uid, entry.epoch, held.term)
                for uid, entry in some
                if not entry.tried or held.leaving
            ]

    def may_begin(self, work: Work) -> bool:
        """Look again when a hook's thread is there; if it may not begin, the uid stays held."""
        with self._held.lock:
            entry = self._held.entries[work.uid]
            if work.kind is Kind.LOSE or _may_still_begin(self._held, entry, work):
                entry.begun = True
                return True
            _stays(self._held, entry)
            return False

    def not_begun(self, some: list[Work]) -> None:
        """Take in that there is no thread for hooks: their uids stay held."""
        with self._held.lock:
            for work in some:
                _stays(self._held, self._held.entries[work.uid])

    def ended(self, uid: str, epoch: int, state: Any = None) -> None:
        """Take in that a hook has ended, however it did: the uid is nobody's.

        `state` is what it returned; it is kept for who moves the uid, though its link was to go.
        Where nobody does, not if its link goes; nor is it waited for if its pod does.
        """
        with self._held.lock:
            entry = self._held.entries[uid]
            assert entry.epoch == epoch
            assert entry.phase is Phase.ENDING
            if entry.is_wanted:
                entry.removes = Fate.STAYS
            if state is not None and entry.may_stay and not entry.lost:
                entry.state = State(state)
            goes_nowhere = self._held.leaving and not entry.is_wanted
            self._held.give(uid, entry)
            if goes_nowhere:  # unless the pod stays
                self._held.nobodys.kept.discard(uid)
            if entry.lost and entry.epoch == epoch:
                self._held.forget(uid)

    def outcomes(self) -> list[Outcome | Taken]:
        """Return the outcomes since the last time."""
        with self._held.lock:
            some, self._held.outcomes = self._held.outcomes, []
            return some

    def not_told(self, outcomes: list[Outcome | Taken]) -> None:
        """Take in that some outcomes may have reached nobody: they are to be told again."""
        with self._held.lock:
            self._held.outcomes[:0] = outcomes

    def tell(self, taken: list[Taken]) -> None:
        """Have the router told what became of states that were to be fetched."""
        with self._held.lock:
            self._held.tell(*taken)

    def settled(
        self, uids: Mapping[str, Settlement], asked: Mapping[str, Given] | None = None
    ) -> None:
        """Take in whose uids are now that were given up under these epochs.

        One that is this pod's again has arrived, if there is a state; others are forgotten. Where
        it was `asked` whether its removal was taken back, it was.
        """
        with self._held.lock:
            for uid, (epoch, present) in uids.items():
                entry = self._held.entries.get(uid)
                if asked and asked.get(uid) == (epoch, Fate.MAY_GO):
                    self._held.scheduled.decided(uid, max(epoch, present))
                else:
                    self._held.scheduled.follow(uid, epoch, present)
                if entry is None or entry.phase is not Phase.GIVEN or entry.epoch != epoch:
                    continue
                if present and entry.state is not None:
                    self._held.arrive(uid, entry, present)
                else:
                    self._held.forget(uid)
            self._held.work.ring()


def _may_still_begin(held: Holdings, entry: Entry, work: Work) -> bool:
    serves = work.term == held.term and held.lease.serves()
    return serves and not entry.lost and held.is_confirmed(entry)


def _stays(held: Holdings, entry: Entry) -> None:
    """Keep a uid whose hook has not begun; it is looked at again."""
    entry.phase = Phase.HELD
    held.asked.drop_void(entry, held.term)
    held.look_at(entry.uid, entry)


def _end(held: Holdings, uid: str, epoch: int) -> None:
    """Begin a removal that is due; a uid that is held is looked at like all that are to end."""
    entry = held.entries.get(uid)
    if entry is None or (entry.epoch < epoch and _is_over(entry)):
        held.bar(
            uid, epoch, held.scheduled.fate(uid, epoch)
        )  # nothing of it is here: only its link is to go
    elif entry.epoch > epoch:
        held.scheduled.over(uid, epoch)
    elif entry.epoch < epoch and entry.phase is Phase.HELD:  # that one is not over here
        entry.lost = True
    elif entry.epoch == epoch and entry.phase is Phase.ARRIVED and entry.tried:
        # Its on_acquire fails: nobody waits for its next call.
        entry.removes = held.scheduled.fate(uid, epoch)
        held.give(uid, entry)


def _is_over(entry: Entry) -> bool:
    """True of a uid that was given up, and whose state is nothing to wait for."""
    return entry.phase is Phase.GIVEN and entry.state is None
