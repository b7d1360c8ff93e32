"""What is to be done next for the uids of a pod: hooks, and reads of links before. No I/O here."""

from __future__ import annotations

from collections import deque
from enum import Enum
from functools import partial
from typing import Any, NamedTuple

from ray_route.pod.entries import Entry, Phase
from ray_route.pod.holdings import Holdings
from ray_route.pod.kinds import is_to_be_read
from ray_route.pod.release_lines import Why
from ray_route.pod.states import State
from ray_route.protocol.commands import Fate

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


class NextWork:
    """Decides when a uid's hook may run, and takes in that it has. Thread-safe."""

    def __init__(self, held: Holdings) -> None:
        self._held = held
        self._lines = deque(Why)

    def to_confirm(self) -> list[Work]:
        """Return the next uids whose links must be read before they may be given up, each once."""
        held = self._held
        with held.lock:
            if not held.lease.serves():
                return []
            uids = held.ready.to_confirm(self._is_fit, held.may_end)
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

    def take(self, limit: int) -> list[Work]:
        """Begin what is to be done, at most so many hooks: the only way in which one begins.

        Its uid is ENDING from here on; `ended` must follow. Nothing is released past the lease, or
        before Redis has confirmed the uid in this term (see `to_confirm`).
        """
        with self._held.lock:
            work: list[Work] = []
            take = partial(self._held.ready.take, is_fit=self._is_fit, may_end=self._held.may_end)
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

    def _begun(self, uid: str, entry: Entry) -> Work:
        entry.phase = Phase.ENDING
        self._held.order.changing.add(uid)
        scheduled, stays = self._held.scheduled, bool(entry.wishes) or entry.persistent
        entry.removes = Fate.STAYS if stays else Fate.UNUSED
        if self._held.clock() >= scheduled.at(uid, entry.epoch):
            entry.removes = scheduled.fate(uid, entry.epoch)
        kind = Kind.LOSE if entry.lost else Kind.RELEASE
        return Work(uid, entry.epoch, self._held.term, kind)

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


def _may_still_begin(held: Holdings, entry: Entry, work: Work) -> bool:
    serves = work.term == held.term and held.lease.serves()
    return serves and not entry.lost and held.is_confirmed(entry)


def _stays(held: Holdings, entry: Entry) -> None:
    """Keep a uid whose hook has not begun; it is looked at again."""
    entry.phase = Phase.HELD
    held.asked.drop_void(entry, held.term)
    held.look_at(entry.uid, entry)
