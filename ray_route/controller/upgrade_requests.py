"""The upgrades that callers ask for: each is begun once, in whichever life, or is let go."""

from __future__ import annotations

import contextlib

from ray_route.clock import Deadline
from ray_route.controller.keeping import Keeping
from ray_route.controller.recipes import Recipes
from ray_route.controller.requests import Requests
from ray_route.controller.wishes import DeposedError, Wishes
from ray_route.errors import RouteError
from ray_route.protocol.names import recipe_name
from ray_route.runtime.waiting import Pause
from ray_route.store.wanted import Upgrade, Wanted

_AGAIN_S = 0.2


class UpgradeRequests:
    """The upgrades that one controller is asked for. Thread-safe."""

    def __init__(
        self, recipes: Recipes, wishes: Wishes, keeping: Keeping, requests: Requests
    ) -> None:
        self._recipes = recipes
        self._wishes = wishes
        self._keeping = keeping
        self._requests = requests
        spec = recipes.own.spec
        self._namespace, self._service = spec.namespace, spec.service
        self._awaited: set[str] = set()
        """Recipes of upgrades that wait for their turn."""

    def begin(self, recipe: str, how: Upgrade, deadline: Deadline) -> None:
        """Begin an upgrade, unless that is done; wait while another one is under way.

        Raises `RouteTimeoutError`. A recipe of which nothing comes is let go.
        """
        self._awaited.add(recipe)
        try:
            while not self._has_begun(recipe, how, deadline):
                Pause(_AGAIN_S, f"another upgrade of service {self._service!r}").wait(deadline)
        except BaseException:
            self._let_go(recipe, how.request)
            raise
        finally:
            self._awaited.discard(recipe)

    def _has_begun(self, recipe: str, how: Upgrade, deadline: Deadline) -> bool:
        """Begin an upgrade, unless that is done; False while another one is under way."""
        upgrading = self._keeping.upgrading
        if self.knows(how.request):
            return True  # its answer was lost
        with self._requests.turn_for("", deadline):
            self._keeping.wanted()
            if not self.knows(how.request):
                self._requests.check_not_given_up(how.request, "upgrade")
                self._recipes.of(recipe)  # it may take its time
                self._requests.check_not_given_up(how.request, "upgrade")
                if upgrading.is_under_way:
                    return False
                upgrading.begin(recipe, how)
        return True

    def knows(self, request: str) -> bool:
        """True if an upgrade has been begun by that request, in an earlier life or in this one."""
        with self._requests.in_charge():
            self._wishes.claim()
        return self._keeping.upgrading.knows(request)

    def give_up(self, request: str) -> None:
        """Let an upgrade go that has not begun; `check` raises what ends one that has."""
        recipe = recipe_name(self._namespace, self._service, request)
        if recipe not in self._awaited:  # who awaits it lets it go, or has just begun with it
            self._let_go(recipe, request)

    def _let_go(self, recipe: str, request: str) -> None:
        """End the holder of an upgrade that has not begun; nothing is, unless that is certain."""
        with contextlib.suppress(RouteError, DeposedError):
            self._wishes.check()
            wanted = self._wishes.wanted
            if not self.knows(request) and (wanted is None or recipe not in wanted.recipes):
                self._recipes.end(recipe)

    def check(self) -> None:
        """Raise what ends an upgrade that is under way."""
        self._requests.check_not_ended()
        wanted = self._wishes.wanted
        upgrade = wanted.upgrade if wanted else None
        if upgrade is not None and not upgrade.back:
            self._requests.check_not_given_up(upgrade.request, "upgrade")
        self._wishes.check()

    def end_unnamed(self, wanted: Wanted) -> None:
        """End recipes of nothing: neither what is wanted names them, nor what waits."""
        self._recipes.end_unnamed({*wanted.recipes, *self._awaited})
