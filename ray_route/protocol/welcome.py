"""A router's first answer to a client, and what it says of servers that a client reads from."""

from __future__ import annotations

from typing import NamedTuple

from ray_route.config import RouteConfig
from ray_route.model import PodRecord
from ray_route.protocol.changes import Position


class Welcome(NamedTuple):
    """What holds for all: the options in force, where the change stream stood, all pods.

    `seen` is the highest counter of each shard that the router knows of.
    """

    config: RouteConfig
    position: Position
    tables: dict[str, list[PodRecord]]
    seen: list[int]


class Vouched(NamedTuple):
    """What a router vouches for after a comparison of all counters.

    `servers` are the identities of all primaries (see `AsyncStore.servers`), `seen` the highest
    counter of each shard.
    """

    servers: str
    seen: list[int]

    @property
    def identities(self) -> frozenset[str]:
        """The servers one by one."""
        return frozenset(self.servers.split(","))
