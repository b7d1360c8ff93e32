"""Entries of the change stream, and positions in it.

Every entry carries the writing router's incarnation and a number that grows by one, so that a
reader knows when it has missed something.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ray_route.model import Life, PodRecord, RoutingState

# No incarnation or number is greater: they are counted up exactly.
_MOST = 2**53


class UnreadableEntryError(ValueError):
    """An entry that no router has written."""


@dataclass(frozen=True, slots=True)
class Position:
    """A position in the stream: the last entry's id, and who wrote it under which number."""

    entry: str
    router: int
    number: int


@dataclass(frozen=True, slots=True)
class Change:
    """One entry.

    `kind` is "pod" (a record changed), "link" (links up to an epoch are stale) or "beat".
    """

    kind: str
    service: str = ""
    pod: PodRecord | None = None
    stale: dict[str, int] | None = None

    def encode(self) -> str:
        """Write the payload as JSON."""
        if self.pod is not None:
            return json.dumps(asdict(self.pod))
        return json.dumps(self.stale or {})

    @classmethod
    def decode(cls, kind: str, service: str, payload: str) -> Change:
        """Read what `encode` wrote."""
        content: dict[str, Any] = json.loads(payload)
        if kind == "pod":
            if not all(isinstance(content[name], int) for name in ("pod", "incarnation", "seq")):
                raise ValueError(payload)
            content["state"] = RoutingState(content["state"])
            content["life"] = Life(content["life"])
            return cls(kind, service, pod=PodRecord(**content))
        return cls(kind, service, stale={uid: int(epoch) for uid, epoch in content.items()})


BEAT = Change("beat")
"""Nothing has changed: the router is there, and so is the stream."""


def read_entry(fields: Mapping[bytes, bytes]) -> tuple[int, int, Change]:
    """Read an entry: who wrote it, under which number, and what has changed.

    Raises `UnreadableEntryError`.
    """
    try:
        text = {name.decode(): value.decode() for name, value in fields.items()}
        change = Change.decode(text["kind"], text["service"], text["payload"])
        return _number(text["router"]), _number(text["number"]), change
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UnreadableEntryError(f"not a router's: {error!r}") from error


def _number(text: str) -> int:
    number = int(text)
    if not 0 <= number <= _MOST:
        raise ValueError(f"{text} is out of range")
    return number
