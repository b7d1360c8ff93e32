"""Finds the controller of a service, and asks it, from any process."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import ray

from ray_route.clock import Deadline, shorter
from ray_route.controller.actor import GROUPS, THREADS, Controller
from ray_route.controller.making import named_pods, taken_told
from ray_route.controller.marks import forget, give_up, note_end
from ray_route.controller.recipe import Given, Recipe
from ray_route.controller.recipes import end_holder, holders_of, make_holder
from ray_route.errors import ClosedError, StoreUnavailableError, UpgradeError
from ray_route.model import UpgradeProgress
from ray_route.pod.stopping import STOP_S, found, stop_found, wait_gone
from ray_route.pod.unbegun import is_unbegun
from ray_route.protocol.names import RAY_NAMESPACE, controller_name, recipe_name
from ray_route.runtime.unseen import arrived, seen
from ray_route.runtime.waiting import (
    Blocking,
    Operation,
    Pause,
    Remote,
    Stage,
    TheDeadline,
    run,
    within,
)
from ray_route.store.wanted import Upgrade

_PAUSE_S = 0.1
_LOOK_S = 0.2
_GIVE_UP_S = 2.0


def make_controller(recipe: Recipe, held: list[Any], patience_s: float) -> Any:
    """Make the controller of a service; raise `NameTakenError` if there is one.

    By the process that deploys: Ray gives pods the modules and the environment of whose job made
    them, and those that come later are made by the controller.
    """
    spec = recipe.spec
    as_actor = cast(Any, ray.remote)(concurrency_groups=GROUPS)  # Ray's stubs lack it
    options = as_actor(Controller).options(
        name=controller_name(spec.namespace, spec.service),
        namespace=RAY_NAMESPACE,
        lifetime="detached",
        num_cpus=0,
        max_restarts=-1,
        max_concurrency=THREADS,
        scheduling_strategy="DEFAULT",  # not in its maker's placement group, to end with that
    )
    with taken_told():
        return options.remote(patience_s, held, *recipe.pieces())


class ControllerHandle:
    """The controller of one service, as it is found by name at every question.

    Once `bound` to what was found, another service that is deployed under that name later is none
    of its concern.
    """

    def __init__(
        self, namespace: str, service: str, check_here: Callable[[], None] = lambda: None
    ) -> None:
        self._check_here = check_here
        self._actor: str | None = None
        self._namespace = namespace
        self._service = service
        self._name = controller_name(namespace, service)

    def found(self) -> Any:
        """Return its handle; None if there is none. Raises `RayGoneError` where that is checked."""
        handle = self._named()
        return handle if handle is None or self._actor in (None, _id_of(handle)) else None

    def bound(self) -> ControllerHandle:
        """Return this, bound to the controller that there is now, if there is one."""
        handle = self._named()
        self._actor = _id_of(handle) if handle is not None else None
        return self

    def _named(self) -> Any:
        self._check_here()
        with contextlib.suppress(ValueError):
            return ray.get_actor(self._name, namespace=RAY_NAMESPACE)
        return None

    def ask(self, method: str, *args: Any) -> Operation[Any]:
        """Ask it, and its next life if it dies; raise `ClosedError` once there is none."""
        what = f"the controller of service {self._service!r} ({method})"
        while True:
            handle = yield Blocking(self.found, f"Ray to find {what}", longest_s=math.inf)
            if handle is None:
                named = {"namespace": self._namespace, "service": self._service}
                raise ClosedError(what=f"service {self._service!r} (it has no controller)", **named)
            try:
                return (yield Remote(getattr(handle, method).remote(*args), what))
            except ray.exceptions.RayActorError:
                yield Pause(_PAUSE_S, what)

    def begin_upgrade(self, cls: type, given: Given, how: Upgrade, deadline: Deadline) -> None:
        """Have the service's upgrade to a class begin; raise `RouteTimeoutError`.

        And what a class or arguments raise that can't be deployed. Nothing has begun then.
        """
        holder = run(self._make_holder(cls, given, how.request), deadline)
        begin = self.ask("begin_upgrade", holder, how, shorter(deadline.remaining()))
        try:
            run(begin, deadline)
        except Exception:
            self._give_up(how.request)  # it may have begun all the same
            raise

    def _make_holder(self, cls: type, given: Given, request: str) -> Operation[str]:
        present: Recipe = yield from self.ask("recipe")
        deadline = yield TheDeadline()
        what = f"Ray to hold the new class of service {self._service!r}"
        work = partial(self._held, present, cls, given, request, deadline)
        name: str = yield Blocking(work, what, math.inf)
        return name

    @staticmethod
    def _held(present: Recipe, cls: type, given: Given, request: str, deadline: Deadline) -> str:
        recipe, held = present.with_class(cls, given, deadline)
        return make_holder(recipe, held, request)

    def upgraded(self, request: str, told: Callable[[UpgradeProgress], object]) -> Operation[None]:
        """Tell how far an upgrade that has begun has come, again and again, until it has ended.

        Raises `UpgradeError` if it was stopped.
        """
        what = f"the upgrade of service {self._service!r}, which goes on"
        while not (progress := (yield from self._upgraded(request))).done:
            told(progress)
            yield Pause(_LOOK_S, what)
        told(progress)
        self._check_upgraded(progress)

    def _upgraded(self, request: str) -> Operation[UpgradeProgress]:
        """Ask how far an upgrade has come; a controller's next life learns it from Redis."""
        while True:
            try:
                progress: UpgradeProgress | None = yield from self.ask("upgrade_progress", request)
            except StoreUnavailableError:
                yield Pause(
                    _LOOK_S, f"the store to say how far the upgrade of {self._service!r} is"
                )
                continue
            if progress is None:
                raise ClosedError(what=f"service {self._service!r}", service=self._service)
            return progress

    def _check_upgraded(self, progress: UpgradeProgress) -> None:
        if progress.problem is not None:
            raise UpgradeError(
                reason=progress.problem,
                undone=not progress.left,
                left=progress.left,
                namespace=self._namespace,
                service=self._service,
            ) from progress.error

    @contextlib.contextmanager
    def giving_up(self, request: str) -> Iterator[None]:
        """Have the controller undo a request whose caller is interrupted."""
        try:
            yield
        except Exception:
            raise
        except BaseException:
            self._give_up(request)
            raise

    def _give_up(self, request: str) -> None:
        with contextlib.suppress(Exception):
            try:
                run(self.ask("give_up", request), Deadline.after(_GIVE_UP_S))
            except ClosedError:  # nobody else does
                end_holder(recipe_name(self._namespace, self._service, request))
            except Exception:  # noqa: BLE001 - its next life is told
                give_up(self._actor or _id_of(self.found()), request)

    def end(self, grace_s: float) -> None:
        """End the service, its controller last; without one end the pods that Ray has."""
        handle = self.found()
        if handle is not None and not self._has_ended(handle, grace_s):
            # Its process may begin any time, and ours end: then it goes on with this.
            note_end(_id_of(handle), grace_s)
            self._end_pods(handle, grace_s)
            ray.kill(handle, no_restart=True)
            wait_gone(self._name, Deadline.after(STOP_S))
            forget(_id_of(handle))
        self._end_pods(handle, grace_s)

    def _has_ended(self, handle: Any, grace_s: float) -> bool:
        """Have a controller end its service; False if it does not, or has not even begun."""
        asked = seen(handle.shutdown.remote(grace_s))
        deadline = Deadline.after(grace_s + 2 * STOP_S)
        while arrived([asked], min(_LOOK_S, deadline.remaining()))[1]:
            if is_unbegun(handle) or not deadline.remaining():
                return False
        try:
            ray.get(asked)
        except ray.exceptions.RayError:
            return False
        wait_gone(self._name, Deadline.after(STOP_S))
        return self.found() is None

    def _end_pods(self, handle: Any, grace_s: float) -> None:
        """End the pods of that controller's service: not those of another that has its name now.

        All is found before that is looked at: the next one's controller is there before its pods.
        """
        holders = holders_of(self._namespace, self._service)
        if self._is_anothers(handle):
            return
        for holder in holders:  # they may be making some
            end_holder(holder)
        pods = found(named_pods(self._namespace, self._service).values())
        if pods and not self._is_anothers(handle):
            stop_found(pods, grace_s)

    def _is_anothers(self, handle: Any) -> bool:
        named = self._named()
        return named is not None and (handle is None or _id_of(named) != _id_of(handle))

    def end_within(self, grace_s: float, deadline: Deadline) -> None:
        """Do so in a thread of its own; raise `RouteTimeoutError`."""
        stage = Stage(f"Ray to end {self._name} and its pods")
        within(deadline, stage, lambda: self.end(grace_s))


def _id_of(handle: Any) -> str:
    actor: str = handle._actor_id.hex()  # noqa: SLF001 - it has no public one
    return actor
