"""Other pods of a service, as one that fetches states has them."""

from __future__ import annotations

from typing import Any, Protocol

import ray

from ray_route.protocol.names import RAY_NAMESPACE


class Peer(Protocol):
    """Gives states away that it has given up; see `Exports`, whose answers these are."""

    def some(self, uids: dict[str, int], within_s: float) -> bytes:
        """Return, packed, what it has of some uids."""

    def one(self, uid: str, epoch: int, within_s: float) -> Any:
        """Return the state of one, packed, as bytes or a buffer."""


class ActorPeer:
    """A pod that is an actor, by its name."""

    def __init__(self, actor: str) -> None:
        self._pod = ray.get_actor(actor, namespace=RAY_NAMESPACE)

    def some(self, uids: dict[str, int], within_s: float) -> bytes:
        """See `Peer`; raises what Ray does."""
        asked = self._pod._ray_route_export.remote(uids)  # noqa: SLF001 - a pod of ours
        answer: bytes = ray.get(asked, timeout=within_s)
        return answer

    def one(self, uid: str, epoch: int, within_s: float) -> Any:
        """See `Peer`; raises what Ray does."""
        asked = self._pod._ray_route_export_one.remote(uid, epoch)  # noqa: SLF001 - as above
        return ray.get(asked, timeout=within_s)
