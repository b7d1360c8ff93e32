"""Shards that nothing may be read from or written to before they are recovered.

Of a Redis Cluster one master may be away, and all else goes on. What this router must have done in
every shard, it has then not done in some: it is done by their recovery, when they are back. And two
servers may have taken writes to a shard (`spans`): whichever stays lacks some.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from ray_route.config import RouteConfig


class SetAside:
    """Which shards are set aside, and which have been away for how long."""

    def __init__(self, config: RouteConfig) -> None:
        # A pod that could not reach them for so long may have lapsed, links may have run out.
        self._limit_s = 0.9 * config.pod_lease_s - config.heartbeat_s
        self._shards: dict[int, int] = {}
        self.times = 0
        """How often something has been set aside, for `discard`."""
        self._away_since: dict[int, float] = {}
        self._looked_at: float | None = None

    def __contains__(self, shard: int) -> bool:
        return shard in self._shards

    @property
    def shards(self) -> frozenset[int]:
        """All that are set aside now."""
        return frozenset(self._shards)

    def add(self, shards: Iterable[int]) -> None:
        """Set shards aside until `discard`."""
        self.times += 1
        self._shards.update(dict.fromkeys(shards, self.times))

    def discard(self, shard: int, times: int) -> None:
        """Note that a shard has been recovered, by what was gathered after so many `times`.

        One that has been set aside again meanwhile stays so.
        """
        if self._shards.get(shard, times + 1) <= times:
            del self._shards[shard]

    def looked(self, unseen: Collection[int], began: float, at: float) -> None:
        """Take in which shards a look could not see that began then, and has just ended.

        Sets aside those that were away for too long. What a look saw it saw when it began, for all
        we know.
        """
        since, seen_at = self._away_since, self._looked_at
        first = began if seen_at is None else seen_at
        self._away_since = {shard: since.get(shard, first) for shard in unseen}
        self._looked_at = began
        away = {**since, **self._away_since}
        self.add(shard for shard, seen_at in away.items() if at - seen_at >= self._limit_s)
