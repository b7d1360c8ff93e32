"""Scales a service as somebody asks: what can't be done to its end is undone."""

from __future__ import annotations

import contextlib

from ray_route.clock import Deadline
from ray_route.controller.doing import Doing
from ray_route.controller.healing import Healing
from ray_route.controller.marks import first_found
from ray_route.controller.upkeep import Upkeep
from ray_route.controller.wishes import Wishes
from ray_route.errors import RouteError
from ray_route.pod.stopping import Actors
from ray_route.runtime.waiting import Check
from ray_route.store.wanted import Wanted

_UNDO_S = 20.0


class Scaling:
    """The scalings of one service; who calls holds its controller's turn."""

    def __init__(self, upkeep: Upkeep, wishes: Wishes, healing: Healing, doing: Doing) -> None:
        self._upkeep = upkeep
        self._wishes = wishes
        self._healing = healing
        self._doing = doing

    def before(self, request: str, wanted: Wanted) -> Wanted:
        """Return what was wanted when a request was begun first: in an earlier life, perhaps.

        What such a life has written for it is not to outlast its failure.
        """
        found = first_found(self._wishes.actor, request, wanted.indexes)
        return wanted.of(found) if min(found) >= wanted.first else wanted

    def run(
        self, wanted: Wanted, made: Actors, deadline_s: float, deadline: Deadline, check: Check
    ) -> None:
        """Make what is missing, and end the others, each drained within `deadline_s` seconds.

        What would have to be undone is in `made`. `check` raises what ends this.
        """
        indexes = wanted.indexes
        with self._upkeep.client(deadline):  # held open, for all that follows
            growing = self._upkeep.grow(indexes, wanted.recipe, made, deadline, check)
            self._doing.take(growing, check)
            made.clear()  # whatever comes, they are wanted
            healing = self._healing.meanwhile(check)
            self._doing.take(self._upkeep.shrink(indexes, deadline_s, healing), check)

    def undo(self, before: Wanted, made: Actors) -> None:
        """End what a scaling that failed has made, and want what there is then."""
        self._doing.say(f"end pods {sorted(made)}, which were made in vain")
        with contextlib.suppress(RouteError):
            self._upkeep.undo(made, _UNDO_S)
        self.want_what_is_there(before)

    def want_what_is_there(self, before: Wanted) -> None:
        """Want what there was, or what could not be ended, after a scaling that failed.

        A pod that was being drained stays, too, as it was found.
        """
        with contextlib.suppress(RouteError):
            self._wishes.write(before.including(self._upkeep.named()))
        with contextlib.suppress(RouteError):
            self._doing.take(self._upkeep.stop_drains(before.indexes))
