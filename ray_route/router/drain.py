"""Draining a pod: no new uids, then uid by uid to others, then nothing any more.

Each uid moves on its own clock: idle ones at once, busy ones as soon as their calls have ended.
Until then they are served; only towards the drain's deadline are new calls of those that were
never idle refused.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

from ray_route.clock import Deadline
from ray_route.errors import (
    DamagedKeyError,
    NoAvailablePodError,
    StateNotMovedError,
    StoreUnavailableError,
)
from ray_route.model import DrainProgress, RoutingState
from ray_route.protocol.commands import Close, Show, Shown
from ray_route.router.directory import Directory
from ray_route.router.drained_pod import RETRY_S, DrainedPod
from ray_route.router.hand_over import Damages, Step
from ray_route.router.mailbox import NoAnswerError
from ray_route.router.moves import Moves
from ray_route.runtime.cancelling import ended

_UIDS_PER_RELEASE = 1_000
# Before its deadline, for so long (a third of it, if that is less), a drain refuses calls of uids
# that were never idle; past it, one that goes on does so for a second in every five.
_CLOSING_S = 5.0
_GO_ON_OPEN_S = 4.0
_GO_ON_CLOSED_S = 1.0
_PAUSE_S = 0.1
# An earlier deadline by less is the same one, told again.
_SLACK_S = 0.5
_NAMED = 10

Note = Callable[[DrainProgress], None]


class StoppedError(Exception):
    """A drain ended before its pod was empty."""


class _NoTargetError(Exception):
    """The last pod that could take uids has gone."""


@dataclass
class Drain:
    """One pod's drain. What `moved` and the rest say is noted as it goes.

    Nothing is taken from the pod before there is another that takes its uids, and what stops the
    drain gives the pod back as it was found.
    """

    pod: DrainedPod
    directory: Directory
    moves: Moves
    deciding: asyncio.Lock
    deadline: Deadline
    go_on: bool
    note: Note
    moved: int = 0
    running: int = 0
    damaged: Damages = field(default_factory=dict)
    """The uids that can't move, since who owns them can't be read or written."""
    stuck: dict[str, StateNotMovedError] = field(default_factory=dict)
    """The uids whose states no other pod can have."""
    notice: str = ""
    """What a later drain has changed."""
    left: int = 0
    closes: bool = False
    ends: bool = False
    """True once it may have been written that the pod is shut down."""

    async def run(self) -> None:
        """Drain the pod; raise `StoppedError` at the deadline if not told to go on."""
        try:
            await self._in_time(self._work())
        except Exception:  # whatever stops it: the pod is given back
            await self.pod.give_back()
            raise
        self._note(
            DrainProgress(self.pod.record.pod, left=0, moved=self.moved, running=0, done=True)
        )

    def take_over(self, deadline: Deadline, *, go_on: bool) -> None:
        """Go by another deadline from now on: that of a later drain of the same pod."""
        was = "none" if self.go_on else f"one in {self.deadline.remaining():.3g} s"
        self.notice = f"a later drain has set a deadline of {deadline.timeout_s:g} s; it was {was}"
        self.deadline, self.go_on = deadline, go_on

    def hasten(self, deadline: Deadline) -> None:
        """Go by another deadline if that is the earlier one."""
        if deadline.remaining() < self.deadline.remaining() - _SLACK_S:
            self.take_over(deadline, go_on=self.go_on)

    def _note(self, progress: DrainProgress) -> None:
        self.left = progress.left
        self.note(replace(progress, notice=self.notice))

    async def _in_time(self, work: Coroutine[Any, Any, None]) -> None:
        """End some work at the deadline, whatever it waits for; the deadline may change meanwhile.

        Hooks that run, and states under way, go on to their end, and are settled then.
        """
        task = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait({task}, timeout=_PAUSE_S))[0]:
                if not self.ends:
                    self._check(self.left)
            await task
        finally:
            await ended([task])

    async def _work(self) -> None:
        await self._begin()
        await self.directory.quiet(self.pod.service)
        await self.moves.quiet(self.pod.service, self.pod.record.pod)
        await self._empty(await self._show())
        await self._finish()

    async def _begin(self) -> None:
        """Have the pod take no new uids, once there is another for those that it has."""
        while not await self._decide():
            shown = await self._show()
            if not (shown.held or shown.undecided):  # nothing to move, so nobody is needed
                await self.pod.deny_new()
                return
            await self._wait_for_target()

    async def _decide(self) -> bool:
        """Take the pod out of the service if another is left; say whether.

        Drains of one service decide one after the other: of the last two pods one stays.
        """
        async with self.deciding:
            await self.pod.membership.refresh(self.pod.service)
            if not self.pod.has_others():
                return False
            await self.pod.deny_new()
            return True

    async def _wait_for_target(self) -> None:
        """Wait a moment for a pod that can take uids; raise `StoppedError` if none is to come."""
        if not await self.pod.waits_for_others():
            raise StoppedError("no other pod is READY; the pod serves what it has, as before")
        if self.deadline.remaining() == 0 and not self.go_on:
            raise StoppedError(
                f"no other pod was READY within {self.deadline.timeout_s:g} s, though one is "
                "being restarted; the pod serves what it has, as before"
            )
        await asyncio.sleep(_PAUSE_S)
        await self.pod.membership.refresh(self.pod.service)

    async def _empty(self, shown: Shown) -> None:
        """Move all that can be moved, and wait for states whose uids are nobody's just now.

        Somebody moves those, or they are settled soon; with the pod they would be lost.
        """
        while (holdings := await self._movable(shown.held)) or shown.undecided:
            if holdings:
                await self._move(holdings)
            else:
                self._check(shown.undecided)
                await asyncio.sleep(_PAUSE_S)
            shown = await self._show()
        self._check_kept()

    async def _finish(self) -> None:
        """Close the pod, move what slipped in meanwhile, and write that it is shut down."""
        try:
            await self._empty(await self.pod.ask(Close()))
        except BaseException:
            # Refused by a closed pod and moved by nobody: better served where they are.
            self.pod.open()
            raise
        await self._shut_down()

    async def _shut_down(self) -> None:
        """Write that an empty pod is shut down.

        A write without an answer may still be carried out: then to go on is right, whatever
        became of it, and to give the pod back could bring a life back that has ended.
        """
        self.ends = True
        while True:
            try:
                await self.pod.set_state(RoutingState.SHUTDOWN)
            except StoreUnavailableError as error:
                if self.deadline.remaining() == 0 and not self.go_on:
                    problem = f"the pod is empty and closed, but that can't be written: {error}"
                    self._note(
                        DrainProgress(
                            self.pod.record.pod, 0, self.moved, 0, done=True, problem=problem
                        )
                    )
                await asyncio.sleep(RETRY_S)
            else:
                return

    def _check(self, left: int) -> None:
        if self.deadline.remaining() == 0 and not self.go_on:
            raise StoppedError(
                f"{left} uids were left after {self.deadline.timeout_s:g} s; "
                "the pod serves those and is given back as it was"
            )

    async def _movable(self, holdings: dict[str, int]) -> dict[str, int]:
        """Return what can be moved: looked at before anything is taken from a uid."""
        damaged = await self.moves.damaged(self.pod.service, holdings)
        kept = {uid: error for uid, error in self.damaged.items() if uid not in holdings}
        self.damaged = {**kept, **damaged}
        stays = damaged.keys() | self.stuck.keys()
        return {uid: epoch for uid, epoch in holdings.items() if uid not in stays}

    def _check_kept(self) -> None:
        """Raise `StoppedError`, when all others have moved, if some uids can't be moved."""
        if self.stuck:
            uids = ", ".join(map(repr, islice(self.stuck, _NAMED)))
            first = next(iter(self.stuck.values()))
            raise StoppedError(
                f"the states of {len(self.stuck)} uids can't be moved, {uids} among them: "
                f"{first.reason}; the pod keeps those and is given back as it was"
            )
        if self.damaged:
            keys = ", ".join(error.key for error in islice(self.damaged.values(), _NAMED))
            raise StoppedError(
                f"the links of {len(self.damaged)} uids are damaged, {keys} among them: "
                f"{DamagedKeyError.hint}; the pod keeps those and is given back as it was"
            )

    async def _move(self, holdings: dict[str, int]) -> None:
        """Move what can be moved in this phase of the drain, all uids side by side."""
        self._check(len(holdings))
        while not self.pod.has_others():  # before anything is taken
            await self._wait_for_target()
        moved, links = self.moved, iter(self.pod.links(holdings).items())
        lefts: dict[int, int] = {}
        patience_s, closes = self._phase()
        releases: list[Coroutine[Any, Any, list[str]]] = []
        while some := dict(islice(links, _UIDS_PER_RELEASE)):
            note = partial(self._note_moved, lefts, len(releases))
            lefts[len(releases)] = len(some)
            releases.append(
                self.moves.hand_over(self.pod.service, some, patience_s, closes=closes, note=note)
            )
        # Without a target: looked for again before the next release.
        with contextlib.suppress(_NoTargetError, NoAvailablePodError):
            await _all_of(releases)
        if self.moved == moved:
            await asyncio.sleep(_PAUSE_S)

    def _phase(self) -> tuple[float, bool]:
        """Return for how long to wait for busy uids, and whether to refuse their calls meanwhile.

        A uid whose calls overlap for ever would never be idle.
        """
        left = self.deadline.remaining()
        closing_s = min(_CLOSING_S, self.deadline.timeout_s / 3)
        if left > closing_s:
            return left - closing_s, False
        if left > 0:
            return left, True
        self.closes = not self.closes
        return (_GO_ON_CLOSED_S, True) if self.closes else (_GO_ON_OPEN_S, False)

    def _note_moved(self, lefts: dict[int, int], release: int, step: Step) -> None:
        self.moved += step.moved
        self.damaged.update(step.damaged)
        self.stuck.update(step.stuck)
        left = lefts[release] = step.left
        total = sum(lefts.values())
        self._note(DrainProgress(self.pod.record.pod, total, self.moved, self.running))
        self._check(total)
        if left and not self.pod.has_others():
            raise _NoTargetError

    async def _show(self) -> Shown:
        """Return what the pod has; a slow answer is asked for again, until the deadline."""
        while True:
            try:
                shown = await self.pod.ask(Show())
            except NoAnswerError:
                if self.pod.is_dead() or (self.deadline.remaining() == 0 and not self.go_on):
                    raise
                continue
            self.running, left = shown.running, len(shown.held) + shown.undecided
            self._note(DrainProgress(self.pod.record.pod, left, self.moved, self.running))
            return shown


async def _all_of(works: Sequence[Coroutine[Any, Any, Any]]) -> None:
    """Do all at once; if one fails, end the others before its error is raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        await ended(tasks)
