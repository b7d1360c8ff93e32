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
from ray_route.router.drain import Drain, StoppedError
from ray_route.router.drained_pod import DrainedPod, IsRestarting
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
        self._of_pod = (membership, mailboxes, is_restarting)
        self._parts = (directory, moves)
        self._meter = membership.meter
        self._deciding: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._tasks: dict[tuple[str, int], asyncio.Task[Any]] = {}
        self._running: dict[tuple[str, int], Drain] = {}
        self._progress: dict[tuple[str, int], DrainProgress] = {}

    def start(
        self,
        service: str,
        pod: PodRecord,
        before: RoutingState,
        deadline_s: float,
        *,
        go_on: bool,
        only_sooner: bool = False,
    ) -> RoutingState:
        """Begin to drain a pod, or have the drain that is under way go by this deadline.

        `only_sooner`: by this one if it is the earlier. `before` is the state that the pod gets
        back if the drain stops; returns what holds of the drain under way.
        """
        key, deadline = (service, pod.pod), Deadline.after(deadline_s)
        running = self._running.get(key)
        if running is None:
            self._begin(key, pod, before, deadline, go_on=go_on)
            return before
        if only_sooner:
            running.hasten(deadline)
        else:
            running.take_over(deadline, go_on=go_on)
        self._progress[key] = replace(self._progress[key], notice=running.notice)
        return running.pod.before

    def _begin(
        self,
        key: tuple[str, int],
        pod: PodRecord,
        before: RoutingState,
        deadline: Deadline,
        *,
        go_on: bool,
    ) -> None:
        def note(progress: DrainProgress) -> None:
            self._progress[key] = progress

        note(DrainProgress(pod.pod, left=0, moved=0, running=0))
        drained = DrainedPod(*self._of_pod, key[0], pod, before)
        drain = Drain(drained, *self._parts, self._deciding[key[0]], deadline, go_on, note)
        self._running[key] = drain
        task = self._tasks[key] = asyncio.get_running_loop().create_task(self._run(key, drain))
        task.add_done_callback(lambda _: (self._tasks.pop(key), self._running.pop(key)))

    def is_running(self, service: str, pod: int) -> bool:
        """True while a pod is being drained."""
        return (service, pod) in self._running

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
                notice=drain.notice,
                damaged=tuple(drain.damaged.values()),
                stuck=tuple(drain.stuck.values()),
            )
            self._meter.count(DRAINS, key[0], "stopped")
