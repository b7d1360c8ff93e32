"""The recipes of a service's generations, each held by an actor of the job that it came from.

Ray gives what an actor makes the modules and the environment of the job that the actor belongs to.
So the first generation's recipe is the controller's own, and whoever upgrades a service makes a
holder for his, which makes that generation's pods for as long as it is wanted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container
from typing import Any, TypeVar, cast

import ray
from ray.util import list_named_actors

from ray_route.clock import Deadline, now
from ray_route.controller.making import make_elsewhere
from ray_route.controller.recipe import Recipe
from ray_route.errors import PodStartError, RouteError, RouteTimeoutError
from ray_route.protocol.names import RAY_NAMESPACE, is_recipe_of, recipe_name
from ray_route.runtime.unseen import answer_of

_ASK_S = 20.0
_ANSWER_S = 5.0
_AT_ONCE = 4
# A driver makes the holder before it asks for the upgrade.
_UNNAMED_S = 600.0

T = TypeVar("T")


class RecipeHolder:
    """The actor class. It never unpickles user code either: its makers do, and end."""

    def __init__(self, held: list[Any], *pieces: bytes) -> None:
        self._held = held
        self._recipe = Recipe.whole(pieces)

    def recipe(self) -> Recipe:
        """Return the recipe."""
        return self._recipe

    def make(self, indexes: list[int], actor: str, timeout: float) -> None:
        """Make pods; see `make_elsewhere`."""
        make_elsewhere(self._recipe, self._held, indexes, actor, Deadline.after(timeout))


def make_holder(recipe: Recipe, held: list[Any], request: str) -> str:
    """Make the holder of a recipe, in the job of this process; return its name."""
    name = recipe_name(recipe.spec.namespace, recipe.spec.service, request)
    as_actor = cast(Any, ray.remote(RecipeHolder))
    as_actor.options(
        name=name,
        namespace=RAY_NAMESPACE,
        lifetime="detached",
        num_cpus=0,
        max_restarts=-1,
        max_concurrency=_AT_ONCE,
        scheduling_strategy="DEFAULT",  # not in its maker's placement group, to end with that
    ).remote(held, *recipe.pieces())
    return name


def end_holder(name: str) -> None:
    """End a holder, for good, if it is there."""
    with contextlib.suppress(ValueError):
        ray.kill(ray.get_actor(name, namespace=RAY_NAMESPACE), no_restart=True)


def holders_of(namespace: str, service: str) -> list[str]:
    """Return the names of a service's holders, those of upgrades that never began among them."""
    named = list_named_actors(all_namespaces=True)
    ours = [actor["name"] for actor in named if actor["namespace"] == RAY_NAMESPACE]
    return [name for name in ours if is_recipe_of(namespace, service, name)]


def end_holders(namespace: str, service: str) -> None:
    """End all holders of a service."""
    for name in holders_of(namespace, service):
        end_holder(name)


class Recipes:
    """All recipes of one service, by the names of their holders. Thread-safe."""

    def __init__(self, own: Recipe, held: list[Any], name: str) -> None:
        self.own = own
        self.held = held
        self.name = name
        """Of the controller, which holds the first one."""
        self._known = {name: own}
        self._unnamed: dict[str, float] = {}
        """Since when no generation has named a holder."""

    def of(self, name: str) -> Recipe:
        """Return a recipe; raise `PodStartError` if its holder is gone, `RouteTimeoutError`."""
        if name not in self._known:
            self._known[name] = self._ask(name, lambda it: it.recipe.remote(), _ASK_S)
        return self._known[name]

    def make(self, name: str, indexes: list[int], actor: str, deadline: Deadline) -> None:
        """Make pods by a recipe, for the controller of Ray id `actor`; see `make_elsewhere`."""
        if name == self.name:
            make_elsewhere(self.own, self.held, indexes, actor, deadline)
            return
        timeout = deadline.remaining()
        self._ask(name, lambda it: it.make.remote(indexes, actor, timeout), timeout + _ANSWER_S)

    def end(self, name: str) -> None:
        """End the holder of a generation that is no more."""
        if name != self.name:
            self._known.pop(name, None)
            end_holder(name)

    def end_unnamed(self, named: Container[str]) -> None:
        """End holders that have not been named for ten minutes: their drivers have died."""
        spec = self.own.spec
        unnamed = [it for it in holders_of(spec.namespace, spec.service) if it not in named]
        self._unnamed = {name: self._unnamed.get(name, now()) for name in unnamed}
        for name, since in self._unnamed.items():
            if now() - since > _UNNAMED_S:
                self.end(name)

    def _ask(self, name: str, ask: Callable[[Any], Any], timeout_s: float) -> Any:
        what = f"the recipe of {self.own.spec.service!r} ({name})"
        try:
            return answer_of(ask(ray.get_actor(name, namespace=RAY_NAMESPACE)), timeout_s)
        except Exception as error:
            cause = getattr(error, "cause", None)  # the holder's own
            if isinstance(cause, RouteError):
                raise cause from error
            if isinstance(error, ray.exceptions.GetTimeoutError):
                raise RouteTimeoutError(waiting_for=what, timeout_s=timeout_s) from error
            reason = f"{what} can't be had: {error!r}"
            raise PodStartError(reason=reason, may_have_run=False) from error
