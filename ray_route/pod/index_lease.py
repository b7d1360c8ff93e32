"""An agent's hold on its index: claims it, renews it, and claims it anew when it is lost.

Each claim begins an incarnation, with admissions and a command_loop of its own.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

import ray

from ray_route.clock import Deadline, now
from ray_route.errors import RouteError, StoreUnavailableError
from ray_route.model import Life, RoutingState
from ray_route.pod.admission import Admissions, PodLease
from ray_route.pod.command_loop import CommandLoop, Hook
from ray_route.pod.gate import Gate
from ray_route.runtime.metrics import POD_FENCINGS, meter
from ray_route.runtime.namespace import Namespace
from ray_route.runtime.process_ids import identify
from ray_route.runtime.waiting import run
from ray_route.store.pods import Identity, PodCalls, parse_table

# An agent's records have one name, which its users filter by.
logger = logging.getLogger("ray_route.pod.agent")

CLAIM_S = 30.0
_STOP_S = 5.0
_CLAIM_RETRY_S = 0.25
_ASK_S = 2.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Hooks:
    """The user's code that hears of uids and of the end of an incarnation."""

    on_acquire: Hook | None
    on_release: Hook | None
    on_lost: Callable[[], None] | None


class IndexLease:
    """Holds an index of a service, incarnation after incarnation.

    `index` is None until one is claimed, unless it is fixed; `gate` is None until then.
    """

    def __init__(
        self,
        service: str,
        pod: int | None,
        *,
        actor: str,
        hooks: Hooks,
        load: Callable[[], float],
    ) -> None:
        # Read in every call, so no properties.
        self.index = pod
        self.gate: Gate | None = None
        self._floats = pod is None
        self._service = service
        self._actor = actor
        self._hooks = hooks
        self._load = load
        self._state = RoutingState.READY
        self._seq = 0  # of the record, as told last
        self._command_loop: CommandLoop | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="ray_route-agent", daemon=True)

    @property
    def state(self) -> RoutingState:
        """What this pod accepts; a drain changes it too."""
        command_loop = self._command_loop
        if command_loop is not None and command_loop.state is RoutingState.SHUTDOWN:
            return RoutingState.SHUTDOWN
        return self._state

    @state.setter
    def state(self, state: RoutingState) -> None:
        self._state = state

    def begin(self, namespace: Namespace, deadline: Deadline) -> None:
        """Claim an index, and renew it by heartbeat from then on.

        Raises `RouteTimeoutError` if it is not to be had by the deadline.
        """
        self._namespace = namespace
        self._calls = PodCalls(namespace.keys)
        self._process = identify()
        self._logger = self._logger_of(self.index)
        self._claim(deadline)
        self._thread.start()
        self._ask_router("records", self._service)

    def begin_anew(self, state: RoutingState, deadline: Deadline) -> None:
        """End this incarnation and begin another, in that state."""
        self._resign()
        self._state = state
        self._claim(deadline)
        self._ask_router("records", self._service)

    def _logger_of(self, pod: int | None) -> logging.LoggerAdapter[logging.Logger]:
        ids = {"namespace": self._namespace.name, "service": self._service, "pod": pod}
        return logging.LoggerAdapter(logger, ids)

    def _claim(self, deadline: Deadline) -> None:
        while not self._stopping.is_set():
            index, status, wait_ms = self._try_to_claim()
            if status == b"ok":
                return
            if status == b"unsealed":
                deadline.check("the router to write back what Redis has lost")
                self._ask_router("recover", {})
            else:
                deadline.check(f"the present owner of pod {index} of {self._service} to end")
                # A crashed owner need not be waited for: the router looks for its process.
                self._ask_router("look_for", self._service, index)
            self._stopping.wait(min(_CLAIM_RETRY_S, wait_ms / 1000))

    def _try_to_claim(self) -> tuple[int, bytes, int]:
        """Begin a life, or return an index, why it was refused, and the ms to wait."""
        for index in self._free_indexes():
            asked_at = now()
            who = Identity(self._service, index, self._process, self._namespace.node, self._actor)
            call = self._calls.claim(who, self._state)
            status, number, *told = self._namespace.store.one(call)
            if status == b"ok":
                self._seq = int(told[0])
                self._become(who, int(number), asked_at)
            elif status == b"held" and self._floats:
                continue
            return index, status, int(number)
        raise AssertionError("there is always an index to try")

    def _free_indexes(self) -> Iterable[int]:
        """Return the indexes to try to claim: the fixed one, or all that are free, own ones first.

        Others may take one of these meanwhile: the claim itself decides.
        """
        if self.index is not None and not self._floats:
            return [self.index]
        table = parse_table(self._namespace.store.one(self._calls.table(self._service)))
        alive = {record.pod: record.process for record in table if record.life is Life.ALIVE}
        own = [pod for pod, process in alive.items() if process == self._process]
        return chain(own, (pod for pod in count() if pod not in alive))

    def _become(self, who: Identity, incarnation: int, asked_at: float) -> None:
        if who.pod != self.index:
            self.gate = None  # of another index
        self.index, self._who = who.pod, who
        self._logger = self._logger_of(who.pod)
        self._serve(PodLease(incarnation, self._namespace.config.pod_lease_s, asked_at))
        self._logger.info("pod %d of %s is incarnation %d", who.pod, self._service, incarnation)

    def _serve(self, lease: PodLease) -> None:
        """Serve under a new incarnation; take commands for it, and for the one before no more."""
        pod = self._who.pod
        admissions = Admissions(pod, lease)
        if self._command_loop is not None:
            self._command_loop.end()
        if self.gate is None:
            hook = self._hooks.on_acquire
            self.gate = Gate(self._namespace, self._service, pod, admissions, hook)
        self.gate.admissions = self._serving = admissions
        self._command_loop = CommandLoop(
            self._namespace, self._service, pod, admissions, self._hooks.on_release
        )

    def _ask_router(self, method: str, *args: Any) -> None:
        """Have the router look now; if it can't, it will by itself within a heartbeat."""
        with contextlib.suppress(RouteError, ray.exceptions.RayError):
            run(self._namespace.ask(method, *args), Deadline.after(_ASK_S))

    def _beat(self) -> None:
        while not self._stopping.wait(self._namespace.config.heartbeat_s):
            try:
                self._renew()
            except RouteError as error:
                self._logger.warning(
                    "pod %d of %s could not renew: %s", self.index, self._service, error
                )
            except Exception:
                self._logger.exception("pod %d of %s could not renew", self.index, self._service)

    def _renew(self) -> None:
        lease = self._serving.lease
        asked_at = now()
        if not lease.is_alive():
            self._lost("its lease ran out before it was renewed")
            return
        call = self._calls.renew(
            self._who, lease.incarnation, self._load(), self.state, self._seq, lapsed=False
        )
        status, *told = self._namespace.store.one(call)
        if status != b"ok":
            lease.end()
            self._lost(f"the directory says {status.decode()}")
            return
        self._seq = int(told[0])
        if not lease.renewed(asked_at):
            self._lost("its renewal came too late")

    def _lost(self, why: str) -> None:
        self._logger.warning("pod %d of %s is fenced: %s", self.index, self._service, why)
        meter(self._namespace.name).count(POD_FENCINGS, self._service, str(self.index))
        if self._command_loop is not None:
            self._command_loop.end()
        if self._hooks.on_lost is not None:
            self._stopping.set()
            self._hooks.on_lost()
            return
        self._serving.wait_idle(Deadline.after(_STOP_S))
        self.release_all()
        self._state = RoutingState.READY
        self._claim_until_stopped()

    def _claim_until_stopped(self) -> None:
        while not self._stopping.is_set():
            try:
                self._claim(Deadline.after(CLAIM_S))
            except RouteError as error:
                self._logger.warning(
                    "pod %d of %s can't claim: %s", self.index, self._service, error
                )
                self._stopping.wait(self._namespace.config.heartbeat_s)
            else:
                return

    def release_all(self) -> None:
        """Tell the user's code once of every uid that is no longer this pod's."""
        for uid in self._serving.forget_all():
            if self._hooks.on_release is not None:
                try:
                    self._hooks.on_release(uid)
                except Exception:
                    self._logger.exception("on_release(%r) failed", uid)

    def stop_renewing(self) -> None:
        """Renew and claim no more."""
        self._stopping.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(_STOP_S)

    def end(self) -> None:
        """Admit nothing more, let running calls end, and give the index back if it was claimed."""
        if self._command_loop is None:
            return
        self._serving.close()
        self._serving.wait_idle(Deadline.after(_STOP_S))
        self._serving.lease.end()
        self._command_loop.end()
        self._resign_patiently()
        self._ask_router("records", self._service)

    def _resign_patiently(self) -> None:
        """Give the index back; a store that is just coming back gets a few seconds."""
        deadline = Deadline.after(_STOP_S)
        while True:
            try:
                self._resign()
            except StoreUnavailableError:
                if not deadline.remaining():
                    raise
                time.sleep(_POLL_S)
            else:
                return

    def _resign(self) -> None:
        incarnation = self._serving.lease.incarnation
        self._namespace.store.one(self._calls.resign(self._who, incarnation))
