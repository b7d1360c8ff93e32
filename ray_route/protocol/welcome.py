"""A router's first answer to a client."""

from __future__ import annotations

from dataclasses import dataclass

from ray_route.config import RouteConfig
from ray_route.model import PodRecord
from ray_route.protocol.changes import Position


@dataclass(frozen=True, slots=True)
class Welcome:
    """What holds for all: the options in force, where the change stream stood, all pods.

    `seen` is the highest counter of each shard that the router knows of.
    """

    config: RouteConfig
    position: Position
    tables: dict[str, list[PodRecord]]
    seen: list[int]
