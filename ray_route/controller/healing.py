"""Makes pods that Ray has given up: at a look, and in the midst of what lasts."""

from __future__ import annotations

import logging

from ray_route.clock import Deadline, now
from ray_route.controller.doing import Doing, Steps
from ray_route.controller.figures import Figures
from ray_route.controller.starts import Starts
from ray_route.controller.upkeep import Upkeep
from ray_route.controller.wishes import Wishes
from ray_route.errors import RouteError
from ray_route.runtime.waiting import Check

logger = logging.getLogger(__name__)

_MAKE_S = 60.0
_EACH_S = 2.0


class Healing:
    """Makes what one service lacks; who calls holds its controller's turn."""

    def __init__(
        self, upkeep: Upkeep, wishes: Wishes, starts: Starts, figures: Figures, doing: Doing
    ) -> None:
        self._upkeep = upkeep
        self._wishes = wishes
        self._starts = starts
        self._figures = figures
        self._doing = doing
        self._again_at = 0.0

    def steps(self, *, anew: bool = True) -> Steps:
        """Make pods that Ray has given up; what becomes of them the next looks tell.

        In an upgrade, as many as there is room for. Not `anew`: the load needs them.
        """
        wanted = self._wishes.wanted
        assert wanted is not None
        named = self._upkeep.named().keys()
        missing = set(wanted.indexes) - named - set(self._starts.under_way)
        due = [pod for pod in sorted(missing) if self._starts.may_begin(pod)]
        if wanted.upgrade is not None:
            due = due[: max(0, wanted.replicas + wanted.upgrade.surge - len(named))]
        if not due:
            return
        yield f"make pods {due}, which Ray does not have"
        made = self._upkeep.make(due, wanted.recipe, Deadline.after(_MAKE_S))
        if anew:
            self._figures.made_anew(len(due))
        self._starts.begun(made)

    def meanwhile(self, check: Check) -> Check:
        """Return a check that makes, now and then, what is missing: for what lasts, as a drain."""

        def both() -> None:
            check()
            if now() >= self._again_at:
                self._again_at = now() + _EACH_S
                self._heal()

        return both

    def _heal(self) -> None:
        self._starts.hear()
        words = self._doing.words
        try:
            self._doing.take(self.steps())
        except RouteError as error:  # what lasts goes on; the next look meets it again
            self._figures.log(logger, logging.WARNING, "not as it is wanted: %s", error)
        finally:
            self._doing.say(words)
