"""An agent's lease of its index: claims it, has it renewed by heartbeat, gives it back.

A life that was ended by others is over: the pod ends, or claims its index anew, with nothing.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass

from ray_route.clock import Deadline
from ray_route.errors import PodUnavailableError, RayGoneError, RouteError
from ray_route.model import RoutingState
from ray_route.pod.agent_log import logger_of
from ray_route.pod.hooks import Hooks
from ray_route.pod.incarnations import Incarnations
from ray_route.pod.lease_renewal import LeaseRenewal
from ray_route.pod.own_record import Claimed, OwnRecord
from ray_route.pod.pod_lease import PodLease
from ray_route.runtime.namespace import Namespace

CLAIM_S = 30.0
_STOP_S = 5.0
_CLAIM_RETRY_S = 0.25
_RESUME_RETRY_S = 0.25
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class OfPod:
    """What the agent of a deployed pod does in its own way.

    `may_claim` says whether this process is to be a pod: callers that know its name reach it, and
    nobody has ended it before it began. One that is not claims nothing, and ends.
    """

    hooks: Hooks
    on_lapse: Callable[[], None] | None
    on_end: Callable[[], None]
    may_claim: Callable[[], bool]


class IndexLease:
    """Holds an index of a service, incarnation after incarnation.

    `index` is None until one is claimed, unless it is fixed; `serving` is None until then.
    `on_lapse` is called when the lease lapses, `on_end` when a life was ended by others; without
    `on_end` the index is claimed anew. Nothing is claimed unless `may_claim`: else `on_end` is
    called.
    """

    def __init__(
        self,
        service: str,
        pod: int | None,
        *,
        actor: str,
        hooks: Hooks,
        load: Callable[[], float],
        on_lapse: Callable[[], None] | None = None,
        on_end: Callable[[], None] | None = None,
        may_claim: Callable[[], bool] = lambda: True,
    ) -> None:
        # Read in every call, so no properties.
        self.index = pod
        self.serving: Incarnations | None = None
        self._fixed = pod
        self._service = service
        self._actor = actor
        self._hooks = hooks
        self._load = load
        self._on_lapse = on_lapse
        self._on_end = on_end
        self._may_claim = may_claim
        self._state = RoutingState.READY
        self._leaving = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="ray_route-agent", daemon=True)

    @property
    def state(self) -> RoutingState:
        """What this pod accepts; a drain changes it too."""
        if self.serving is not None and self.serving.commands.state is RoutingState.SHUTDOWN:
            return RoutingState.SHUTDOWN
        return self._state

    @state.setter
    def state(self, state: RoutingState) -> None:
        self._state = state

    @property
    def stopping(self) -> bool:
        """True once it has been told to claim no more."""
        return self._leaving.is_set()

    # Claiming.

    def begin(self, namespace: Namespace, deadline: Deadline) -> None:
        """Claim an index, and renew it by heartbeat from then on.

        Raises `RouteTimeoutError` if it is not to be had by the deadline.
        """
        self._namespace = namespace
        self._record = OwnRecord(namespace, self._service, self._actor)
        self._logger = logger_of(namespace.name, self._service, self.index)
        self._claim(deadline)
        if self.stopping:
            return
        self._thread.start()
        self._record.ask_router("records", self._service)

    def begin_anew(self, state: RoutingState, deadline: Deadline) -> None:
        """End this incarnation and begin another, in that state."""
        self._record.resign(self._serving.address)
        self._state = state
        self._claim(deadline)
        self._record.ask_router("records", self._service)

    def _claim(self, deadline: Deadline) -> None:
        while not self._leaving.is_set():
            if not self._may_claim():
                self._end_unwanted()
                return
            answer = self._record.claim(self._fixed, self._state)
            if isinstance(answer, Claimed):
                self._become(answer)
                return
            if answer.unsealed:
                deadline.check("the router to write back what Redis has lost")
                self._record.ask_router("recover", {})
            else:
                deadline.check(f"the present owner of pod {answer.pod} of {self._service} to end")
                # A crashed owner need not be waited for: the router looks for its process.
                self._record.ask_router("look_for", self._service, answer.pod)
            self._leaving.wait(min(_CLAIM_RETRY_S, answer.wait_s))

    def _end_unwanted(self) -> None:
        """Claim nothing any more: callers that know this pod's name don't, or won't, reach it."""
        self._logger.error(
            "actor %s is another process than this pod %s of %s, or was ended: this ends",
            *(self._actor, self.index, self._service),
        )
        self._leaving.set()
        self._stopping.set()
        if self._on_end is not None:
            self._on_end()

    def _become(self, claimed: Claimed) -> None:
        index, incarnation = claimed.pod, claimed.incarnation
        namespace = self._namespace
        lease = PodLease(incarnation, namespace.config.pod_lease_s, claimed.asked_at)
        self.index = index
        self._logger = logger_of(namespace.name, self._service, index)
        if self.serving is None:
            serving = Incarnations(namespace, self._service, index, lease, self._hooks)
            self._renewal = LeaseRenewal(
                *(namespace, self._record, serving), self._load, self._stopping, self._on_lapse
            )
            self.serving = serving
        else:
            self.serving.begin(index, lease)
        self._renewal.begin(claimed)
        self._logger.info("pod %d of %s is incarnation %d", index, self._service, incarnation)

    @property
    def _serving(self) -> Incarnations:
        if self.serving is None:
            raise PodUnavailableError(
                reason="it has not claimed an index", may_have_run=False, service=self._service
            )
        return self.serving

    # Renewing.

    def _beat(self) -> None:
        failing = False
        while not self._stopping.wait(self._pause_s()):
            try:
                self._namespace.check_here()
                if why := self._renewal.renew(self.state):
                    self._life_ended(why)
                failing = False
            except RayGoneError as error:
                self._run_out(error)
                return
            except RouteError as error:
                self._renewal.look_for_lapse()
                facts = (self.index, self._service, error)
                level = logging.DEBUG if failing else logging.WARNING  # once for an outage
                self._logger.log(level, "pod %s of %s could not renew: %s", *facts)
                failing = True
            except Exception:  # without this thread nobody renews, and nothing resumes
                self._logger.exception("pod %s of %s could not renew", self.index, self._service)

    def _run_out(self, error: RayGoneError) -> None:
        """Let the lease run out and claim no more: no router reaches this process any longer.

        To renew for ever would keep its uids from all others. One that just ends says nothing.
        """
        self._leaving.set()
        while self._serving.held.lease.serves() and not self._stopping.wait(_POLL_S):
            pass
        if not self._stopping.is_set():
            self._life_ended(f"it renews no more, since {error}")

    def _pause_s(self) -> float:
        if not self._renewal.lapsed:
            return self._namespace.config.heartbeat_s
        # Sooner, and not all pods at once: a store that is back has been waited for by all.
        return min(_RESUME_RETRY_S, self._namespace.config.heartbeat_s) * random.uniform(0.5, 1.5)  # noqa: S311 - no secret

    def _life_ended(self, why: str) -> None:
        """Begin anew, with nothing: others may own what this life held."""
        self._logger.warning("the life of pod %s of %s is over: %s", self.index, self._service, why)
        self._serving.lose_all(Deadline.after(_STOP_S))
        if self._on_end is not None:
            self._stopping.set()
            self._on_end()
            return
        self._state = RoutingState.READY
        self._claim_until_stopped()

    def _claim_until_stopped(self) -> None:
        while not self._leaving.is_set():
            try:
                self._claim(Deadline.after(CLAIM_S))
            except RouteError as error:
                self._logger.warning(
                    "pod %s of %s can't claim: %s", self.index, self._service, error
                )
                self._leaving.wait(self._namespace.config.heartbeat_s)
            else:
                return

    # Ending.

    def stop_claiming(self) -> None:
        """Claim no index any more; one that is held is kept until `leave`."""
        self._leaving.set()

    def leave(self, deadline: Deadline) -> list[str]:
        """Release every uid, admit nothing more, and give the index back if it was claimed.

        A pod whose lease has lapsed tries to resume first; else what it holds is lost, unsaved.
        Returns the uids that could not be released in time.
        """
        left: list[str] = []
        self._leaving.set()
        if self.serving is not None:
            resume = Deadline.after(deadline.remaining() / 2)
            while self._renewal.lapsed and self._thread.is_alive() and resume.remaining():
                self._stopping.wait(_POLL_S)
            if self._renewal.lapsed:
                self.serving.lose_all(deadline)
            else:
                left = self.serving.release_all(deadline)
        self._stopping.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(_STOP_S)
        if self.serving is not None:
            self.serving.end()
            self._record.resign_patiently(self._serving.address)
            self._record.ask_router("records", self._service)
        return left
