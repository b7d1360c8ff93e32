"""Whether a pod admits anything, and whether it leaves: then it gives up all that it holds."""

from __future__ import annotations

from ray_route.pod.holdings import Holdings
from ray_route.pod.incoming import acquire_soon


def close(held: Holdings, reason: str) -> None:
    """Admit nothing, until `reopen`."""
    with held.lock:
        held.closed = reason


def reopen(held: Holdings) -> None:
    """Take `close` back."""
    with held.lock:
        held.closed = ""


def shut(held: Holdings, reason: str) -> None:
    """Admit nothing in this life any more: others may own what it held."""
    with held.lock:
        held.shut = reason


def leave_all(held: Holdings) -> None:
    """Have every uid given up as its calls end: the pod leaves."""
    with held.lock:
        held.leaving = True
        held.look_at_all()
        for uid in held.arrived:
            acquire_soon(held, uid, held.entries[uid])


def stay(held: Holdings) -> None:
    """Take `leave_all` and `close` back: what has been released is settled."""
    with held.lock:
        held.leaving = False
        held.closed = ""
