"""Whether the links of uids are persistent: others a pod gives up when nobody uses them.

Who sets a link anew asks its pod before, and tells it afterwards what the link is; he may die in
between, and what was read before may come later. So a kind that is not certain counts as temporary,
and none is given up for want of use whose link was not read since it has been unused for so long.
"""

from __future__ import annotations

from collections.abc import Mapping

from ray_route.pod.entries import UNHELD, Entry
from ray_route.pod.holdings import Holdings


def will_be_set(held: Holdings, uid: str, epoch: int, *, temporary: bool) -> None:
    """Take in that a link is about to be set anew, which uses its uid; who does holds the lock."""
    held.scheduled.doubt(uid, epoch)
    held.set_anew.add(uid, epoch, held.clock())
    entry = held.entries.get(uid)
    if entry is not None and entry.epoch == epoch:
        entry.persistent = entry.persistent and not temporary
        if entry.phase not in UNHELD:
            held.used(entry)


def set_kinds(held: Holdings, uids: Mapping[str, tuple[int, bool]]) -> None:
    """Take in which of some uids, under these epochs, have persistent links from now on."""
    with held.lock:
        for uid, (epoch, persistent) in uids.items():
            held.set_anew.add(uid, epoch, held.clock())
            if held.scheduled.of(uid)[0] <= epoch:
                held.scheduled.take_back(uid)
            entry = held.entries.get(uid)
            if entry is None:
                continue
            if entry.epoch == epoch:
                set_kind(held, entry, persistent=persistent)
            held.look_again(uid, entry)  # a release may wait for its own moment


def set_kind(held: Holdings, entry: Entry, *, persistent: bool) -> None:
    """Take in of which kind the link of a uid is; whoever does holds the holdings' lock."""
    if entry.persistent and not persistent:
        held.used(entry)  # from now on it may end for want of use
    entry.persistent = persistent


def is_to_be_read(held: Holdings, entry: Entry) -> bool:
    """True of a uid that is given up for want of use alone, before its link was read for that."""
    is_read = held.ready.read_at(entry.uid) >= entry.used_at + held.idle_s
    return not (is_read or held.is_to_end(entry, though_used=True))
