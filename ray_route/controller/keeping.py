"""What a controller does by itself, at every look: it brings what is there to what is wanted."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from typing import Any

from ray_route.clock import Deadline
from ray_route.controller.autoscaling import Autoscaler
from ray_route.controller.doing import Doing, StoppedError
from ray_route.controller.evenness import Evenness
from ray_route.controller.figures import Figures
from ray_route.controller.healing import Healing
from ray_route.controller.marks import BEGUN, forget, grace_of, note_begun, note_end, noted
from ray_route.controller.rebalancing import Rebalancer
from ray_route.controller.recipe import Recipe
from ray_route.controller.recipes import end_holders
from ray_route.controller.scaling import Scaling
from ray_route.controller.starts import Starts
from ray_route.controller.strays import Strays
from ray_route.controller.upgrading import Upgrading
from ray_route.controller.upkeep import Upkeep
from ray_route.controller.wishes import DeposedError, Wishes
from ray_route.errors import (
    CallCancelledError,
    ClosedError,
    RouteError,
    RouterUnavailableError,
    RouteTimeoutError,
    StoreUnavailableError,
)
from ray_route.model import RoutingState
from ray_route.pod.stopping import stop
from ray_route.policies import Autoscale
from ray_route.protocol.names import controller_name
from ray_route.runtime.waiting import Check, no_check
from ray_route.store.wanted import Wanted

logger = logging.getLogger(__name__)

# What an upgrade waits for to pass, and its service's end.
_NO_FAULT_OF_IT = (StoreUnavailableError, RouterUnavailableError, ClosedError)
# So often an upgrade may meet what nobody foresaw before it turns back.
_SURPRISES = 3
_PROBE_S = 5.0


class Keeping:
    """Keeps one service as its controller wants it; who calls holds the controller's turn."""

    def __init__(self, recipe: Recipe, upkeep: Upkeep, wishes: Wishes, patience_s: float) -> None:
        spec = recipe.spec
        self._namespace, self._service = spec.namespace, spec.service
        self._name = controller_name(spec.namespace, spec.service)
        self._upkeep = upkeep
        self._wishes = wishes
        self.autoscaler = Autoscaler(upkeep, wishes)
        self._begin_by = Deadline.after(patience_s)
        self._is_taken_up = False
        self._left: frozenset[int] = frozenset()
        """Pods that an earlier life was told to end, and which may be there yet."""
        self._surprises = 0
        """How often in a row an upgrade has met what is no `RouteError`."""
        self.done = False
        """True once the service has been ended."""
        self.figures = Figures(recipe)
        self.doing = Doing(spec.service, self.figures.facts)
        self._starts = Starts(spec.service, self.figures)
        self._healing = Healing(upkeep, wishes, self._starts, self.figures, self.doing)
        self._strays = Strays(upkeep)
        self.scaling = Scaling(upkeep, wishes, self._healing, self.doing)
        self.rebalancer = Rebalancer(upkeep, spec.service, self.doing.say, self.figures)
        self.evenness = Evenness(self.rebalancer)
        self.upgrading = Upgrading(upkeep, wishes, self.figures)
        self._log = logging.LoggerAdapter(logger, self.figures.facts)

    def problems(self) -> dict[int, str]:
        """Return what kept pods that are wanted from starting, by index."""
        wanted = self._wishes.wanted
        indexes = wanted.indexes if wanted else ()
        return self._starts.problems(indexes)

    def finish(self, grace_s: float) -> None:
        """End the service. Redis is told first and last, if it answers: pods end in any case.

        A second time it does nothing: nothing is noted anew of a controller that was forgotten.
        """
        if self.done:
            return
        note_end(self._wishes.actor, grace_s)
        self._finish_noted(grace_s)

    def _finish_noted(self, grace_s: float) -> None:
        """Do so once that is noted: not anew, its noter may have killed this and forgotten it."""
        self.doing.say("end the service")
        with contextlib.suppress(RouteError):
            if self._wishes.wanted is not None:
                self._wishes.write(replace(self._wishes.wanted, ended=True))
        while named := self._upkeep.named():  # a maker may be at it still
            self._wishes.check_name()
            stop(list(named.values()), grace_s)
        with contextlib.suppress(RouteError):
            self._wishes.forget()
        end_holders(self._namespace, self._service)
        forget(self._wishes.actor)
        self.done = True

    def look(
        self,
        check: Check = no_check,
        gives_way: Check = no_check,
        *,
        grace_s: float | None = None,
    ) -> None:
        """Look at what is there, and do what is missing; raise `DeposedError`, `RouteError`.

        `check` raises what ends an upgrade that is under way; `gives_way` raises `StoppedError`
        once there is something else to be done than what nobody has asked for just now. `grace_s`
        is how long pods have once the service's end was asked for: whoever asked waits for his turn
        then, or has failed.
        """
        noted_s = grace_of(noted(self._wishes.actor))
        if noted_s is not None:  # whoever asked for that has failed half-way, or has died
            self._finish_noted(noted_s)
            return
        if grace_s is not None:
            self.finish(grace_s)
            return
        self.take_up()
        if self.done:
            return
        self._wishes.keep()
        if self._wishes.wanted is not None:
            self._keep(self._wishes.wanted, check, gives_way)
        elif not self._begin_by.remaining():
            self._log.warning("nobody has finished the deployment of %s: it ends", self._service)
            self.finish(0.0)

    def take_up(self) -> None:
        """Take up, once, what an earlier life of this controller has left.

        What Redis has of that may be lost, or of yesterday. So no pod with users is ended on its
        word: what was begun has as many pods as are wanted or there, whichever is more. Nothing is
        to be done with `Wishes.wanted` before.
        """
        if self._is_taken_up:
            return
        mark = noted(self._wishes.actor)
        grace_s = grace_of(mark)
        if grace_s is not None:
            self._finish_noted(grace_s)
        else:
            self._wishes.claim()
        if not self.done and (mark == BEGUN or self._wishes.wanted is not None):
            wanted = self._wishes.wanted or Wanted(1, self._name)
            if wanted.upgrade is None:
                before = frozenset(wanted.indexes)
                wanted = wanted.including(self._upkeep.named())
                if self._wishes.is_held:
                    self._left = frozenset(wanted.indexes) - before
            self._wishes.write(wanted)
            if mark != BEGUN:  # an earlier life has died just before it noted that
                note_begun(self._wishes.actor)
        self._is_taken_up = True

    def wanted(self) -> Wanted:
        """Return what is wanted, once that is taken up.

        Raises `ClosedError` if nothing is, or if the service has been ended.
        """
        self.take_up()
        self._wishes.claim()
        if self._wishes.wanted is None or self.done:
            raise ClosedError(what=f"service {self._service!r}, which was never whole")
        return self._wishes.wanted

    def begin(self, replicas: int, autoscale: Autoscale | None, tolerance: float | None) -> None:
        """Keep the service so from now on."""
        wanted = Wanted(replicas, self._name, autoscale=autoscale, tolerance=tolerance)
        self._wishes.change(wanted)
        note_begun(self._wishes.actor)

    def decide_by(self, **policy: Any) -> None:
        """Change a policy: a field of what is wanted that outlives Redis, too."""
        wanted = self._wishes.wanted
        assert wanted is not None
        changed = replace(wanted, **policy)
        if changed != wanted:
            self._wishes.change(replace(changed, step=wanted.step + 1))

    def _keep(self, wanted: Wanted, check: Check, gives_way: Check) -> None:
        self._starts.forget_all_but(wanted.indexes)
        self._starts.hear()
        if wanted.upgrade is not None:
            self.autoscaler.forget()
            if self.upgrading.is_due:
                self._upgrade(check)
            return
        self._settle_scale_in(wanted)
        self.doing.take(self._healing.steps())
        self.doing.take(self._strays.steps(wanted, self._healing.meanwhile(gives_way)))
        if wanted.cordons:
            self.doing.take(self._upkeep.close(wanted.cordons))
        if wanted.autoscale is not None:
            self._autoscale(gives_way)
        if wanted.tolerance is not None and self.evenness.is_due:
            self._even_out(wanted, wanted.tolerance, gives_way)

    def _autoscale(self, check: Check) -> None:
        """Scale the service by its load; a pod that could not be left is wanted as before."""
        before = self._wishes.wanted
        assert before is not None
        healing = self._healing.meanwhile(check)
        try:
            self.doing.take(self.autoscaler.steps(self.problems(), healing), check)
        except (DeposedError, ClosedError):
            raise
        except Exception as error:
            if self._wishes.wanted != before:
                self.scaling.want_what_is_there(before)
            if not isinstance(error, StoppedError):
                self.autoscaler.forget()
                raise
            self._log.info("service %s: %s", self._service, error)
        self.doing.take(self._healing.steps(anew=False))

    def _even_out(self, wanted: Wanted, tolerance: float, check: Check) -> None:
        """Even loads out, as far as nothing else is to be done."""
        if wanted != self._wishes.wanted or not self._is_whole(wanted):
            self.evenness.forget()
            return
        try:
            self.evenness.look(tolerance, check)
        except StoppedError as error:
            self._log.info("service %s: %s", self._service, error)

    def _is_whole(self, wanted: Wanted) -> bool:
        """True if all pods that are wanted serve, and no others are there."""
        alive = self._upkeep.alive().items()
        serving = {index for index, pod in alive if pod.state is not RoutingState.SHUTDOWN}
        return serving == set(wanted.indexes) and not self._starts.under_way

    def _settle_scale_in(self, wanted: Wanted) -> None:
        """Settle what an earlier life has left of a scale-in whose caller does not ask again.

        Pods that were drained have no users, and are ended. One that is being drained goes on to
        serve.
        """
        if not self._left:
            return
        alive = self._upkeep.alive()
        shut = {index for index, it in alive.items() if it.state is RoutingState.SHUTDOWN}
        drained = sorted(self._left & shut)
        if drained:
            self._wishes.write(wanted.of(set(wanted.indexes) - set(drained)))
        for index in drained:
            self.doing.take(self._upkeep.end_drained(index, alive[index]))
        self.doing.take(self._upkeep.stop_drains(self._left - shut))
        self._left = frozenset()

    def _upgrade(self, check: Check) -> None:
        """Go on with an upgrade, or its way back; what stops it in its course turns it back."""
        try:
            self.doing.take(self.upgrading.steps(check, self._healing.meanwhile(check)), check)
        except (*_NO_FAULT_OF_IT, DeposedError):
            raise
        except CallCancelledError as error:
            self.upgrading.stopped(error)
        except RouteError as error:
            self._probe()
            self.upgrading.stopped(error)
        except Exception as error:
            self._surprises += 1
            if self._surprises < _SURPRISES:
                raise
            self._log.exception("the upgrade of %s meets what nobody foresaw", self._service)
            self.upgrading.stopped(self.upgrading.unforeseen(error))
        self._surprises = 0

    def _probe(self) -> None:
        """Raise what an upgrade waits for to pass: without a store and a router all fails."""
        self._wishes.check()
        try:
            self._upkeep.pods(_PROBE_S)
        except RouteTimeoutError as error:
            raise RouterUnavailableError(reason=str(error), service=self._service) from error
