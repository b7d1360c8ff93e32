"""When a pod last told a router what it holds: what was asked for before comes late."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection


class Recalls:
    """When the uids of each shard were last told, to be restored. Whoever uses it holds a lock."""

    def __init__(self) -> None:
        self._told_at: dict[int, float] = {}
        self._began_at = -math.inf
        self._shard_of: Callable[[str], int] = lambda _: 0  # until there are moments to look up

    def told(self, shards: Collection[int], shard_of: Callable[[str], int], at: float) -> None:
        """Take in that the uids of these shards are told; of none: the counters of all are.

        A router that begins asks for no more: only by these counters does it know what is lost.
        An answer that comes later may tell of what is lost, too, and then nobody restores it.
        """
        self._shard_of = shard_of
        self._told_at.update(dict.fromkeys(shards, at))
        if not shards:
            self._began_at = at

    def at(self, uid: str) -> float:
        """Return when a uid was told last; -inf: never. What was asked for until then is void."""
        return max(self._began_at, self._told_at.get(self._shard_of(uid), -math.inf))
