"""What is believed of what pods remember: which of their links may be written back."""

from __future__ import annotations

from collections.abc import Iterator

from ray_route.protocol.commands import Address, Memory
from ray_route.router.membership import Membership
from ray_route.router.shards import Shards
from ray_route.store.keys import Keys

# Another machine's clock may go that much faster.
_CLOCKS_APART = 1.01


class Credible:
    """Judges memories by what this router knows to have been written meanwhile."""

    def __init__(self, membership: Membership, shards: Shards, keys: Keys) -> None:
        self._membership = membership
        self._shards = shards
        self._keys = keys
        self.is_proven = False
        """True if nothing was lost since an earlier router's last seal: its pod tables are ours."""

    def spans(self, under: int) -> bool:
        """True if this router knows of every end of a life since a renewal under that router.

        If that was itself, each later end was written by itself: older routers' ends fail. Else it
        knows the ends that stood in the pod tables when it began, and those were whole.
        """
        return under == self._shards.incarnation or self.is_proven

    def links(
        self, address: Address, memory: Memory, asked_at: float
    ) -> Iterator[tuple[str, tuple[int, bool]]]:
        """Yield what may be written back of what a pod holds.

        Nothing of a lapsed life that may have been ended. A uid whose own lease had ended may have
        been another's since: only if nothing was placed in its shard.
        """
        final = self._membership.denied.is_final(address)
        if memory.lapsed and (final or not self.spans(memory.under)):
            return
        for uid, (epoch, persistent) in memory.held.items():
            ago_s = max(0.0, memory.ago_s.get(uid, 0.0))
            if persistent or not ago_s or self._stood_still(uid, asked_at, ago_s):
                yield uid, (epoch, persistent)

    def _stood_still(self, uid: str, asked_at: float, ago_s: float) -> bool:
        """True if nothing was placed in the uid's shard since its lease ended, `ago_s` ago."""
        placed_at = self._shards.placed_at[self._keys.shard(uid)]
        return placed_at <= asked_at - _CLOCKS_APART * ago_s
