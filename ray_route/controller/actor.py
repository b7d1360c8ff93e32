"""The controller: one detached Ray actor per deployed service that keeps it as it is wanted.

Restarted for ever. What is wanted it takes from whoever holds the service and writes to Redis; what
there is it finds in Ray and in the pod table, at every look anew. So its own death costs nothing
but time, and nobody a call: neither clients nor pods need it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import ray

from ray_route.clock import Deadline, now
from ray_route.controller.keeping import Keeping
from ray_route.controller.marks import GivenUp, give_up, is_given_up
from ray_route.controller.recipe import Recipe
from ray_route.controller.requests import Description, Request, code_of, give_way
from ray_route.controller.turn import Turn
from ray_route.controller.upkeep import Upkeep
from ray_route.controller.wishes import DeposedError, Wishes
from ray_route.errors import CallCancelledError, ClosedError, RouteError
from ray_route.model import Rebalance, RoutingState, ServiceStatus, UpgradeProgress
from ray_route.pod.stopping import Actors
from ray_route.policies import Autoscale
from ray_route.protocol.names import controller_name, recipe_name
from ray_route.runtime.waiting import Pause
from ray_route.store.wanted import Upgrade, Wanted

logger = logging.getLogger(__name__)

STATUS_GROUP = "status"
CONTROL_GROUP = "control"
GROUPS = {STATUS_GROUP: 4, CONTROL_GROUP: 4}
"""Threads for what must not wait behind callers that wait for their turn."""
THREADS = 16

_LOOK_S = 2.0
_HEAL_S = 60.0
# For a shutdown that comes while something else is under way: that is told to stop first.
_MAKE_WAY_S = 5.0
_ANSWER_S = 0.1
_AGAIN_S = 0.2
_UNNAMED_EACH_S = 60.0
_UNDO_S = 20.0


class Controller:
    """The actor class. Its arguments are the recipe's pieces: no restart needs its maker.

    Until `begin` it does nothing, and if that does not come within `patience_s` it ends what there
    is of the service, and itself: whoever deployed it has died half-way.
    """

    def __init__(self, patience_s: float, held: list[Any], *pieces: bytes) -> None:
        self._recipe = Recipe.whole(pieces)
        spec = self._recipe.spec
        self._service = spec.service
        self._name = controller_name(spec.namespace, spec.service)
        actor = ray.get_runtime_context().get_actor_id() or ""
        self._upkeep = Upkeep(self._recipe, held, actor)
        self._wishes = Wishes(self._recipe, actor)
        self._keeping = Keeping(self._recipe, self._upkeep, self._wishes, patience_s)
        figures = self._keeping.figures
        self._turn = Turn(self._service, self._keeping)
        self._requests: dict[str, Request] = {}
        self._awaited: set[str] = set()
        """Recipes of upgrades that wait for their turn."""
        self._unnamed_at = 0.0
        self._given_up = GivenUp(actor)
        self._problem = ""
        self._ending, self._wake = False, threading.Event()
        figures.begin(self._wishes, lambda: len(self._keeping.problems()) + bool(self._problem))
        threading.Thread(target=self._run, name="ray_route-controller", daemon=True).start()

    # What is asked of it.

    @ray.method(concurrency_group=STATUS_GROUP)
    def describe(self) -> Description:
        """Say what is deployed here."""
        wanted = self._wishes.wanted
        size = wanted.facts() if wanted else None
        return Description(dict(self._present().facts), size, self._is_ended())

    @ray.method(concurrency_group=STATUS_GROUP)
    def recipe(self) -> Recipe:
        """Return the recipe of the present generation."""
        return self._present()

    def _present(self) -> Recipe:
        wanted = self._wishes.wanted
        return self._upkeep.recipes.of(wanted.recipe) if wanted else self._recipe

    @ray.method(concurrency_group=STATUS_GROUP)
    def status(self) -> ServiceStatus:
        """Say what is wanted, what is done just now, and what is in the way."""
        wanted, named = self._wishes.wanted, self._upkeep.named()
        return ServiceStatus(
            namespace=self._recipe.spec.namespace,
            service=self._service,
            replicas=wanted.replicas if wanted else 0,
            cordons=tuple(sorted(wanted.cordons)) if wanted else (),
            generation=wanted.generation if wanted else 0,
            code=code_of(self._present),
            pods=tuple(sorted(named)),
            wanted=tuple(wanted.indexes) if wanted else (),
            generations=self._keeping.upgrading.generations(named),
            doing="end the service" if self._is_ended() else self._keeping.doing,
            problem=self._problem,
            problems=self._keeping.problems(),
            autoscaling=self._keeping.autoscaler.told(),
            tolerance=wanted.tolerance if wanted else None,
            controller=self._wishes.incarnation,
            process=os.getpid(),
        )

    @ray.method(concurrency_group=CONTROL_GROUP)
    def give_up(self, request: str) -> None:
        """Undo what a caller that was interrupted has asked for, as far as that is not done."""
        self._give_up(request)

    def begin(self, replicas: int, autoscale: Autoscale | None, tolerance: float | None) -> None:
        """Keep the service so from now on: its pods serve."""
        with self._turn.taken(Deadline.after(_HEAL_S)):
            self._keeping.begin(replicas, autoscale, tolerance)
            self._wake.set()

    def scale(
        self,
        request: str,
        replicas: int,
        deadline_s: float,
        timeout: float,
        autoscale: Autoscale | None = None,
    ) -> None:
        """See `Deployment.scale`; callers do so one after the other.

        Who decides how many pods there are changes last: a scaling that fails changes nothing.
        """
        deadline = Deadline.after(timeout)
        with self._asked(request, deadline, after_upgrades=True) as asked:
            before = self._keeping.before(request, self._wanted())
            # Those that an autoscaled service has above its most go one by one, later.
            wanted = before.scaled(max(replicas, before.replicas) if autoscale else replicas)
            self._wishes.write(wanted)
            try:
                self._scale(wanted, deadline_s, deadline, asked)
                self._keeping.decide_by(autoscale=autoscale)
            except BaseException:
                self._undo(before, asked.made)
                raise

    def _scale(self, wanted: Wanted, deadline_s: float, deadline: Deadline, asked: Request) -> None:
        check, indexes = self._checked(asked), wanted.indexes
        with self._upkeep.client(deadline):  # held open, for all that follows
            growing = self._upkeep.grow(indexes, wanted.recipe, asked.made, deadline, check)
            self._keeping.take(growing, check)
            asked.made = {}  # whatever comes, they are wanted
            healing = self._keeping.healing(check)
            self._keeping.take(self._upkeep.shrink(indexes, deadline_s, healing), check)

    def _undo(self, before: Wanted, made: Actors) -> None:
        """End what a scaling that failed has made, and want what there is then."""
        if not self._is_ended():
            self._keeping.doing = f"end pods {sorted(made)}, which were made in vain"
            with contextlib.suppress(RouteError):
                self._upkeep.undo(made, _UNDO_S)
            self._keeping.want_what_is_there(before)

    def rebalance(
        self, request: str, tolerance: float, max_moves_per_s: float | None, deadline_s: float
    ) -> Rebalance:
        """See `Deployment.rebalance`; at no rate it only says what it would do."""
        deadline = Deadline.after(deadline_s)
        if max_moves_per_s is None:
            return self._keeping.rebalancer.planned(tolerance, deadline)
        with self._asked(request, deadline, after_upgrades=True) as asked:
            check = self._checked(asked)
            return self._keeping.rebalancer.run(tolerance, max_moves_per_s, deadline, check)

    def keep_even(self, tolerance: float | None, timeout: float) -> None:
        """See `Deployment.keep_even`."""
        with self._asked("", Deadline.after(timeout)):
            self._wanted()
            self._keeping.decide_by(tolerance=tolerance)

    def cordon(self, pod: int, timeout: float) -> None:
        """See `Deployment.cordon`."""
        with self._asked("", Deadline.after(timeout)):
            self._upkeep.known(pod)
            wanted = self._wanted()
            self._wishes.write(replace(wanted, cordons=wanted.cordons | {pod}))
            self._keeping.take(self._upkeep.close([pod]))

    def uncordon(self, pod: int, timeout: float) -> None:
        """See `Deployment.uncordon`."""
        deadline = Deadline.after(timeout)
        with self._asked("", deadline) as asked:
            found = self._upkeep.known(pod)
            wanted = self._wanted()
            self._wishes.write(replace(wanted, cordons=wanted.cordons - {pod}))
            self._keeping.take(self._upkeep.open(pod))
            if found.state is RoutingState.SHUTDOWN and pod in wanted.indexes:
                renewing = self._upkeep.renew(pod, wanted.recipe, asked.made, deadline)
                self._keeping.take(renewing)

    def begin_upgrade(self, recipe: str, how: Upgrade, timeout: float) -> None:
        """Have the service brought to the generation of that recipe: see `upgrade_progress`.

        It only answers if it has begun that before, and waits while another one is under way, or
        raises `RouteTimeoutError`. A recipe of which nothing comes is let go.
        """
        deadline = Deadline.after(timeout)
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
        if self._knows(how.request):
            return True  # its answer was lost
        with self._asked("", deadline):
            self._wanted()
            if not self._knows(how.request):
                self._check_asked(how.request)
                self._upkeep.recipes.of(recipe)  # it may take its time
                self._check_asked(how.request)
                if upgrading.is_under_way:
                    return False
                upgrading.begin(recipe, how)
        self._wake.set()
        return True

    @ray.method(concurrency_group=STATUS_GROUP)
    def upgrade_progress(self, request: str) -> UpgradeProgress | None:
        """Say how far an upgrade has come; None if none is known by that request."""
        return self._keeping.upgrading.progress(request) if self._knows(request) else None

    def _knows(self, request: str) -> bool:
        """True if an upgrade has been begun by that request, in an earlier life or in this one."""
        with self._in_charge():
            self._wishes.claim()
        return self._keeping.upgrading.knows(request)

    def _let_go(self, recipe: str, request: str) -> None:
        """End the holder of an upgrade that has not begun; nothing is, unless that is certain."""
        with contextlib.suppress(RouteError, DeposedError):
            self._wishes.check()
            wanted = self._wishes.wanted
            if not self._knows(request) and (wanted is None or recipe not in wanted.recipes):
                self._upkeep.recipes.end(recipe)

    @ray.method(concurrency_group=CONTROL_GROUP)
    def shutdown(self, grace_s: float) -> None:
        """Stop all pods, forget the service, and end; what is under way is given up."""
        self._ending = True
        for request in list(self._requests):
            self._give_up(request)
        had = self._turn.lock.acquire(timeout=_MAKE_WAY_S)
        try:
            self._keeping.finish(grace_s)
            self._wake.set()
        finally:
            if had:
                self._turn.lock.release()

    # How it is done.

    def _give_up(self, request: str) -> None:
        if request not in self._requests:  # it has ended, or has yet to come
            give_up(self._wishes.actor, request)
        if asked := self._requests.get(request):
            asked.given_up = True
            return
        spec = self._recipe.spec
        recipe = recipe_name(spec.namespace, spec.service, request)
        if recipe not in self._awaited:  # who awaits it lets it go, or has just begun with it
            self._let_go(recipe, request)

    @contextlib.contextmanager
    def _asked(
        self, request: str, deadline: Deadline, *, after_upgrades: bool = False
    ) -> Iterator[Request]:
        """Hold the turn for what a caller asks, unless it has given up before this came."""
        key = request or uuid.uuid4().hex
        asked = self._requests.setdefault(key, Request())

        def wanted() -> Wanted:
            self._checked(asked)()
            return self._wanted()

        taken = self._turn.taken_after_upgrades(deadline, wanted)
        try:
            if request:
                self._check_asked(request, "scale")
            with self._in_charge(), taken if after_upgrades else self._turn.taken(deadline):
                self._checked(asked)()
                yield asked
        finally:
            self._requests.pop(key, None)

    @contextlib.contextmanager
    def _in_charge(self) -> Iterator[None]:
        """Raise `ClosedError` where another controller has taken over."""
        try:
            yield
        except DeposedError as error:
            raise ClosedError(what=f"this controller of {self._service!r}") from error

    def _wanted(self) -> Wanted:
        self._keeping.take_up()
        self._wishes.claim()
        if self._wishes.wanted is None or self._keeping.done:
            raise ClosedError(what=f"service {self._service!r}, which was never whole")
        return self._wishes.wanted

    def _checked(self, asked: Request) -> Callable[[], None]:
        """Return what raises once a caller has given up, or another controller decides."""

        def check() -> None:
            if self._is_ended():
                raise ClosedError(what=f"service {self._service!r}", service=self._service)
            if asked.given_up:
                raise CallCancelledError(method="scale", may_have_run=True, service=self._service)
            self._wishes.check()

        return check

    def _check_upgrade(self) -> None:
        """Raise what ends an upgrade that is under way."""
        if self._is_ended():
            raise ClosedError(what=f"service {self._service!r}", service=self._service)
        wanted = self._wishes.wanted
        upgrade = wanted.upgrade if wanted else None
        if upgrade is not None and not upgrade.back:
            self._check_asked(upgrade.request)
        self._wishes.check()

    def _end_unnamed(self) -> None:
        """End recipes of nothing, forget old marks; while this controller surely decides."""
        wanted = self._wishes.wanted
        if wanted is not None and not self._keeping.done and now() >= self._unnamed_at:
            self._unnamed_at = now() + _UNNAMED_EACH_S
            self._upkeep.recipes.end_unnamed({*wanted.recipes, *self._awaited})
            self._given_up.forget_old(wanted.upgrade.request if wanted.upgrade else "")

    def _check_asked(self, request: str, method: str = "upgrade") -> None:
        """Raise `CallCancelledError` if who asked for something has given up, in any life."""
        if is_given_up(self._wishes.actor, request):
            raise CallCancelledError(method=method, may_have_run=True, service=self._service)

    def _is_ended(self) -> bool:
        wanted = self._wishes.wanted
        return self._ending or (wanted is not None and wanted.ended)

    # What it does by itself.

    def _run(self) -> None:
        while not self._keeping.done:
            self._look()
            self._wake.wait(0 if self._keeping.done else _LOOK_S)
            self._wake.clear()
        self._wake.wait(_ANSWER_S)  # let the answers out
        own: Any = ray.get_runtime_context().current_actor  # its name may be another's by now
        ray.kill(own, no_restart=True)

    def _look(self) -> None:
        if not self._turn.lock.acquire(blocking=False):
            return  # a caller's wish is being done
        try:
            gives_way = partial(give_way, self._check_upgrade, self._requests)
            self._keeping.look(self._check_upgrade, gives_way, ending=self._ending)
            self._end_unnamed()
            self._problem = ""
        except DeposedError:
            logger.warning("a younger controller has taken over: %s ends", self._name)
            os._exit(0)
        except Exception as error:  # noqa: BLE001 - whatever it was, the next look begins anew
            if str(error) != self._problem:
                told = ("%s: not as it is wanted: %s", self._name, error)
                self._keeping.figures.log(logger, logging.WARNING, *told)
            self._problem = str(error)
        finally:
            self._keeping.doing = ""
            self._turn.lock.release()
