"""The errors in which a router says what stands in the way of an answer."""

from __future__ import annotations

from dataclasses import dataclass

from ray_route.errors import LostWritesError, RouterUnavailableError, StoreUnavailableError


@dataclass(frozen=True, slots=True)
class Problems:
    """Makes the errors of one namespace, on the store at `address`."""

    address: str
    namespace: str

    def taken_over(self) -> RouterUnavailableError:
        """Make the error of a router that must not go on."""
        return RouterUnavailableError(
            namespace=self.namespace, reason="a younger router has taken over"
        )

    def unread(self, shard: int) -> StoreUnavailableError:
        """Make the error of a shard whose server is away."""
        return self._unavailable(f"the server of shard {shard} does not answer")

    def aside(self, shard: int) -> LostWritesError:
        """Make the error of a shard that is set aside."""
        return self.lost_writes([shard], "its server was away, and is to be heard first")

    def full(self) -> StoreUnavailableError:
        """Make the error of a new link that a full server has refused."""
        return self._unavailable("it is full: maxmemory is reached")

    def _unavailable(self, reason: str) -> StoreUnavailableError:
        return StoreUnavailableError(address=self.address, reason=reason, namespace=self.namespace)

    def lost_writes(
        self, shards: list[int], reason: str = "what is left there is not the truth"
    ) -> LostWritesError:
        """Make the error of shards that are to be recovered first."""
        return LostWritesError(
            address=self.address, shards=shards, reason=reason, namespace=self.namespace
        )
