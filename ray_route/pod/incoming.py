"""Uids that come to a pod with their states; whoever does any of this holds the holdings' lock.

A state is taken in while its uid is nobody's. If the link becomes this pod's the uid has arrived,
and is acquired, with the state, without waiting for a call.
"""

from __future__ import annotations

from ray_route.pod.entries import UNHELD, Entry, Phase
from ray_route.pod.holdings import Holdings
from ray_route.pod.states import State
from ray_route.protocol.commands import Fate

# A link that a pod is told of has been written so lately that it lives for so long at the least.
_WRITTEN_S = 5.0


def take_in(held: Holdings, uid: str, epoch: int, state: State) -> bool:
    """Keep the state of a uid; False if more is known of that, or nothing is admitted."""
    entry = held.entries.get(uid)
    if held.leaving or held.closed or held.shut:
        return False
    if has_come(held, uid, epoch):
        return True
    if entry is not None and (entry.phase not in UNHELD or entry.epoch >= epoch):
        if entry.phase is Phase.HELD and entry.epoch < epoch:
            entry.lost = True  # its link ended without a release
            held.look_at(uid, entry)
        return False
    held.bar(uid, epoch).state = state
    held.nobodys.come.add(uid)
    return True


def has_come(held: Holdings, uid: str, epoch: int) -> bool:
    """True if the state of that epoch has come here, and its uid is nobody's."""
    entry = held.entries.get(uid)
    if entry is None or (entry.epoch, entry.phase) != (epoch, Phase.GIVEN):
        return False
    return entry.state is not None and entry.state.arrived


def arrive(held: Holdings, uid: str, entry: Entry, epoch: int) -> None:
    """Make a uid this pod's under an epoch that replaced the one of its state."""
    entry.epoch, entry.phase = epoch, Phase.ARRIVED
    if held.set_anew.epoch(uid) >= epoch:  # what was told of that kind was told to nobody
        entry.persistent = False
    entry.until = held.clock() + min(_WRITTEN_S, held.idle_s / 4)
    entry.tried, entry.removes, entry.term = False, Fate.STAYS, held.term
    if entry.state is not None:
        entry.state.arrived = False
    held.nobodys.drop(uid)
    held.arrived[uid] = None
    acquire_soon(held, uid, entry)


def acquire_soon(held: Holdings, uid: str, entry: Entry) -> None:
    """Have a uid that has arrived acquired; one that has failed, as its pod leaves alone."""
    if entry.phase is Phase.ARRIVED and (held.leaving or not entry.tried):
        held.to_acquire[uid] = None
        held.work.ring()
