"""What serves a pod's uids needs of the world outside: the router, and links as they are read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from ray_route.config import RouteConfig
from ray_route.model import Link
from ray_route.runtime.link_reads import Part, Readings
from ray_route.runtime.waiting import Operation
from ray_route.store.keys import Keys


class Reads(Protocol):
    """Reads links, many at once."""

    def ask(self, parts: Sequence[Part]) -> Future[Readings]:
        """Return what will have an answer for each part."""

    def doubt(self, shard: int) -> None:
        """Have a router vouch anew for the server that holds a shard, before it is asked again."""


class Surroundings(Protocol):
    """A namespace, as a pod has it; see `runtime.namespace.Namespace`, which is one."""

    @property
    def name(self) -> str:
        """The namespace's name."""

    @property
    def config(self) -> RouteConfig:
        """Its options."""

    @property
    def keys(self) -> Keys:
        """Which shard has which uid."""

    @property
    def reads(self) -> Reads:
        """How links are read."""

    def read(self, shard: int, names: Sequence[tuple[str, str]]) -> Operation[list[Link | None]]:
        """Read links of one shard, waiting for what is in the way."""

    def ask(self, method: str, *args: Any, **kwargs: Any) -> Operation[Any]:
        """Ask the router; while it is being restarted, ask again until the deadline."""

    def ask_now(self, method: str, *args: Any, timeout_s: float) -> Any:
        """Ask the router as it was last found, once; wait here for its answer."""

    def find_router(self) -> None:
        """Look the router up, and make one if there is none."""

    def hear_of_servers(self, servers: str) -> None:
        """Take in which servers a router saw last."""

    def saw_all(self, seen: Iterable[tuple[int, int]]) -> None:
        """Remember counters or epochs of shards."""

    def all_seen(self) -> list[int]:
        """Return the highest counter seen of each shard."""
