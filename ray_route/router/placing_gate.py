"""Holds placements back after an outage, until every pod that may have lapsed in it was heard.

A link runs out while nobody can reach Redis; the pod that it led to may have kept the uid's memory
and may serve on. Whoever placed that uid at once would take it away.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

from ray_route.clock import now
from ray_route.config import RouteConfig
from ray_route.errors import RouterUnavailableError
from ray_route.router.membership import Membership

_PATIENCE_S = 20.0


class PlacingGate:
    """Open while the router's looks have followed each other closely. Belongs to one event loop.

    No pod can have lapsed for want of Redis meanwhile. `readmit` brings back what ran out; it is
    to return when each living pod has answered or its life has ended.
    """

    def __init__(self, namespace: str, config: RouteConfig, membership: Membership) -> None:
        self.readmit: Callable[[], Awaitable[None]] = _nothing_to_readmit
        self._namespace = namespace
        self._membership = membership
        # A pod's last renewal may be as old as a heartbeat when the outage begins.
        self._limit_s = 0.9 * config.pod_lease_s - config.heartbeat_s
        self._looked_at = -math.inf
        self._gaps = 0
        self._settled_gaps = 0
        self._running: asyncio.Task[None] | None = None

    async def look(self) -> None:
        """Write the router's look; raise what `Membership.note_look` raises.

        While pods are still to be heard it does not pass for a look: another router that starts
        now must hear them, too.
        """
        at = now()
        gap_s = at - self._looked_at
        is_close = gap_s < self._limit_s
        since_s = await self._membership.note_look(settled=is_close and self._is_settled())
        if math.isinf(gap_s) and since_s is not None:
            is_close = 0 <= since_s < self._limit_s  # the first look follows another router's last
        if not is_close:
            self._gaps += 1
        self._looked_at = at

    def is_open(self) -> bool:
        """True if no pod can have lapsed unheard."""
        return self._is_settled() and now() - self._looked_at < self._limit_s

    def _is_settled(self) -> bool:
        return self._gaps == self._settled_gaps

    async def passed(self) -> None:
        """Return once the gate is open.

        Raises `StoreUnavailableError` at once where Redis is away, and `RouterUnavailableError`
        after 20 s.
        """
        if self.is_open():
            return
        try:
            await asyncio.wait_for(self._open(), _PATIENCE_S)
        except asyncio.TimeoutError:
            raise RouterUnavailableError(
                namespace=self._namespace,
                reason="after an outage it waits to hear from every living pod",
            ) from None

    async def _open(self) -> None:
        while not self.is_open():
            if self._running is None:
                self._running = asyncio.get_running_loop().create_task(self._settle())
                self._running.add_done_callback(self._ended)
            await asyncio.shield(self._running)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running = None
        if not task.cancelled():
            task.exception()  # whoever waits has it; nobody may wait any more

    async def _settle(self) -> None:
        await self.look()
        gaps = self._gaps
        if not self._is_settled():
            await self.readmit()
        self._settled_gaps = gaps


async def _nothing_to_readmit() -> None:
    """Ask nobody."""
