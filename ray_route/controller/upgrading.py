"""Brings a service to its next generation, or back: pods beside pods, then each uid moves once.

There is one way for both, and for whoever takes it up after a death: what is wanted is made, all
others are closed to new uids and, one after the other, drained and ended. Uids can go to READY pods
alone, and only those of the wanted generation are. So none moves twice.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from ray_route.clock import Deadline, backoff_s, now
from ray_route.controller.doing import Steps
from ray_route.controller.figures import Figures
from ray_route.controller.generations import completed, turned_back, upgraded
from ray_route.controller.upkeep import Upkeep
from ray_route.controller.wishes import Wishes
from ray_route.errors import PodUnavailableError, RouteError, RouteTimeoutError, UpgradeError
from ray_route.model import DrainProgress, RoutingState, UpgradeProgress
from ray_route.runtime.waiting import Check
from ray_route.store.wanted import Upgrade, Wanted

logger = logging.getLogger(__name__)

_CLIENT_S = 30.0
_MAX_BACKOFF_S = 30.0
_DIED = "its controller has died since"


class Upgrading:
    """The upgrades of one service; who calls holds its controller's turn, but to see progress."""

    def __init__(self, upkeep: Upkeep, wishes: Wishes, figures: Figures) -> None:
        self._figures = figures
        self._upkeep = upkeep
        self._wishes = wishes
        self._drained: dict[int, DrainProgress] = {}
        self._why: dict[str, RouteError] = {}
        """What stopped an upgrade, by its request."""
        self._stuck: RouteError | None = None
        """What stops the way back."""
        self._tries, self._again_at = 0, 0.0
        """How often the way back has failed in a row, and when it is tried again."""
        self._ended: dict[str, UpgradeProgress] = {}
        """How far upgrades have come that have ended."""

    def knows(self, request: str) -> bool:
        """True if an upgrade has been begun by that request."""
        wanted = self._wishes.wanted
        if wanted is None:
            return False
        under_way = wanted.upgrade is not None and wanted.upgrade.request == request
        return under_way or not {request, _undone(request)}.isdisjoint(wanted.ended_upgrades)

    @property
    def is_under_way(self) -> bool:
        """True while no other upgrade may begin; one that is stuck on its way back lets it."""
        wanted = self._wishes.wanted
        return wanted is not None and wanted.upgrade is not None and self._stuck is None

    def told(self) -> str:
        """Say which upgrade is under way, and which way it goes; empty if none is."""
        wanted = self._wishes.wanted
        if wanted is None or wanted.upgrade is None:
            return ""
        way = "on its way back to" if wanted.upgrade.back else "to"
        stuck = f", which is tried again, and stops: {self._stuck}" if self._stuck else ""
        what = f"the upgrade of service {self._upkeep.service!r}"
        return f"{what} {way} generation {wanted.generation}{stuck}"

    def begin(self, recipe: str, how: Upgrade) -> None:
        """Want the generation of that recipe; an upgrade that is stuck is given up for it."""
        wanted = self._wishes.wanted
        assert wanted is not None
        self._upkeep.recipes.of(recipe)
        if wanted.upgrade is not None:
            self._ended[wanted.upgrade.request] = self._under_way(wanted, wanted.upgrade)
        self._wishes.change(upgraded(wanted, self._upkeep.others(()), recipe, how))
        if wanted.upgrade is not None:  # its pods are left, too, and none of them is made again
            self._upkeep.recipes.end(wanted.upgrade.recipe)
        self._drained, self._stuck, self._tries, self._again_at = {}, None, 0, 0.0

    @property
    def is_due(self) -> bool:
        """True unless the way back has just failed: that is tried again later."""
        return now() >= self._again_at

    def steps(self, check: Check, in_drains: Check | None = None) -> Steps:
        """Bring the service to the generation that is wanted; drains have a check of their own."""
        wanted = self._wishes.wanted
        assert wanted is not None
        assert wanted.upgrade is not None
        with self._upkeep.client(Deadline.after(_CLIENT_S)):  # held open, for all that follows
            yield from self._take_back(wanted, wanted.upgrade)
            while not self._is_there(wanted):
                yield from self._make(wanted, wanted.upgrade, check)
                others = self._upkeep.others(wanted.indexes)
                yield from self._upkeep.close(others)
                yield from self._take_back(wanted, wanted.upgrade)
                yield from self._leave_one(others, wanted.upgrade, in_drains or check)
        yield f"want generation {wanted.generation} alone"
        self._stuck = None
        ended = replace(self._under_way(wanted, wanted.upgrade), done=True)
        self._ended[wanted.upgrade.request] = ended
        self._wishes.change(completed(wanted), certain=True)
        self._figures.upgrade_ended(is_undone=wanted.upgrade.back)
        self._upkeep.recipes.end(wanted.upgrade.recipe)

    def _is_there(self, wanted: Wanted) -> bool:
        alive = self._upkeep.alive().items()
        serving = {index for index, pod in alive if pod.state is not RoutingState.SHUTDOWN}
        return not self._upkeep.others(wanted.indexes) and serving >= set(wanted.indexes)

    def _take_back(self, wanted: Wanted, upgrade: Upgrade) -> Steps:
        """On the way back: have the pods that were being left take users again.

        The router drains a pod to its end also when nobody waits for that any more.
        """
        if upgrade.back:
            yield from self._upkeep.stop_drains(wanted.indexes)
            yield from self._upkeep.reopen(set(wanted.indexes) - wanted.cordons)

    def _make(self, wanted: Wanted, upgrade: Upgrade, check: Check) -> Steps:
        """Make as many of the wanted pods as there is room for, one at least."""
        named = self._upkeep.named()
        there = [index for index in wanted.indexes if index in named]
        absent = [index for index in wanted.indexes if index not in named]
        room = wanted.replicas + upgrade.surge - len(named)
        some = [*there, *absent[: max(room, 0 if there else 1)]]
        deadline = Deadline.after(upgrade.start_s)
        yield from self._upkeep.grow(some, wanted.recipe, {}, deadline, check)

    def _leave_one(self, others: list[int], upgrade: Upgrade, check: Check) -> Steps:
        """Drain and end the lowest of the others; on the way back, the lowest that can be."""
        errors: list[RouteError] = []
        for index in others if upgrade.back else others[:1]:
            try:
                yield from self._leave(index, upgrade, check)
            except (PodUnavailableError, RouteTimeoutError) as error:
                errors.append(error)
            else:
                return
        if errors:
            raise errors[0]

    def _leave(self, index: int, upgrade: Upgrade, check: Check) -> Steps:
        def note(progress: DrainProgress) -> None:
            self._drained[index] = progress

        yield from self._upkeep.end(index, upgrade.drain_s, check, note)

    def stopped(self, error: RouteError) -> None:
        """Turn back, to the pods that there were; raise what stops that, too."""
        wanted = self._wishes.wanted
        if wanted is None or wanted.upgrade is None:
            raise error
        if wanted.upgrade.back:
            self._stuck, self._again_at = error, now() + backoff_s(self._tries, 1.0, _MAX_BACKOFF_S)
            self._tries += 1
            raise error
        told = ("the upgrade of %s stops, and is undone: %s", self._upkeep.service, error)
        self._figures.log(logger, logging.ERROR, *told)
        self._why[wanted.upgrade.request] = error
        self._wishes.change(turned_back(wanted), certain=True)

    def unforeseen(self, error: Exception) -> UpgradeError:
        """Say that the upgrade met what is no error of ours."""
        wanted = self._wishes.wanted
        assert wanted is not None
        return UpgradeError(
            reason=repr(error),
            undone=wanted.upgrade is None or not wanted.upgrade.back,
            left=tuple(sorted(self._upkeep.named().keys() - set(wanted.indexes))),
            service=self._upkeep.service,
        )

    def progress(self, request: str) -> UpgradeProgress | None:
        """Say how far the upgrade of a request has come; None if none is known."""
        wanted = self._wishes.wanted
        if wanted is None or not self.knows(request):
            return None
        if wanted.upgrade is not None and wanted.upgrade.request == request:
            return self._under_way(wanted, wanted.upgrade)
        return self._ended.get(request) or self._ended_before(request, wanted)

    def _under_way(self, wanted: Wanted, upgrade: Upgrade) -> UpgradeProgress:
        named = self._upkeep.named().keys()  # of Ray alone: told while the store is away, too
        return UpgradeProgress(
            generation=wanted.generation,
            pods=tuple(sorted(named & set(wanted.indexes))),
            left=tuple(sorted(named - set(wanted.indexes))),
            moved=sum(it.moved for it in list(self._drained.values())),
            running=sum(it.running for it in list(self._drained.values()) if not it.done),
            back=upgrade.back,
            done=self._stuck is not None,
            problem=self._problem(upgrade.request) if upgrade.back else None,
            error=self._why.get(upgrade.request),
        )

    def _ended_before(self, request: str, wanted: Wanted) -> UpgradeProgress:
        """Say what is known of an upgrade that has ended in an earlier life of the controller."""
        is_undone = _undone(request) in wanted.ended_upgrades
        pods = tuple(sorted(self._upkeep.named().keys() & set(wanted.indexes)))
        problem = _DIED if is_undone else None
        return UpgradeProgress(wanted.generation, pods, (), 0, 0, is_undone, True, problem)

    def _problem(self, request: str) -> str:
        why = self._why.get(request, _DIED)
        stuck = f"; the way back is tried again, and stops: {self._stuck}" if self._stuck else ""
        return f"{why}{stuck}"

    def generations(self, named: Any) -> dict[int, int]:
        """Return the generation of each of these pods."""
        wanted = self._wishes.wanted
        if wanted is None:
            return {}
        other = wanted.upgrade.number if wanted.upgrade else wanted.generation
        return {pod: wanted.generation if pod in wanted.indexes else other for pod in sorted(named)}


def _undone(request: str) -> str:
    return f"{request} undone"
