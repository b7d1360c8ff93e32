"""Telling a replica's agent which sessions are routed to it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from ray_route.model import Link

logger = logging.getLogger(__name__)

Send = Callable[[dict[str, Link]], Coroutine[Any, Any, None]]


class UseReports:
    """Sessions that one replica's agent has yet to be told of. Belongs to one event loop.

    New ones are told at once, together while a message is under way: they are the replica's
    load. That a known one is in use keeps its link alive, and is told `delay_s` later.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._waiting: dict[str, Link] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._sending: asyncio.Task[None] | None = None

    def add(self, uid: str, link: Link, delay_s: float) -> None:
        """Have a session told after so many seconds; 0: at once."""
        self._waiting[uid] = link
        if delay_s == 0:
            self._flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._flush)

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._sending is None:
            self._sending = asyncio.get_running_loop().create_task(self._empty())

    async def _empty(self) -> None:
        try:
            while self._waiting:
                links, self._waiting = self._waiting, {}
                await self._send(links)
        except Exception as error:  # noqa: BLE001 - a replica that has gone need not be told
            logger.debug("a replica could not be told of its sessions: %r", error)
        finally:
            self._sending = None
