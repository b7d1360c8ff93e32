"""Makes the actors of pods: in the process that deploys, or in one that is made for that alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, cast

import ray
from ray.util import list_named_actors

from ray_route.clock import Deadline
from ray_route.controller.marks import is_in_charge
from ray_route.controller.recipe import Recipe
from ray_route.errors import PodStartError, RouteTimeoutError
from ray_route.pod.arguments import cut
from ray_route.pod.exports import EXPORT_GROUP
from ray_route.pod.pod_actor import CONTROL_GROUP, pod_class
from ray_route.pod.stopping import Actors
from ray_route.protocol.names import RAY_NAMESPACE, controller_name, index_of, pod_name
from ray_route.runtime.unseen import answer_of

# Some of them wait for states that take long.
_EXPORTS_AT_ONCE = 8


class NameTakenError(Exception):
    """Ray has an actor of that name already."""


class PodMaker:
    """Makes pods of a class that is at hand."""

    def __init__(self, recipe: Recipe, user_class: type, held: list[Any]) -> None:
        given = dict(recipe.options)
        own = {CONTROL_GROUP: 2, EXPORT_GROUP: _EXPORTS_AT_ONCE}
        groups = {**given.pop("concurrency_groups", {}), **own}
        as_actor = cast(Any, ray.remote)(concurrency_groups=groups)  # Ray's stubs lack it
        how = recipe.spec.how
        self._actor_class = as_actor(pod_class(user_class, per_uid=how.per_uid, turns=how.turns))
        self._options = given
        self._spec = recipe.spec
        self._init = (held, *cut(recipe.init))

    def make(self, index: int) -> Any:
        """Make the actor of a pod; raise `NameTakenError` if it is there already."""
        name = pod_name(self._spec.namespace, self._spec.service, index)
        spec = replace(self._spec, pod=index, actor=name)
        fixed = {"name": name, "namespace": RAY_NAMESPACE, "lifetime": "detached"}
        made = self._actor_class.options(**self._options, **fixed)
        with taken_told():
            return made.remote(spec, *self._init)


@contextlib.contextmanager
def taken_told() -> Iterator[None]:
    """Raise `NameTakenError` where Ray says that a name is another's."""
    try:
        yield
    except ValueError as error:
        if "already" not in str(error):
            raise
        raise NameTakenError from error


def make_elsewhere(
    recipe: Recipe, held: list[Any], indexes: Iterable[int], actor: str, deadline: Deadline
) -> None:
    """Make pods in a process that ends then, in their runtime environment.

    For the controller of Ray actor id `actor`: once that is gone, or has begun to end its service,
    it makes no more, since nobody would end them. Those that are there already stay as they are.
    Raises `PodStartError` if the class can't be loaded there, `RouteTimeoutError`.
    """
    options = {"num_cpus": 0, "max_calls": 1, "scheduling_strategy": "DEFAULT"}
    environment = recipe.options.get("runtime_env")
    task = cast(Any, ray.remote)(runtime_env=environment, **options)(_make_all)
    done = task.remote(list(indexes), actor, held, *recipe.pieces())
    what = f"Ray to make pods {list(indexes)} of service {recipe.spec.service!r}"
    try:
        answer_of(done, deadline.remaining())
    except ray.exceptions.GetTimeoutError as error:
        ray.cancel(done, force=True)
        raise RouteTimeoutError(waiting_for=what, timeout_s=deadline.timeout_s) from error
    except ray.exceptions.RayError as error:
        raise PodStartError(
            reason=f"the class could not be loaded: {error}",
            may_have_run=False,
            namespace=recipe.spec.namespace,
            service=recipe.spec.service,
        ) from error


def _make_all(indexes: list[int], actor: str, held: list[Any], *pieces: bytes) -> None:
    recipe = Recipe.whole(pieces)
    name = controller_name(recipe.spec.namespace, recipe.spec.service)
    maker = PodMaker(recipe, recipe.user_class(), held)
    for index in indexes:
        if is_in_charge(name, actor):
            with contextlib.suppress(NameTakenError):
                pod = maker.make(index)
                if not is_in_charge(name, actor):
                    ray.kill(pod, no_restart=True)


def named_pods(namespace: str, service: str) -> dict[int, str]:
    """Return the names of a service's pods that Ray has, or is restarting, by index."""
    named = list_named_actors(all_namespaces=True)
    ours = [actor["name"] for actor in named if actor["namespace"] == RAY_NAMESPACE]
    indexes = {index_of(namespace, service, name): name for name in ours}
    return {index: name for index, name in indexes.items() if index is not None}


def handles_of(namespace: str, service: str, indexes: Iterable[int]) -> Actors:
    """Return the handles of those pods that Ray has."""
    found: Actors = {}
    for index in indexes:
        try:
            name = pod_name(namespace, service, index)
            found[index] = ray.get_actor(name, namespace=RAY_NAMESPACE)
        except ValueError:
            continue
    return found
