"""Saves the states of objects that have been called, now and then, in turns of their uids."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from ray_route.errors import FencedError
from ray_route.pod.instances import Instances
from ray_route.pod.turn_calls import TurnCalls

_AT_ONCE = 16

logger = logging.getLogger(__name__)


class Saver:
    """Has a pod's states saved every so many seconds; at a release `Instances` does.

    Each uid for itself: one whose turn has not come keeps no other. Saves hold their uids' turns;
    so no more than so many run at once, though the store hangs: the other uids' calls go on.
    """

    def __init__(self, calls: TurnCalls, instances: Instances, every_s: float) -> None:
        self._calls = calls
        self._instances = instances
        self._every_s = every_s
        self._later: set[str] = set()
        self._saving: dict[str, asyncio.Task[None]] = {}
        calls.called = set()
        self._free = asyncio.Semaphore(_AT_ONCE)

    async def run(self) -> None:
        """Go on for ever."""
        try:
            while True:
                await asyncio.sleep(self._every_s)
                self._begin()
        finally:
            for saving in self._saving.values():
                saving.cancel()

    def _begin(self) -> None:
        due = self._later | (self._calls.called or set())
        self._later, self._calls.called = due & self._saving.keys(), set()
        for uid in due - self._later:
            self._saving[uid] = saving = asyncio.create_task(self._save(uid))
            saving.add_done_callback(partial(self._saved, uid))

    def _saved(self, uid: str, _: asyncio.Task[None]) -> None:
        del self._saving[uid]

    async def _save(self, uid: str) -> None:
        async with self._free:
            if not any(self._calls.running(uid)):
                await self._save_in_turn(uid)
                return
        await self._save_in_turn(uid)  # who may wait for long takes no place of others

    async def _save_in_turn(self, uid: str) -> None:
        try:
            await self._calls.in_turn(uid, "save", partial(self._instances.save, uid))
        except FencedError:
            self._try_later(uid)
        except (Exception, asyncio.CancelledError):  # the user's own store's, which may pass
            logger.exception("the state of uid %r could not be saved", uid)
            self._try_later(uid)

    def _try_later(self, uid: str) -> None:
        """Try again, unless the uid was released, and saved, meanwhile."""
        if self._instances.has(uid):
            self._later.add(uid)
