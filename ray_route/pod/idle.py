"""Which uids of a pod nobody has used for long: it gives them up by itself."""

from __future__ import annotations

from collections.abc import Iterator

from ray_route.pod.holdings import Holdings


def look_for_idle(held: Holdings) -> None:
    """Have temporary ones given up, each looked at once until it is used again."""
    with held.lock:
        idle = list(unused(held))
        for uid in idle:
            if (entry := held.entries.get(uid)) and not entry.persistent:
                held.look_at(uid, entry)
        held.order.unused(idle)


def unused(held: Holdings) -> Iterator[str]:
    """Yield uids that nobody has used for long; whoever takes them holds the holdings' lock."""
    at = held.clock()
    for uid in held.order.oldest():
        entry = held.entries.get(uid)
        if entry is not None and at < entry.used_at + held.idle_s:
            return
        yield uid
