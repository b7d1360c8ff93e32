"""Entries of the change stream, and positions in it.

Every entry carries the writing router's incarnation and a number that grows by one, so that a
reader knows when it has missed something.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

from ray_route.model import Life, PodRecord, RoutingState

# No incarnation or number is greater: they are counted up exactly.
_MOST = 2**53


class UnreadableEntryError(ValueError):
    """An entry that no router has written."""


class Position(NamedTuple):
    """A position in the stream: the last entry's id, and who wrote it under which number."""

    entry: str
    router: int
    number: int


class Change(NamedTuple):
    """One entry.

    `kind` is "pod" (a record changed), "link" (links up to an epoch are stale), "lost" (Redis has
    lost writes to some shards, whose `counters` were so high) or "beat": all counters were
    compared but those of `unseen` shards, `counters` have changed since the last, and `servers` are
    the primaries now, if they are others than the last time.
    """

    kind: str
    service: str = ""
    pod: PodRecord | None = None
    stale: dict[str, int] | None = None
    counters: dict[int, int] | None = None
    servers: str | None = None
    unseen: tuple[int, ...] = ()

    def encode(self) -> str:
        """Write the payload as JSON."""
        if self.pod is not None:
            return json.dumps(asdict(self.pod))
        if self.kind == "lost":
            return json.dumps(self.counters or {})
        if self.kind == "beat":
            unseen = {"unseen": self.unseen} if self.unseen else {}
            return json.dumps({"counters": self.counters or {}, "servers": self.servers, **unseen})
        return json.dumps(self.stale or {})

    @classmethod
    def decode(cls, kind: str, service: str, payload: str) -> Change:
        """Read what `encode` wrote."""
        content: Any = json.loads(payload)
        if kind == "pod":
            if not all(isinstance(content[name], int) for name in ("pod", "incarnation", "seq")):
                raise ValueError(payload)
            content["state"] = RoutingState(content["state"])
            content["life"] = Life(content["life"])
            return cls(kind, service, pod=PodRecord(**content))
        if kind == "lost":
            return cls(kind, counters=_counters(content))
        if kind == "beat":
            counters = _counters(content.get("counters", {}))
            unseen = tuple(map(_whole, content.get("unseen", ())))
            return cls(kind, counters=counters, servers=content.get("servers"), unseen=unseen)
        return cls(kind, service, stale={uid: int(epoch) for uid, epoch in content.items()})


BEAT = Change("beat")
"""A router's first: it has just become the only writer."""


def read_entry(fields: Mapping[bytes, bytes]) -> tuple[int, int, Change]:
    """Read an entry: who wrote it, under which number, and what has changed.

    Raises `UnreadableEntryError`.
    """
    try:
        text = {name.decode(): value.decode() for name, value in fields.items()}
        change = Change.decode(text["kind"], text["service"], text["payload"])
        return _whole(int(text["router"])), _whole(int(text["number"])), change
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UnreadableEntryError(f"not a router's: {error!r}") from error


def _counters(told: Mapping[str, int]) -> dict[int, int]:
    return {_whole(int(shard)): _whole(counter) for shard, counter in told.items()}


def _whole(number: int) -> int:
    if not 0 <= number <= _MOST:
        raise ValueError(f"{number} is out of range")
    return number
