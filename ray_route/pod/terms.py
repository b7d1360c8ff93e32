"""What the lease of a pod does to its uids: renewed, lapsed, resumed, ended with its life.

A term is what lies between two lapses. What was begun in an earlier one is void, and each uid is
confirmed anew before its next call or hook. No I/O here.
"""

from __future__ import annotations

from ray_route.pod.entries import UNHELD, Phase
from ray_route.pod.holdings import Holdings
from ray_route.pod.incoming import acquire_soon
from ray_route.pod.pod_lease import PodLease


def renew(held: Holdings, asked_at: float) -> bool:
    """Take in a renewal sent at `asked_at`; False if the lease had lapsed by now.

    A thread that wakes first after a freeze must not open the gate for calls that were admitted
    under the old lease.
    """
    with held.lock:
        if not held.lease.serves():
            return False
        held.lease.extend(asked_at)
        return True


def lapse(held: Holdings) -> int:
    """Refuse all and keep all, until `resume`; void what was begun. Return the new term."""
    with held.lock:
        held.lease.suspend()
        _begin_term(held)
        return held.term


def _begin_term(held: Holdings) -> None:
    """Void what was asked for or begun, unless its hook runs."""
    held.term += 1
    held.ready.clear()
    for uid, entry in held.entries.items():
        if entry.wishes and entry.phase is not Phase.ENDING:
            held.asked.drop(uid, entry, *entry.wishes)
        acquire_soon(held, uid, entry)


def resume(held: Holdings, term: int, asked_at: float) -> bool:
    """Serve again by a renewal sent at `asked_at` and confirmed, if both were in this term.

    Each uid is confirmed before its next call or hook.
    """
    with held.lock:
        if term == held.term:
            held.lease.extend(asked_at)
        held.look_at_all()
        return term == held.term and held.lease.serves()


def begin(held: Holdings, lease: PodLease, pod: int) -> None:
    """Begin another life: of what the last one held, nothing is saved."""
    with held.lock:
        held.lease.end()
        _begin_term(held)
        held.lease, held.pod = lease, pod
        held.closed = held.shut = ""
        held.leaving = False
        held.scheduled.clear()
        for uid, entry in list(held.entries.items()):
            if entry.phase in UNHELD:
                held.forget(uid)
            else:
                entry.lost = True
                held.look_at(uid, entry)


def lose_all(held: Holdings) -> None:
    """End the lease for ever; what is held is lost, unsaved."""
    with held.lock:
        held.lease.end()
        _begin_term(held)
        for uid, entry in list(held.entries.items()):
            if entry.phase in UNHELD and entry.state is not None:
                held.forget(uid)
                continue
            entry.lost = entry.lost or entry.phase in (Phase.HELD, Phase.ACQUIRING)
            held.look_at(uid, entry)
