"""An agent's lease of its index: claims it, renews it, resumes it after a lapse.

A lease that was not renewed in time has lapsed: the pod serves nobody then, and keeps all that it
holds. It resumes the same incarnation when a renewal sent after the lapse succeeds, which proves
that nobody has ended its life, and the router vouches for it. A life that was ended is over.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass

from ray_route.clock import Deadline, now
from ray_route.errors import PodUnavailableError, RayGoneError, RouteError
from ray_route.model import RoutingState
from ray_route.pod import terms
from ray_route.pod.hooks import Hooks
from ray_route.pod.incarnations import Incarnations
from ray_route.pod.own_record import OwnRecord
from ray_route.pod.pod_lease import PodLease
from ray_route.protocol.commands import Word
from ray_route.runtime.metrics import POD_FENCINGS, meter
from ray_route.runtime.namespace import Namespace
from ray_route.runtime.waiting import run

# An agent's records have one name, which its users filter by.
logger = logging.getLogger("ray_route.pod.agent")

CLAIM_S = 30.0
_STOP_S = 5.0
_CLAIM_RETRY_S = 0.25
_RESUME_RETRY_S = 0.25
_ASK_S = 2.0
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
        self._floats = pod is None
        self._service = service
        self._actor = actor
        self._hooks = hooks
        self._load = load
        self._on_lapse = on_lapse
        self._on_end = on_end
        self._may_claim = may_claim
        self._state = RoutingState.READY
        self._lapsed = False
        self._seq = 0  # of the record, as told last
        self._under = 0  # the router in force at the last renewal that needed nobody's word
        self._heard = 0  # the youngest router heard of
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
        self._logger = self._logger_of(self.index)
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

    def _logger_of(self, pod: int | None) -> logging.LoggerAdapter[logging.Logger]:
        ids = {"namespace": self._namespace.name, "service": self._service, "pod": pod}
        return logging.LoggerAdapter(logger, ids)

    def _claim(self, deadline: Deadline) -> None:
        while not self._leaving.is_set():
            if not self._may_claim():
                self._end_unwanted()
                return
            index, status, wait_ms = self._try_to_claim()
            if status == b"ok":
                return
            if status == b"unsealed":
                deadline.check("the router to write back what Redis has lost")
                self._record.ask_router("recover", {})
            else:
                deadline.check(f"the present owner of pod {index} of {self._service} to end")
                # A crashed owner need not be waited for: the router looks for its process.
                self._record.ask_router("look_for", self._service, index)
            self._leaving.wait(min(_CLAIM_RETRY_S, wait_ms / 1000))

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

    def _try_to_claim(self) -> tuple[int, bytes, int]:
        """Begin a life, or return an index, why it was refused, and the ms to wait."""
        fixed = None if self._floats else self.index
        for index in self._record.free_indexes(fixed):
            asked_at = now()
            status, number, *told = self._record.claim(index, self._state)
            if status == b"ok":
                self._seq, self._under = int(told[0]), int(told[1])
                self._become(index, int(number), asked_at)
            elif status == b"held" and self._floats:
                continue
            return index, status, int(number)
        raise AssertionError("there is always an index to try")

    def _become(self, index: int, incarnation: int, asked_at: float) -> None:
        namespace = self._namespace
        lease = PodLease(incarnation, namespace.config.pod_lease_s, asked_at)
        self.index, self._lapsed = index, False
        self._heard = max(self._heard, self._under)
        self._logger = self._logger_of(index)
        if self.serving is None:
            self.serving = Incarnations(namespace, self._service, index, lease, self._hooks)
        else:
            self.serving.begin(index, lease)
        self._vouched(self._under)
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
                self._renew()
                failing = False
            except RayGoneError as error:
                self._run_out(error)
                return
            except RouteError as error:
                self._look_for_lapse()
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
        if not self._lapsed:
            return self._namespace.config.heartbeat_s
        # Sooner, and not all pods at once: a store that is back has been waited for by all.
        return min(_RESUME_RETRY_S, self._namespace.config.heartbeat_s) * random.uniform(0.5, 1.5)  # noqa: S311 - no secret

    def _look_for_lapse(self) -> None:
        if not self._lapsed and not self._serving.held.lease.serves():
            self._lapse("its lease ran out before it was renewed")

    def _renew(self) -> None:
        self._look_for_lapse()
        held = self._serving.held
        term, asked_at = held.term, now()
        status, *told = self._record.renew(
            self._serving.address, self._load(), self.state, self._seq, lapsed=self._lapsed
        )
        if status != b"ok":
            self._life_ended(f"the directory says {status.decode()}")
            return
        self._seq, router, was_lost = (int(each) for each in told)
        self._heard = max(self._heard, router, self._serving.commands.router)
        if self._lapsed:
            self._ask_to_resume(term, asked_at)
        elif was_lost and self._namespace.config.fast_failover:
            self._lapse("Redis had lost its record, and Ray may have called its actor dead")
        elif not terms.renew(held, asked_at):
            self._lapse("its renewal came too late")
        elif not was_lost:
            self._vouched(router)
        # Where Redis had lost the record, but the lease has not run out, this life goes on: nobody
        # can have ended it, since that takes a whole lease of silence by every router's clock, and
        # this pod has let less pass. But whoever was in force before is not there by this renewal,
        # so should the lease lapse next, only a router that knew the record of before may vouch.

    def _vouched(self, router: int) -> None:
        """Note which router was in force when this life was last beyond doubt."""
        self._under = self._serving.commands.under = router

    def _lapse(self, why: str) -> None:
        """Serve nobody, and keep all, until the router vouches for this life."""
        terms.lapse(self._serving.held)
        self._lapsed = True
        facts = (self.index, self._service, why)
        self._logger.warning("pod %s of %s serves nobody for now: %s", *facts)
        meter(self._namespace.name).count(POD_FENCINGS, self._service, str(self.index))
        if self._on_lapse is not None:
            self._stopping.set()
            self._on_lapse()

    def _ask_to_resume(self, term: int, asked_at: float) -> None:
        """Resume, if the router vouches for the renewal that was just sent, in this very lapse."""
        left_s = asked_at + 0.9 * self._namespace.config.pod_lease_s - now()
        held, address = self._serving.held, self._serving.address
        asked = self._namespace.ask("confirm_life", address, self._seq, self._under, self._heard)
        word, router = run(asked, Deadline.after(max(left_s, _POLL_S)))
        if word is Word.ENDED:
            self._life_ended("the router says that its life was ended")
        elif word is Word.SERVE and router >= self._heard and terms.resume(held, term, asked_at):
            self._lapsed = False
            self._vouched(router)
            self._logger.warning(
                "pod %s of %s serves again, with what it held", self.index, self._service
            )

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
            while self._lapsed and self._thread.is_alive() and resume.remaining():
                self._stopping.wait(_POLL_S)
            if self._lapsed:
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
