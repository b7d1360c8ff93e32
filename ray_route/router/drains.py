"""Draining a pod: no new uids, then uid by uid to others, then nothing any more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ray_route.clock import Deadline
from ray_route.errors import PodUnavailableError
from ray_route.model import DrainProgress, Link, PodRecord, RoutingState
from ray_route.protocol.commands import Address, Close, Command, Open, Show
from ray_route.router.directory import Directory
from ray_route.router.mailbox import Mailboxes, NoAnswerError
from ray_route.router.membership import Membership
from ray_route.router.moves import Moves
from ray_route.runtime.metrics import DRAINS

logger = logging.getLogger(__name__)

_UIDS_PER_RELEASE = 200
_ANSWER_S = 5.0
_RELEASE_S = 10.0
_PAUSE_S = 0.1

Note = Callable[[DrainProgress], None]


class StoppedError(Exception):
    """A drain ended before its pod was empty."""


@dataclass
class _Drain:
    """One pod's drain. What `moved` and the rest say is noted as it goes."""

    membership: Membership
    directory: Directory
    mailboxes: Mailboxes
    moves: Moves
    service: str
    pod: PodRecord
    deadline: Deadline
    go_on: bool
    note: Note
    moved: int = 0

    async def run(self) -> None:
        """Drain the pod; raise `StoppedError` at the deadline if not told to go on."""
        await self.directory.quiet(self.service)
        while holdings := await self._show():
            self._check(len(holdings))
            await self._move_some(holdings)
        try:
            await self._finish()
        except BaseException:
            # Refused by a closed pod and moved by nobody: better served where they are.
            self.mailboxes.post(self._address, Open())
            raise
        self.note(DrainProgress(self.pod.pod, left=0, moved=self.moved, running=0, done=True))

    async def _finish(self) -> None:
        """Close the pod, move what slipped in meanwhile, and write that it is shut down."""
        holdings, _ = await self._ask(Close())
        while holdings:
            self._check(len(holdings))
            await self._move_some(holdings)
            holdings = await self._show()
        await self.membership.set_state(self.service, self.pod, RoutingState.SHUTDOWN)

    def _check(self, left: int) -> None:
        if self.deadline.remaining() == 0 and not self.go_on:
            raise StoppedError(
                f"{left} uids were left after {self.deadline.timeout_s:g} s; "
                "the pod serves those and takes no new ones"
            )

    async def _move_some(self, holdings: dict[str, int]) -> None:
        some = list(holdings.items())[:_UIDS_PER_RELEASE]
        pod, incarnation = self.pod.pod, self.pod.incarnation
        links = {
            uid: Link(pod, incarnation, epoch, persistent=False, lease_s=0) for uid, epoch in some
        }
        try:
            self.moved += await self.moves.hand_over(self.service, links, _RELEASE_S)
        except PodUnavailableError as error:
            logger.info("a drain waits for calls to end: %s", error)
            await asyncio.sleep(_PAUSE_S)

    @property
    def _address(self) -> Address:
        return self.service, self.pod.pod, self.pod.incarnation

    async def _show(self) -> dict[str, int]:
        """Return what the pod holds; a slow answer is asked for again, until the deadline."""
        while True:
            try:
                holdings, running = await self._ask(Show())
            except NoAnswerError:
                dead = self.membership.table.is_dead(self.service, self._any_link)
                if dead or (self.deadline.remaining() == 0 and not self.go_on):
                    raise
                continue
            self.note(DrainProgress(self.pod.pod, len(holdings), self.moved, running))
            return holdings

    @property
    def _any_link(self) -> Link:
        return Link(self.pod.pod, self.pod.incarnation, 0, persistent=False, lease_s=0)

    async def _ask(self, command: Command) -> tuple[dict[str, int], int]:
        answer: tuple[dict[str, int], int] = await self.mailboxes.ask(
            self._address, command, _ANSWER_S
        )
        return answer


class Drains:
    """The drains of one router; those of one service run one after the other."""

    def __init__(
        self, membership: Membership, directory: Directory, mailboxes: Mailboxes, moves: Moves
    ) -> None:
        self._parts = (membership, directory, mailboxes, moves)
        self._one_at_a_time: dict[str, asyncio.Lock] = {}
        self._running: dict[tuple[str, int], asyncio.Task[Any]] = {}
        self._progress: dict[tuple[str, int], DrainProgress] = {}

    def start(self, service: str, pod: PodRecord, deadline_s: float, *, go_on: bool) -> None:
        """Begin to drain a pod, unless that is under way."""
        key = (service, pod.pod)
        if key in self._running:
            return
        self._progress[key] = DrainProgress(pod.pod, left=0, moved=0, running=0)

        def note(progress: DrainProgress) -> None:
            self._progress[key] = progress

        deadline = Deadline.after(deadline_s)
        drain = _Drain(*self._parts, service, pod, deadline, go_on, note)
        task = asyncio.get_running_loop().create_task(self._run(key, drain))
        self._running[key] = task
        task.add_done_callback(lambda _: self._running.pop(key, None))

    def progress(self, service: str, pod: int) -> DrainProgress | None:
        """How far the last drain of a pod has come; None if this router began none."""
        return self._progress.get((service, pod))

    async def _run(self, key: tuple[str, int], drain: _Drain) -> None:
        try:
            # Before its turn comes: a drain under way must not move uids here.
            await drain.membership.set_state(key[0], drain.pod, RoutingState.DENY_NEW)
            async with self._one_at_a_time.setdefault(key[0], asyncio.Lock()):
                await drain.run()
            drain.membership.meter.count(DRAINS, key[0], "done")
        except Exception as error:  # noqa: BLE001 - whoever waits for it must hear of it
            facts = {"service": key[0], "pod": key[1]}
            logger.warning("the drain of pod %(pod)d of %(service)s stopped", facts, extra=facts)
            self._progress[key] = replace(self._progress[key], done=True, problem=str(error))
            drain.membership.meter.count(DRAINS, key[0], "stopped")
