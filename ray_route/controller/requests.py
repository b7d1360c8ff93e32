"""What callers ask of a controller: each holds the turn for it, until it is done or given up."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from ray_route.clock import Deadline
from ray_route.controller.doing import StoppedError
from ray_route.controller.keeping import Keeping
from ray_route.controller.marks import GivenUp, give_up, is_given_up
from ray_route.controller.turn import Turn
from ray_route.controller.wishes import DeposedError, Wishes
from ray_route.errors import CallCancelledError, ClosedError
from ray_route.runtime.waiting import Check
from ray_route.store.wanted import Wanted


@dataclass(slots=True)
class _Request:
    """What one caller has asked for."""

    given_up: bool = False


class Requests:
    """What one controller is asked for. Thread-safe."""

    def __init__(self, service: str, wishes: Wishes, keeping: Keeping, turn: Turn) -> None:
        self._service = service
        self._wishes = wishes
        self._keeping = keeping
        self._turn = turn
        self._under_way: dict[str, _Request] = {}
        self._given_up = GivenUp(wishes.actor)
        self._graces: list[float] = []
        """How long the pods have by each who has asked this life to end the service."""

    @contextlib.contextmanager
    def turn_for(
        self, request: str, deadline: Deadline, *, after_upgrades: bool = False
    ) -> Iterator[Check]:
        """Hold the turn for what a caller asks, unless it has given up before this came.

        Provides what raises once a caller has given up, or another controller decides.
        """
        key = request or uuid.uuid4().hex
        asked = self._under_way.setdefault(key, _Request())
        check = partial(self._check, asked)

        def wanted() -> Wanted:
            check()
            return self._keeping.wanted()

        taken = self._turn.taken_after_upgrades(deadline, wanted)
        try:
            if request:
                self.check_not_given_up(request, "scale")
            with self.in_charge(), taken if after_upgrades else self._turn.taken(deadline):
                check()
                yield check
        finally:
            self._under_way.pop(key, None)

    def _check(self, asked: _Request) -> None:
        self.check_not_ended()
        if asked.given_up:
            raise CallCancelledError(method="scale", may_have_run=True, service=self._service)
        self._wishes.check()

    @contextlib.contextmanager
    def in_charge(self) -> Iterator[None]:
        """Raise `ClosedError` where another controller has taken over."""
        try:
            yield
        except DeposedError as error:
            raise ClosedError(what=f"this controller of {self._service!r}") from error

    def give_up(self, request: str) -> bool:
        """Have a request that is under way stopped, and undone; False if none is, by that name."""
        if request not in self._under_way:  # it has ended, or has yet to come
            give_up(self._wishes.actor, request)
        asked = self._under_way.get(request)
        if asked is not None:
            asked.given_up = True
        return asked is not None

    @property
    def grace_s(self) -> float | None:
        """How long the pods have, once this life has been asked to end the service; None before.

        That is the shortest grace that was asked for: who asks again may hurry an end, and delays
        none.
        """
        return min(self._graces, default=None)

    def end(self, grace_s: float) -> float:
        """Give up all that is under way, and whatever comes; return how long the pods have."""
        self._graces.append(grace_s)
        for asked in list(self._under_way.values()):
            asked.given_up = True
        return min(self._graces)

    def is_ended(self) -> bool:
        """True once the service's end has begun, in this life or in an earlier one."""
        wanted = self._wishes.wanted
        return self.grace_s is not None or (wanted is not None and wanted.ended)

    def check_not_ended(self) -> None:
        """Raise `ClosedError` once the service's end has begun."""
        if self.is_ended():
            raise ClosedError(what=f"service {self._service!r}", service=self._service)

    def check_not_given_up(self, request: str, method: str) -> None:
        """Raise `CallCancelledError` if who asked for something has given up, in any life."""
        if is_given_up(self._wishes.actor, request):
            raise CallCancelledError(method=method, may_have_run=True, service=self._service)

    def give_way(self, check: Check) -> None:
        """Check, and raise `StoppedError` if somebody has asked for something."""
        check()
        if self._under_way:
            raise StoppedError("somebody asks for something else")

    def forget_given_up(self, wanted: Wanted) -> None:
        """Forget what was given up long ago, but for the upgrade that is under way."""
        self._given_up.forget_old(wanted.upgrade.request if wanted.upgrade else "")
