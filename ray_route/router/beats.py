"""The router's beats: that all counters have just been compared, and what is lost was told.

Clients believe what they keep, and what they read from Redis themselves, for as long as they hear
beats.
"""

from __future__ import annotations

import asyncio
import logging

from ray_route.errors import RouteError
from ray_route.router.change_writer import ChangeWriter
from ray_route.router.recovery import Recovery
from ray_route.router.shards import Shards

logger = logging.getLogger(__name__)


class Beats:
    """Compares all counters once per heartbeat: a loss is noticed by itself, too."""

    def __init__(
        self, heartbeat_s: float, recovery: Recovery, shards: Shards, changes: ChangeWriter
    ) -> None:
        self._heartbeat_s = heartbeat_s
        self._recovery = recovery
        self._shards = shards
        self._changes = changes

    async def run(self) -> None:
        """Compare and tell, for ever; a comparison that fails tells nothing.

        One that finds a loss has told that before: all else is well.
        """
        while True:
            await asyncio.sleep(self._heartbeat_s)
            try:
                found = await self._recovery.compared()
            except RouteError as error:
                logger.debug("counters can't be compared: %s", error)
            else:
                self._changes.beat(
                    found.at, self._shards.counters.seen, found.servers, found.unseen
                )
