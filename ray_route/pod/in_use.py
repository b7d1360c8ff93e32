"""Which links of a pod must live on. No I/O here."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ray_route.pod.entries import UNHELD, Entry, Phase
from ray_route.pod.holdings import Holdings
from ray_route.pod.idle import unused


def in_use(held: Holdings, since: float, ending_before: float = -math.inf) -> dict[str, int]:
    """Return uids, with epochs, whose links must live on: used since, or being given up.

    And those held whose lease ends before another moment.
    """
    with held.lock:
        if not held.lease.serves():
            return {}
        used = {
            uid: entry.epoch
            for uid in _candidates(held, since)
            if (entry := held.entries.get(uid)) is not None
            and not entry.lost
            and _is_used(held, uid, entry, since)
        }
        return {**_ending(held, ending_before), **used}


def are_to_go(held: Holdings, uids: Mapping[str, int]) -> dict[str, int]:
    """Return those uids whose removal is scheduled, for later or by now: this pod sees to that."""
    with held.lock:
        at = held.scheduled.at
        return {uid: epoch for uid, epoch in uids.items() if at(uid, epoch) < math.inf}


def _is_used(held: Holdings, uid: str, entry: Entry, since: float) -> bool:
    if entry.phase in UNHELD:
        # Past a lapse, too: nobody serves it here, and its state must outlive its way.
        return uid in held.nobodys.kept or uid in held.arrived
    is_used = entry.running > 0 or entry.used_at >= since or entry.phase is not Phase.HELD
    return entry.term == held.term and (is_used or held.is_to_end(entry))


def _candidates(held: Holdings, since: float) -> set[str]:
    """Return uids among which are all those in use."""
    if held.leaving:
        return set(held.entries)
    order, some = held.order, {*held.moments, *held.ready, *held.nobodys.kept, *held.arrived}
    order.changing = {uid for uid in order.changing if _is_changing(held, uid)}
    some.update(order.busy, order.changing, unused(held))
    for uid in order.latest():
        entry = held.entries.get(uid)
        if entry is not None and entry.used_at < since:
            break
        some.add(uid)
    return some


def _is_changing(held: Holdings, uid: str) -> bool:
    entry = held.entries.get(uid)
    return entry is not None and entry.phase in (Phase.ACQUIRING, Phase.ENDING)


def _ending(held: Holdings, before: float) -> dict[str, int]:
    """Return temporary uids held whose lease ends before a moment."""
    some = {}
    for uid in held.order.soonest():
        if (entry := held.entries.get(uid)) is None:
            continue
        if entry.until >= before:
            break
        is_held = entry.phase is Phase.HELD and entry.term == held.term and not entry.lost
        if is_held and not entry.persistent:
            some[uid] = entry.epoch
    return some
