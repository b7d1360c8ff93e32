"""The drains of a router: which pods are being drained, and how far that has come."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from dataclasses import replace
from typing import Any

from ray_route.clock import Deadline
from ray_route.errors import RouteError
from ray_route.model import DrainProgress, PodRecord, RoutingState
from ray_route.router.directory import Directory
from ray_route.router.drain import Drain, IsRestarting, StoppedError
from ray_route.router.mailbox import Mailboxes, NoAnswerError
from ray_route.router.membership import Membership
from ray_route.router.moves import Moves
from ray_route.runtime.metrics import DRAINS

logger = logging.getLogger(__name__)


class Drains:
    """The drains of one router. `is_restarting` says of an actor's name if Ray still has it."""

    def __init__(
        self,
        membership: Membership,
        directory: Directory,
        mailboxes: Mailboxes,
        moves: Moves,
        is_restarting: IsRestarting,
    ) -> None:
        self._parts = (membership, directory, mailboxes, moves, is_restarting)
        self._meter = membership.meter
        self._deciding: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._running: dict[tuple[str, int], asyncio.Task[Any]] = {}
        self._progress: dict[tuple[str, int], DrainProgress] = {}

    def start(
        self,
        service: str,
        pod: PodRecord,
        before: RoutingState,
        deadline_s: float,
        *,
        go_on: bool,
    ) -> bool:
        """Begin to drain a pod; False if that is under way, with a deadline of its own.

        `before` is the state that the pod gets back if the drain stops.
        """
        key = (service, pod.pod)
        if key in self._running:
            return False
        self._progress[key] = DrainProgress(pod.pod, left=0, moved=0, running=0)

        def note(progress: DrainProgress) -> None:
            self._progress[key] = progress

        deadline, deciding = Deadline.after(deadline_s), self._deciding[service]
        drain = Drain(*self._parts, deciding, service, pod, before, deadline, go_on, note)
        task = asyncio.get_running_loop().create_task(self._run(key, drain))
        self._running[key] = task
        task.add_done_callback(lambda _: self._running.pop(key, None))
        return True

    def progress(self, service: str, pod: int) -> DrainProgress | None:
        """How far the last drain of a pod has come; None if this router began none."""
        return self._progress.get((service, pod))

    def forget(self, service: str, pod: int) -> None:
        """Forget how a drain ended, of a pod that can't be drained any more."""
        if (service, pod) not in self._running:
            self._progress.pop((service, pod), None)

    async def _run(self, key: tuple[str, int], drain: Drain) -> None:
        try:
            await drain.run()
            self._meter.count(DRAINS, key[0], "done")
        except Exception as error:  # whoever waits for it must hear of it
            is_known = isinstance(error, (StoppedError, NoAnswerError, RouteError))
            facts = {"service": key[0], "pod": key[1]}
            logger.warning(
                "the drain of pod %d of %s stopped: %s",
                *(key[1], key[0], error),
                exc_info=not is_known,
                extra=facts,
            )
            self._progress[key] = replace(
                self._progress[key],
                done=True,
                problem=str(error),
                damaged=tuple(drain.damaged.values()),
                stuck=tuple(drain.stuck.values()),
            )
            self._meter.count(DRAINS, key[0], "stopped")
