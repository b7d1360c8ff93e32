"""Writes the change stream."""

from __future__ import annotations

import asyncio
import logging

from ray_route.errors import RouteError
from ray_route.protocol.changes import Change, Position
from ray_route.store.connect import AsyncStore
from ray_route.store.keys import Keys
from ray_route.store.scripts import Call, script_call

logger = logging.getLogger(__name__)

_ENTRIES_KEPT = 10_000
_RETRY_S = 0.2


class ChangeWriter:
    """Appends changes in order, again and again until Redis takes them."""

    def __init__(self, store: AsyncStore, keys: Keys) -> None:
        self.router = 0
        self._store = store
        self._keys = keys
        self._number = 0
        self._waiting: list[Change] = []
        self._wake = asyncio.Event()
        self.position = Position("0-0", 0, 0)

    def write(self, change: Change) -> None:
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
        return script_call("append", [self._keys.log], [_ENTRIES_KEPT, *flat])

    async def _append(self, entry: Call) -> str:
        while True:
            try:
                added: bytes = await self._store.one(entry)
                return added.decode()
            except RouteError as error:
                logger.warning("the change stream waits for Redis: %s", error)
                await asyncio.sleep(_RETRY_S)
