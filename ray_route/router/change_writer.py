"""Writes the change stream."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from ray_route.clock import now
from ray_route.errors import RouteError
from ray_route.protocol.changes import Change, Position
from ray_route.store.connect import AsyncStore
from ray_route.store.keys import Keys
from ray_route.store.scripts import Call, script_call

logger = logging.getLogger(__name__)

_ENTRIES_KEPT = 10_000
_RETRY_S = 0.2
# A beat says that all was well just now. One that could not be told by then says nothing.
_FRESH_S = 1.0


class _Beat(NamedTuple):
    """What a comparison has found: a router's counters of all shards, the servers.

    And the shards that could not be compared. Redis was read after `at`.
    """

    at: float
    counters: list[int]
    servers: str
    unseen: tuple[int, ...]


class ChangeWriter:
    """Appends changes in order, again and again until Redis takes them."""

    def __init__(self, store: AsyncStore, keys: Keys) -> None:
        self.router = 0
        self._store = store
        self._keys = keys
        self._number = 0
        self._waiting: list[Change] = []
        self._beat: _Beat | None = None
        self._told: dict[int, int] = {}
        self._servers_told = ""
        self._wake = asyncio.Event()
        self.position = Position("0-0", 0, 0)

    def write(self, change: Change) -> None:
        """Queue a change."""
        self._waiting.append(change)
        self._wake.set()

    def lost(self, counters: Mapping[int, int]) -> None:
        """Queue that Redis has lost writes to some shards, whose counters were so high."""
        self.write(Change("lost", counters=dict(counters)))

    def beat(
        self, at: float, counters: Sequence[int], servers: str, unseen: Collection[int] = ()
    ) -> None:
        """Tell, after what is queued, that all counters have been compared; once, or never.

        All but those of `unseen` shards. Redis was read after `at`: what was lost since then the
        comparison may not have seen.
        """
        self._beat = _Beat(at, list(counters), servers, tuple(sorted(unseen)))
        self._wake.set()

    async def run(self) -> None:
        """Append what is queued, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            sending, self._waiting = self._waiting, []
            for change in sending:
                await self.append(change)
            if self._waiting:
                continue  # what came meanwhile comes before a beat that knows of it
            beat, self._beat = self._beat, None
            if beat is not None and now() - beat.at < _FRESH_S:
                await self._tell(beat)

    async def _tell(self, beat: _Beat) -> None:
        """Append what is new in a beat; if Redis does not take it, the next one tells it."""
        pairs = enumerate(beat.counters)
        changed = {shard: seen for shard, seen in pairs if seen > self._told.get(shard, 0)}
        servers = beat.servers if beat.servers != self._servers_told else None
        self._number += 1
        try:
            added: bytes = await self._store.one(
                self._entry(Change("beat", counters=changed, servers=servers, unseen=beat.unseen))
            )
        except RouteError as error:
            self._number -= 1
            logger.debug("a beat was not told: %s", error)
            return
        self.position = Position(added.decode(), self.router, self._number)
        self._told.update(changed)
        self._servers_told = beat.servers

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
