"""What a pod has not done with yet: uids to be given up, and those that are nobody's for now."""

from __future__ import annotations

from ray_route.pod.holdings import Holdings
from ray_route.protocol.commands import Given


def unsettled(held: Holdings, before: float) -> dict[str, Given]:
    """Return uids given up, or arrived, that Redis may still name this pod for.

    With their epochs, and what is to become of their links. Those whose links stay only if they
    were given up before a moment, since somebody may be moving them.
    """
    with held.lock:
        return held.nobodys.unsettled(held.entries, before)


def unfinished(held: Holdings) -> list[str]:
    """Return uids that are not given up yet, or whose state may be lost with this pod."""
    with held.lock:
        nobodys = held.nobodys
        given = nobodys.given_up
        return [uid for uid in held.entries if uid not in given or nobodys.has_state(uid)]


def is_finished(held: Holdings) -> bool:
    """True if there are none of those."""
    with held.lock:
        return not len(held) + held.nobodys.undecided
