"""How a router begins, when it serves, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import ray
from ray.util import list_named_actors

from ray_route.errors import RouteError, RouterUnavailableError
from ray_route.protocol.changes import BEAT
from ray_route.protocol.names import is_pod_of
from ray_route.router.change_writer import ChangeWriter
from ray_route.router.failure_detector import FailureDetector
from ray_route.router.link_table import LinkTable
from ray_route.router.mailbox import Mailboxes
from ray_route.router.membership import Membership
from ray_route.router.recovery import Recovery
from ray_route.router.shards import Shards, SupersededError
from ray_route.runtime.joined_ray import was_restarted
from ray_route.runtime.metrics import ROUTER_STARTS
from ray_route.runtime.unseen import seen

logger = logging.getLogger(__name__)

_OPEN_S = 10.0
_RETRY_S = 0.2
_LEAVE_S = 30.0


class Lifecycle:
    """One router's life, from its claim until a younger one takes over.

    `watches` run for ever, while it serves.
    """

    def __init__(
        self,
        shards: Shards,
        links: LinkTable,
        membership: Membership,
        failures: FailureDetector,
        recovery: Recovery,
        changes: ChangeWriter,
        mailboxes: Mailboxes,
        watches: Sequence[Callable[[], Coroutine[Any, Any, None]]],
    ) -> None:
        self._namespace = links.keys.namespace
        self._shards = shards
        self._links = links
        self._membership = membership
        self._failures = failures
        self._recovery = recovery
        self._changes = changes
        self._mailboxes = mailboxes
        self._watches = watches
        self._logger = logging.LoggerAdapter(logger, {"namespace": self._namespace})
        self._open = asyncio.Event()
        self._problem = "it is starting"
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def incarnation(self) -> int:
        """The router's incarnation once it serves; 0 before."""
        return self._shards.incarnation if self._open.is_set() else 0

    def begin(self) -> None:
        """Begin in the background."""
        loop = asyncio.get_running_loop()
        works = (self._serve(), self._exit_when_superseded())
        self._tasks = [loop.create_task(work) for work in works]

    async def opened(self) -> None:
        """Return once the router serves.

        Raises `RouterUnavailableError` if that takes too long, or if a younger one has taken over.
        """
        try:
            if not self._open.is_set():  # the wait alone takes 35 µs
                await asyncio.wait_for(self._open.wait(), _OPEN_S)
        except asyncio.TimeoutError:
            raise RouterUnavailableError(namespace=self._namespace, reason=self._problem) from None
        if self._links.superseded.is_set():
            raise self._links.taken_over()

    async def _serve(self) -> None:
        try:
            # Start failure detection first: recovery waits for every pod not yet declared dead.
            await asyncio.gather(
                self._failures.watch_heartbeats(),
                self._failures.watch_processes(),
                self._open_and_go_on(),
            )
        except SupersededError:
            self._links.superseded.set()
            self._open.set()
        except Exception:
            # A router that only looks alive is worse than none: Ray starts another.
            self._logger.exception("the router of %s can't go on", self._namespace)
            os._exit(1)

    async def _open_and_go_on(self) -> None:
        await self._claim_and_recover()
        await asyncio.gather(self._changes.run(), *(watch() for watch in self._watches))

    async def _claim_and_recover(self) -> None:
        pods_expected = await asyncio.to_thread(_has_pods, self._namespace)
        while True:
            try:
                await self._recovery.look_for_proof()
                await self._shards.claim()
                await self._membership.refresh_all()
                self._problem = "it waits for its pods to say what they remember"
                await self._recovery.begin(pods_expected=pods_expected)
                self._changes.router = self._shards.incarnation
                await self._changes.append(BEAT)
                break
            except RouteError as error:
                self._problem = str(error)
                self._logger.warning("the router of %s can't start yet: %s", self._namespace, error)
                await asyncio.sleep(_RETRY_S)
        self._logger.info("router %d of %s serves", self._shards.incarnation, self._namespace)
        self._membership.meter.count(ROUTER_STARTS)
        self._open.set()

    async def _exit_when_superseded(self) -> None:
        await self._links.superseded.wait()
        self._logger.warning("a younger router has taken over %s: this one exits", self._namespace)
        self._mailboxes.end_all()  # Ray lets calls end before it ends the actor
        await asyncio.sleep(_RETRY_S)  # let the answers out that say so
        # By way of Ray, so that it does not restart this one against the younger; unless Ray
        # has made the younger under this one's name already, and the call reaches that.
        seen(ray.get_runtime_context().current_actor.leave.remote())
        await asyncio.sleep(_LEAVE_S)
        os._exit(0)


def _has_pods(namespace: str) -> bool:
    """True if there may be pods that Redis knows nothing of any more."""
    if was_restarted():
        return True
    named = list_named_actors(all_namespaces=True)
    return any(is_pod_of(namespace, actor["name"]) for actor in named)
