"""Which uids a router has a pod give up, until when, and whose they are then. No I/O here."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ray_route.pod.entries import UNHELD, Entry, Phase, Wish
from ray_route.pod.holdings import Holdings
from ray_route.pod.incoming import arrive
from ray_route.pod.kinds import will_be_set
from ray_route.pod.outcomes import given
from ray_route.protocol.commands import Fate, Given, Outcome, Settlement


class Releases:
    """Takes in what is asked for, and taken back, and what is due. Thread-safe."""

    def __init__(self, held: Holdings) -> None:
        self._held = held

    # What the router says.

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
            arrive(self._held, uid, entry, epoch)

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
            told = given(uid, entry, number, epoch)
            held.outcomes.add(told._replace(given=entry.epoch == epoch))
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
        replaced: int = 0,
    ) -> bool:
        """Have a uid given up at a moment, since its link is to go then; of two the earlier counts.

        At infinity it is about to be set anew, perhaps as a `temporary` one. `replaced` is the
        epoch that the uid's link replaced. False if it is being given up already, or has been.
        """
        with self._held.lock:
            entry = self._held.entries.get(uid)
            is_it = entry is not None and entry.epoch == epoch
            if entry is not None and is_it and entry.phase in (Phase.ENDING, Phase.GIVEN):
                return False
            if at == math.inf:
                will_be_set(self._held, uid, epoch, temporary=temporary)
            else:
                self._held.scheduled.set(uid, epoch, at, replaced)
            if entry is not None:
                self._held.look_again(uid, entry)
            return True

    def settled(
        self,
        uids: Mapping[str, Settlement],
        asked: Mapping[str, Given] | None = None,
        asked_at: float = math.inf,
    ) -> bool:
        """Take in whose uids are now that were given up under these epochs.

        One that is this pod's again has arrived, if there is a state; others are forgotten. Where
        it was `asked` whether its removal was taken back, it was. What was asked for before all
        was told of a uid's shard is void. False if there is one of those: it is to be asked again.
        """
        with self._held.lock:
            # A server may have lost that since, and have what was told restored.
            known = {uid: it for uid, it in uids.items() if asked_at > self._held.recalls.at(uid)}
            for uid, (epoch, present) in known.items():
                entry = self._held.entries.get(uid)
                if asked and asked.get(uid) == (epoch, Fate.MAY_GO):
                    self._held.scheduled.decided(uid, epoch, present)
                else:
                    self._held.scheduled.follow(uid, epoch, present)
                if entry is None or entry.phase is not Phase.GIVEN or entry.epoch != epoch:
                    continue
                if present and entry.state is not None:
                    arrive(self._held, uid, entry, present)
                else:
                    self._held.forget(uid)
            self._held.work.ring()
            return len(known) == len(uids)

    # What time brings.

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
        if entry.phase is not Phase.ENDING and not held.may_end(uid):
            self._lose_patience(uid, entry, at)
            held.look_again(uid, entry)
        held.look_at(uid, entry)

    def _lose_patience(self, uid: str, entry: Entry, at: float) -> None:
        """Keep a busy uid after all, if it is time."""
        for number, wish in [it for it in entry.wishes.items() if at >= it[1].until]:
            self._held.asked.drop(uid, entry, number)
            self._held.outcomes.add(Outcome(number, uid, wish.epoch, given=False))


def _end(held: Holdings, uid: str, epoch: int) -> None:
    """Begin a removal that is due; a uid that is held is looked at like all that are to end."""
    entry = held.entries.get(uid)
    if entry is None or (entry.epoch < epoch and _is_over(entry)):
        # Nothing of it is here: only its link is to go.
        held.bar(uid, epoch, held.scheduled.fate(uid, epoch))
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
