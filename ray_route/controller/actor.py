"""The controller: one detached Ray actor per deployed service that keeps it as it is wanted.

Restarted for ever. What is wanted it takes from whoever holds the service and writes to Redis; what
there is it finds in Ray and in the pod table, at every look anew. So its own death costs nothing
but time, and nobody a call: neither clients nor pods need it.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, replace
from typing import Any

import ray

from ray_route.clock import Deadline
from ray_route.controller.keeping import Keeping
from ray_route.controller.looks import Looks
from ray_route.controller.recipe import Recipe
from ray_route.controller.requests import Requests
from ray_route.controller.turn import Turn
from ray_route.controller.upgrade_requests import UpgradeRequests
from ray_route.controller.upkeep import Upkeep
from ray_route.controller.wishes import Wishes
from ray_route.errors import RouteError
from ray_route.model import Rebalance, RoutingState, ServiceStatus, UpgradeProgress
from ray_route.pod.stopping import Actors
from ray_route.policies import Autoscale
from ray_route.store.wanted import Upgrade

STATUS_GROUP = "status"
CONTROL_GROUP = "control"
GROUPS = {STATUS_GROUP: 4, CONTROL_GROUP: 4}
"""Threads for what must not wait behind callers that wait for their turn."""
THREADS = 16

_BEGIN_S = 60.0
# For a shutdown that comes while something else is under way: that is told to stop first.
_MAKE_WAY_S = 5.0


@dataclass(frozen=True, slots=True)
class Description:
    """What a controller says: `facts` are the recipe's, `size` those of the number of pods.

    `size` is None until it has begun.
    """

    facts: dict[str, str]
    size: dict[str, str] | None
    ended: bool


class Controller:
    """The actor class. Its arguments are the recipe's pieces: no restart needs its maker.

    Until `begin` it does nothing, and if that does not come within `patience_s` it ends what there
    is of the service, and itself: whoever deployed it has died half-way.
    """

    def __init__(self, patience_s: float, held: list[Any], *pieces: bytes) -> None:
        self._recipe = Recipe.whole(pieces)
        self._service = self._recipe.spec.service
        actor = ray.get_runtime_context().get_actor_id() or ""
        self._upkeep = Upkeep(self._recipe, held, actor)
        self._wishes = Wishes(self._recipe, actor)
        self._keeping = Keeping(self._recipe, self._upkeep, self._wishes, patience_s)
        self._doing = self._keeping.doing
        self._turn = Turn(self._service, self._doing, self._keeping.upgrading)
        self._requests = Requests(self._service, self._wishes, self._keeping, self._turn)
        self._upgrades = UpgradeRequests(
            self._upkeep.recipes, self._wishes, self._keeping, self._requests
        )
        self._looks = Looks(self._wishes, self._keeping, self._turn, self._requests, self._upgrades)
        problems, looks = self._keeping.problems, self._looks
        self._keeping.figures.begin(self._wishes, lambda: len(problems()) + bool(looks.problem))
        threading.Thread(target=self._looks.run, name="ray_route-controller", daemon=True).start()

    @ray.method(concurrency_group=STATUS_GROUP)
    def describe(self) -> Description:
        """Say what is deployed here."""
        wanted = self._wishes.wanted
        size = wanted.facts() if wanted else None
        return Description(dict(self._present().facts), size, self._requests.is_ended())

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
            code=self._code(),
            pods=tuple(sorted(named)),
            wanted=tuple(wanted.indexes) if wanted else (),
            generations=self._keeping.upgrading.generations(named),
            doing="end the service" if self._requests.is_ended() else self._doing.words,
            problem=self._looks.problem,
            problems=self._keeping.problems(),
            autoscaling=self._keeping.autoscaler.told(),
            tolerance=wanted.tolerance if wanted else None,
            controller=self._wishes.incarnation,
            process=os.getpid(),
        )

    def _code(self) -> str:
        """Return the hash of the present class's text, or why it is not known."""
        try:
            return self._present().facts["code"]
        except RouteError as error:  # its holder is away, which is not all that there is to say
            return f"unknown: {error}"

    @ray.method(concurrency_group=CONTROL_GROUP)
    def give_up(self, request: str) -> None:
        """Undo what a caller that was interrupted has asked for, as far as that is not done."""
        if not self._requests.give_up(request):
            self._upgrades.give_up(request)

    def begin(self, replicas: int, autoscale: Autoscale | None, tolerance: float | None) -> None:
        """Keep the service so from now on: its pods serve."""
        with self._turn.taken(Deadline.after(_BEGIN_S)):
            self._keeping.begin(replicas, autoscale, tolerance)
            self._looks.wake()

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
        with self._requests.turn_for(request, deadline, after_upgrades=True) as check:
            scaling = self._keeping.scaling
            before = scaling.before(request, self._keeping.wanted())
            # Those that an autoscaled service has above its most go one by one, later.
            wanted = before.scaled(max(replicas, before.replicas) if autoscale else replicas)
            self._wishes.write(wanted)
            made: Actors = {}
            try:
                scaling.run(wanted, made, deadline_s, deadline, check)
                self._keeping.decide_by(autoscale=autoscale)
            except BaseException:
                if not self._requests.is_ended():
                    scaling.undo(before, made)
                raise

    def rebalance(
        self, request: str, tolerance: float, max_moves_per_s: float | None, deadline_s: float
    ) -> Rebalance:
        """See `Deployment.rebalance`; at no rate it only says what it would do."""
        deadline = Deadline.after(deadline_s)
        if max_moves_per_s is None:
            return self._keeping.rebalancer.planned(tolerance, deadline)
        with self._requests.turn_for(request, deadline, after_upgrades=True) as check:
            return self._keeping.rebalancer.run(tolerance, max_moves_per_s, deadline, check)

    def keep_even(self, tolerance: float | None, timeout: float) -> None:
        """See `Deployment.keep_even`."""
        with self._requests.turn_for("", Deadline.after(timeout)):
            self._keeping.wanted()
            self._keeping.decide_by(tolerance=tolerance)

    def cordon(self, pod: int, timeout: float) -> None:
        """See `Deployment.cordon`."""
        with self._requests.turn_for("", Deadline.after(timeout)):
            self._upkeep.known(pod)
            wanted = self._keeping.wanted()
            self._wishes.write(replace(wanted, cordons=wanted.cordons | {pod}))
            self._doing.take(self._upkeep.close([pod]))

    def uncordon(self, pod: int, timeout: float) -> None:
        """See `Deployment.uncordon`."""
        deadline = Deadline.after(timeout)
        with self._requests.turn_for("", deadline):
            found = self._upkeep.known(pod)
            wanted = self._keeping.wanted()
            self._wishes.write(replace(wanted, cordons=wanted.cordons - {pod}))
            self._doing.take(self._upkeep.open(pod))
            if found.state is RoutingState.SHUTDOWN and pod in wanted.indexes:
                renewing = self._upkeep.renew(pod, wanted.recipe, {}, deadline)
                self._doing.take(renewing)

    def begin_upgrade(self, recipe: str, how: Upgrade, timeout: float) -> None:
        """Have the service brought to the generation of that recipe: see `upgrade_progress`.

        It only answers if it has begun that before, and waits while another one is under way, or
        raises `RouteTimeoutError`. A recipe of which nothing comes is let go.
        """
        self._upgrades.begin(recipe, how, Deadline.after(timeout))
        self._looks.wake()

    @ray.method(concurrency_group=STATUS_GROUP)
    def upgrade_progress(self, request: str) -> UpgradeProgress | None:
        """Say how far an upgrade has come; None if none is known by that request."""
        return self._keeping.upgrading.progress(request) if self._upgrades.knows(request) else None

    @ray.method(concurrency_group=CONTROL_GROUP)
    def shutdown(self, grace_s: float) -> None:
        """Stop all pods, forget the service, and end; what is under way is given up.

        The shortest grace that anybody has asked for counts. A look may have ended all by the time
        that the turn comes.
        """
        shortest_s = self._requests.end(grace_s)
        had = self._turn.lock.acquire(timeout=_MAKE_WAY_S)
        try:
            self._keeping.finish(shortest_s)
            self._looks.wake()
        finally:
            if had:
                self._turn.lock.release()
