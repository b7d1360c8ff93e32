"""How long a near cache may be believed: while beats are heard, and what they vouch for."""

from __future__ import annotations

from collections.abc import Callable, Collection

from ray_route.state.link_cache import LinkCache

# Of the time for which links are believed without a beat: where the server of some shards is away
# for longer, their links are dropped, before they could cost the others their belief.
_PATIENCE = 1 / 2


class Trust:
    """Puts off the moment when a near cache is not believed any more. For one thread.

    A beat vouches for all shards but those whose server is away. Their links are believed for a
    while, as all are while no beat comes; then they are dropped, and none are kept, until a beat
    vouches for them again.
    """

    def __init__(
        self, near: LinkCache, staleness_s: float, shard_of: Callable[[str], int], heard_at: float
    ) -> None:
        self._near = near
        self._staleness_s = staleness_s
        self._shard_of = shard_of
        self._since: dict[int, float] = {}
        self._silent: frozenset[int] = frozenset()
        self._heard_at = heard_at
        near.trusted_until = heard_at + staleness_s

    def heard(self, at: float, unseen: Collection[int]) -> None:
        """Take in a beat that came no earlier than `at`."""
        self._since = {shard: self._since.get(shard, self._heard_at) for shard in unseen}
        self._heard_at = at
        late_at = at - _PATIENCE * self._staleness_s
        self._silence(frozenset(s for s, since in self._since.items() if since <= late_at))
        waiting = [since for s, since in self._since.items() if s not in self._silent]
        self._near.trusted_until = min([at, *waiting]) + self._staleness_s

    def _silence(self, shards: frozenset[int]) -> None:
        """Have no link of these shards, and keep none."""
        if shards == self._silent:
            return
        self._silent, shard_of = shards, self._shard_of
        self._near.refuse((lambda uid: shard_of(uid) in shards) if shards else None)

    def lag_s(self, at: float) -> float:
        """Seconds since a beat was last heard."""
        return at - self._heard_at
