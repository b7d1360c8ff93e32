"""Whether the links of uids are persistent: others a pod gives up when nobody uses them."""

from __future__ import annotations

from collections.abc import Mapping

from ray_route.pod.entries import Entry
from ray_route.pod.holdings import Holdings


def set_kinds(held: Holdings, uids: Mapping[str, tuple[int, bool]]) -> None:
    """Take in which of some uids, under these epochs, have persistent links from now on."""
    with held.lock:
        for uid, (epoch, persistent) in uids.items():
            entry = held.entries.get(uid)
            if entry is not None and entry.epoch == epoch:
                set_kind(held, entry, persistent=persistent)


def set_kind(held: Holdings, entry: Entry, *, persistent: bool) -> None:
    """Take in of which kind the link of a uid is; whoever does holds the holdings' lock."""
    if entry.persistent and not persistent:
        held.used(entry)  # from now on it may end for want of use
    entry.persistent = persistent
