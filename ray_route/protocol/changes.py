"""Entries of the change stream, and positions in it.

Every entry carries the writing router's incarnation and a number that grows by one, so that a
reader knows when it has missed something.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from ray_route.model import Life, PodRecord, RoutingState


@dataclass(frozen=True, slots=True)
class Position:
    """A position in the stream: the last entry's id, and who wrote it under which number."""

    entry: str
    router: int
    number: int


@dataclass(frozen=True, slots=True)
class Change:
    """One entry.

    `kind` is "pod" (a record changed), "link" (links up to an epoch are stale), "lost" (Redis has
    lost writes to `shards`) or "beat": all counters were compared, `counters` have changed since
    the last, and `servers` are the primaries now, if they are others than the last time.
    """

    kind: str
    service: str = ""
    pod: PodRecord | None = None
    stale: dict[str, int] | None = None
    shards: tuple[int, ...] = ()
    counters: dict[int, int] | None = None
    servers: str | None = None

    def encode(self) -> str:
        """Write the payload as JSON."""
        if self.pod is not None:
            return json.dumps(asdict(self.pod))
        if self.kind == "lost":
            return json.dumps(self.shards)
        if self.kind == "beat":
            return json.dumps({"counters": self.counters or {}, "servers": self.servers})
        return json.dumps(self.stale or {})

    @classmethod
    def decode(cls, kind: str, service: str, payload: str) -> Change:
        """Read what `encode` wrote."""
        content: Any = json.loads(payload)
        if kind == "pod":
            content["state"] = RoutingState(content["state"])
            content["life"] = Life(content["life"])
            return cls(kind, service, pod=PodRecord(**content))
        if kind == "lost":
            return cls(kind, shards=tuple(content))
        if kind == "beat":
            told = content.get("counters", {}).items()
            counters = {int(shard): counter for shard, counter in told}
            return cls(kind, counters=counters, servers=content.get("servers"))
        return cls(kind, service, stale=content)


BEAT = Change("beat")
"""A router's first: it has just become the only writer."""
