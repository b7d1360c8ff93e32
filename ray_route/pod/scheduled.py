"""Removals that are scheduled: which uids are to be given up at a moment, and their links to go."""

from __future__ import annotations

import math
from typing import NamedTuple

from ray_route.pod.moments import Moments
from ray_route.protocol.commands import Fate


class _Removal(NamedTuple):
    epoch: int = 0
    at: float = math.inf
    is_doubtful: bool = False
    asked: int = 0
    """Under which epoch it was asked for last: it follows its uid to later ones."""


_NONE = _Removal()


class ScheduledRemovals:
    """Of each uid the epoch that is to end, and when; of two moments the earlier one, as in Redis.

    It is the link that is to go. So what becomes of its uid here meanwhile changes nothing: a hook
    that fails, a move that is not made. Its uid is looked at again at that moment, by `moments`.
    Nor is it forgotten when somebody is about to set the link anew, which takes the removal back:
    that may fail, and where it does not, its word may be lost. Redis decides then.
    Whoever reads or changes all this holds the holdings' lock.
    """

    def __init__(self, moments: Moments) -> None:
        self._moments = moments
        self._of: dict[str, _Removal] = {}

    def __len__(self) -> int:
        return len(self._of)

    def __contains__(self, uid: str) -> bool:
        return uid in self._of

    def of(self, uid: str) -> tuple[int, float]:
        """Return the epoch that is to end, and when; 0 and infinity if there is none."""
        return self._of.get(uid, _NONE)[:2]

    def at(self, uid: str, epoch: int) -> float:
        """Return when that epoch of a uid is to end; infinity if it is not."""
        return self._that(uid, epoch).at

    def fate(self, uid: str, epoch: int) -> Fate:
        """Return what is to become of the link of that epoch of a uid, since it is due."""
        return Fate.MAY_GO if self._that(uid, epoch).is_doubtful else Fate.GOES

    def _that(self, uid: str, epoch: int) -> _Removal:
        found = self._of.get(uid, _NONE)
        return found if found.epoch == epoch else _NONE

    def set(self, uid: str, epoch: int, at: float, replaced: int = 0) -> None:
        """Have an epoch of a uid ended at a moment, if not sooner.

        Sooner, too, if the epoch that it replaced was to end then: see `follow`. Not if that was in
        doubt: most likely its link was had back since Redis had taken the removal back. Nor if a
        later epoch is to end: then this comes late, and of an earlier one nothing is left.
        """
        if self.of(uid)[0] > epoch:
            return
        known = self._that(uid, epoch)
        if known is _NONE and not self._that(uid, replaced).is_doubtful:
            known = self._that(uid, replaced)
        self._of[uid] = _Removal(epoch, min(at, known.at), known.is_doubtful, epoch)
        self.look_again(uid)

    def doubt(self, uid: str, epoch: int) -> None:
        """Take in that the link of an epoch is about to be set anew, and then is not to go.

        Nor one that it may have replaced: see `follow`.
        """
        known = self._of.get(uid, _NONE)
        if known is not _NONE and known.epoch <= epoch:
            self._of[uid] = known._replace(is_doubtful=True)
            self.look_again(uid)

    def take_back(self, uid: str) -> None:
        """Take in that a uid's link is not to go."""
        if self._of.pop(uid, None):
            self._moments.drop(uid)

    def look_again(self, uid: str) -> None:
        """Have a uid looked at when its removal is due: it may be already, and not have begun."""
        if uid in self._of:
            self._moments.set(uid, self._of[uid].at)

    def follow(self, uid: str, replaced: int, epoch: int) -> None:
        """Take in that a link was given back to this pod, under an epoch that replaced another.

        One that had another owner in between is written anew, and ends at no moment.
        """
        if replaced and uid in self._of and self._of[uid].epoch == replaced:
            self._of[uid] = self._of[uid]._replace(epoch=epoch)
            self.look_again(uid)

    def over(self, uid: str, epoch: int) -> None:
        """Take in that a uid is this pod's no more, up to an epoch."""
        if self.of(uid)[0] <= epoch:
            self._of.pop(uid, None)

    def decided(self, uid: str, epoch: int, present: int) -> None:
        """Take in that Redis has decided about what was in doubt of an epoch.

        Not about a removal that somebody has scheduled since, before this was heard, be it in doubt
        by now, too. `present` is the epoch under which the uid is this pod's again; 0: it is not.
        """
        known = self._of.get(uid, _NONE)
        if known.is_doubtful and known.asked <= epoch:
            self.over(uid, max(epoch, present))

    def clear(self) -> None:
        """Take in that all links are others by now."""
        self._of.clear()
