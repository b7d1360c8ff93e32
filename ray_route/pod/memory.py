"""What a pod tells its router of the uids that it holds: all to restore them, less for a drain."""

from __future__ import annotations

from ray_route.pod.entries import Phase
from ray_route.pod.holdings import Holdings
from ray_route.protocol.commands import Fate, Shown


def epochs_held(held: Holdings) -> dict[str, int]:
    """Return the epochs of all uids held: never of one given up or lost."""
    kept = held.nobodys.kept
    return {uid: epoch for uid, (epoch, _) in memory(held)[1].items() if uid not in kept}


def shown(held: Holdings) -> Shown:
    """Return what a drain must know of."""
    with held.lock:
        undecided = held.nobodys.undecided
    # In this order: what is decided in between is counted twice, never passed over.
    return Shown(epochs_held(held), held.running, undecided)


def memory(held: Holdings) -> tuple[bool, dict[str, tuple[int, bool]], dict[str, float]]:
    """Return whether the pod's lease has lapsed, and what the pod remembers of uids held.

    That is their epoch and kind, and of those whose own lease has ended how many seconds ago that
    was. One whose removal was due by then is not remembered, unless that may have been taken back.
    One that was given up is, if its state is kept here: it is never served under that epoch again.
    """
    with held.lock:
        at = held.clock()
        remembered, ago_s = {}, {}
        for uid, entry in held.entries.items():
            over, due = at >= entry.until, at >= held.scheduled.at(uid, entry.epoch)
            due = due and held.scheduled.fate(uid, entry.epoch) is Fate.GOES
            is_kept = uid in held.nobodys.kept and entry.may_stay
            gone = entry.phase is Phase.GIVEN and not is_kept
            if gone or entry.lost or (over and due):
                continue
            remembered[uid] = (entry.epoch, entry.persistent)
            if over:
                ago_s[uid] = at - entry.until
        return not held.lease.serves(), remembered, ago_s
