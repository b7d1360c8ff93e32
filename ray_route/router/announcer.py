"""The change stream, as the router writes it and as everybody reads it.

Every entry carries the writing router's incarnation and a number that grows by one, so that a
reader knows when it has missed something.
"""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import asdict, dataclass
from typing import Any

from ray_route.errors import RouteError
from ray_route.model import Life, PodRecord, RoutingState
from ray_route.store.connect import AsyncStore
from ray_route.store.keys import Keys
from ray_route.store.scripts import Call, command

logger = logging.getLogger(__name__)

_ENTRIES_KEPT = 10_000
_RETRY_S = 0.2


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the stream: the last entry's id, and who wrote it under which number."""

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
            content["state"] = RoutingState(content["state"])
            content["life"] = Life(content["life"])
            return cls(kind, service, pod=PodRecord(**content))
        return cls(kind, service, stale=content)


BEAT = Change("beat")


class Announcer:
    """Appends changes in order, again and again until Redis takes them."""

    def __init__(self, store: AsyncStore, keys: Keys) -> None:
        self.router = 0
        self._store = store
        self._keys = keys
        self._number = 0
        self._waiting: list[Change] = []
        self._wake = asyncio.Event()
        self.position = Position("0-0", 0, 0)

    def announce(self, change: Change) -> None:
        """Queue a change."""
        self._waiting.append(change)
        self._wake.set()

    async def run(self) -> None:
        """Append what is queued, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            sending, self._waiting = self._waiting, []
            for change in sending:
                await self.append(change)

    async def append(self, change: Change) -> None:
        """Append one change and move on to its position."""
        self._number += 1
        entry = await self._append(self._entry(change))
        self.position = Position(entry, self.router, self._number)

    def _entry(self, change: Change) -> Call:
        fields = {
            "router": self.router,
            "number": self._number,
            "kind": change.kind,
            "service": change.service,
            "payload": change.encode(),
        }
        flat = [part for pair in fields.items() for part in pair]
        return command("XADD", self._keys.log, "MAXLEN", "~", _ENTRIES_KEPT, "*", *flat)

    async def _append(self, entry: Call) -> str:
        while True:
            try:
                added: bytes = await self._store.one(entry)
                return added.decode()
            except RouteError as error:
                logger.warning("the change stream waits for Redis: %s", error)
                await asyncio.sleep(_RETRY_S)
