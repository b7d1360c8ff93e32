"""The pod's side: claims an index, keeps its lease, and admits only calls it owns.

One `PodAgent` per pod, in the pod's own process. It puts one small command per heartbeat on
Redis, and one read per uid at its first call and whenever that uid's lease has run out.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, count
from typing import Any

import ray

from ray_route import telemetry
from ray_route.clock import Deadline, now
from ray_route.errors import (
    InvalidInputError,
    PodUnavailableError,
    RouteError,
    StoreUnavailableError,
)
from ray_route.gateway import Gateway, resolve_url
from ray_route.metrics import POD_FENCINGS, POD_RUNNING_CALLS, POD_UIDS, meter
from ray_route.model import (
    DrainProgress,
    Life,
    Link,
    RoutingState,
    check_name,
    check_pod,
    check_uid,
)
from ray_route.pod.admission import Admissions, Membership
from ray_route.pod.attendance import Attendance, Hook
from ray_route.pod.gate import Gate
from ray_route.processes import identify
from ray_route.steps import Pause, Steps, run
from ray_route.store.pods import Identity, PodCalls, parse_table
from ray_route.store.url import StoreUrl

logger = logging.getLogger(__name__)

DEFAULT_TIMEOUT_S = 30.0
_CLAIM_S = 30.0
_CLAIM_RETRY_S = 0.25
_ASK_S = 2.0
_STOP_S = 5.0
_POLL_S = 0.05
# The router gives up before its caller does, so that the caller hears why.
_OF_TIMEOUT = 0.8


class PodAgent:
    """A pod's membership in a service.

    Usable inside a `deploy()`ed pod (`ray_route.current_agent()`) and by hand in any Ray actor
    or process that has joined Ray.

    Args:
        namespace: where.
        service: whose pod this is.
        pod: the index to claim; None: the lowest that nobody holds.
        redis_url: as for `connect`.
        actor: name of the Ray actor (in Ray namespace `ray_route`) that callers reach it by.
        on_acquire: called with the uid before its first call under a new epoch.
        on_release: called with the uid after its last call here, before it is anyone else's;
            also when its link has ended unused.
        on_lost: called once when an incarnation ends against the agent's will (frozen for too
            long, declared gone). Without it the agent claims the index anew.
        cpu_factor: weight of running calls in the load, 0 to 1; the rest is the load state.
        options: of `RouteConfig`.

    """

    def __init__(
        self,
        namespace: str,
        service: str,
        pod: int | None,
        *,
        redis_url: str | StoreUrl | None = None,
        actor: str = "",
        on_acquire: Hook | None = None,
        on_release: Hook | None = None,
        on_lost: Callable[[], None] | None = None,
        cpu_factor: float = 0.0,
        **options: Any,
    ) -> None:
        self.namespace = check_name("namespace", namespace)
        self.service = check_name("service", service)
        self._index = pod if pod is None else check_pod(pod)
        self._floats = pod is None
        if not 0 <= cpu_factor <= 1:
            raise InvalidInputError(
                argument="cpu_factor", value=cpu_factor, reason="must be between 0 and 1"
            )
        self._logger = self._logger_of(pod)
        self._redis_url = redis_url
        self._actor = actor
        self._on_acquire = on_acquire
        self._on_release = on_release
        self._on_lost = on_lost
        self._cpu_factor = cpu_factor
        self._options = options
        self._meter = meter(namespace)
        self._load_state: float | None = None
        self._state = RoutingState.READY
        self._stopping = threading.Event()
        self._gateway_or_none: Gateway | None = None
        self._gate: Gate | None = None
        self._attendance: Attendance | None = None
        self._thread = threading.Thread(target=self._beat, name="ray_route-agent", daemon=True)

    # Membership.

    def start(self, timeout: float = _CLAIM_S) -> PodAgent:
        """Claim the index and begin to renew it.

        Waits for a previous owner's lease to end. Raises `RouteTimeoutError` if that takes
        longer than `timeout` seconds, and what `connect` raises.
        """
        deadline = Deadline.after(timeout)
        url = resolve_url(self._redis_url, deadline)
        gateway = Gateway(self.namespace, url, self._options, deadline)
        self._gateway_or_none = gateway
        self._calls = PodCalls(gateway.keys)
        self._process = identify()
        self._claim(deadline)
        self._measure()
        self._thread.start()
        self._ask_router("records", self.service)
        return self

    def _logger_of(self, pod: int | None) -> logging.LoggerAdapter[logging.Logger]:
        ids = {"namespace": self.namespace, "service": self.service, "pod": pod}
        return logging.LoggerAdapter(logger, ids)

    def _measure(self) -> None:
        me = (self.service, str(self.pod))
        self._meter.watch(POD_UIDS, lambda: [(me, len(self._serving))], me)
        self._meter.watch(POD_RUNNING_CALLS, lambda: [(me, self._serving.running)], me)
        telemetry.start()

    @property
    def _gateway(self) -> Gateway:
        if self._gateway_or_none is None:
            raise self._unavailable("its agent has not been started")
        return self._gateway_or_none

    @property
    def pod(self) -> int:
        """The index; raises `PodUnavailableError` while one that floats has none."""
        if self._index is None:
            raise self._unavailable("it has not claimed an index")
        return self._index

    @property
    def gate(self) -> Gate:
        """Where calls enter; raises `PodUnavailableError` before `start`."""
        if self._gate is None:
            raise self._unavailable("its agent has not been started")
        return self._gate

    @property
    def _serving(self) -> Admissions:
        return self.gate.admissions

    @property
    def incarnation(self) -> int:
        """The number of this life."""
        return self._serving.membership.incarnation

    def _claim(self, deadline: Deadline) -> None:
        while not self._stopping.is_set():
            index, status, wait_ms = self._try_to_claim()
            if status == b"ok":
                return
            if status == b"unsealed":
                deadline.check("the router to write back what Redis has lost")
                self._ask_router("recover", {})
            else:
                deadline.check(f"the lease of the present owner of pod {index} of {self.service}")
                # A crashed owner need not be waited for: the router looks for its process.
                self._ask_router("look_for", self.service, index)
            self._stopping.wait(min(_CLAIM_RETRY_S, wait_ms / 1000))

    def _try_to_claim(self) -> tuple[int, bytes, int]:
        """Begin a life, or return an index, why it was refused, and the ms to wait."""
        for index in self._free_indexes():
            asked_at = now()
            who = Identity(self.service, index, self._process, self._gateway.node, self._actor)
            call = self._calls.claim(who, self._gateway.config.pod_lease_s, self._state)
            status, number = self._gateway.store.one(call)
            if status == b"ok":
                self._become(who, int(number), asked_at)
            elif status == b"held" and self._floats:
                continue
            return index, status, int(number)
        raise AssertionError("there is always an index to try")

    def _free_indexes(self) -> Iterable[int]:
        """Return the indexes to try to claim: the fixed one, or all that are free, own ones first.

        Others may take one of these meanwhile: the claim itself decides.
        """
        if self._index is not None and not self._floats:
            return [self._index]
        table = parse_table(self._gateway.store.one(self._calls.table(self.service)))
        alive = {record.pod: record.process for record in table if record.life is Life.ALIVE}
        own = [pod for pod, process in alive.items() if process == self._process]
        return chain(own, (pod for pod in count() if pod not in alive))

    def _become(self, who: Identity, incarnation: int, asked_at: float) -> None:
        if who.pod != self._index:
            self._gate = None  # of another index
        self._index, self._who = who.pod, who
        self._logger = self._logger_of(who.pod)
        self._begin(incarnation, asked_at)

    def _begin(self, incarnation: int, asked_at: float) -> None:
        """Serve under a new incarnation; take orders for it, and for the one before no more."""
        membership = Membership(incarnation, self._gateway.config.pod_lease_s, asked_at)
        admissions = Admissions(self.pod, membership)
        if self._attendance is not None:
            self._attendance.end()
        if self._gate is None:
            self._gate = Gate(self._gateway, self.service, self.pod, admissions, self._on_acquire)
        self._gate.admissions = admissions
        self._attendance = Attendance(
            self._gateway, self.service, self.pod, admissions, self._on_release
        )
        self._logger.info("pod %d of %s is incarnation %d", self.pod, self.service, incarnation)

    def _ask_router(self, method: str, *args: Any) -> None:
        """Have the router look now; if it can't, it will by itself within a heartbeat."""
        with contextlib.suppress(RouteError, ray.exceptions.RayError):
            run(self._gateway.ask(method, *args), Deadline.after(_ASK_S))

    def stop(self) -> None:
        """Admit nothing more, let running calls end (5 s), and give the index back at once."""
        self._stopping.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(_STOP_S)
        if self._gateway_or_none is None:
            return
        self._meter.forget(POD_UIDS, POD_RUNNING_CALLS, owner=(self.service, str(self.pod)))
        admissions = None if self._gate is None else self._gate.admissions
        if admissions is not None:
            admissions.close()
            admissions.wait_idle(Deadline.after(_STOP_S))
            admissions.membership.end()
        if self._attendance is not None:
            self._attendance.end()
        try:
            if admissions is not None:
                self._resign(admissions.membership.incarnation)
                self._ask_router("records", self.service)
        finally:
            self._gateway.close()

    def _resign(self, incarnation: int) -> None:
        """Give the index back; a store that is just coming back gets a few seconds."""
        deadline = Deadline.after(_STOP_S)
        while True:
            try:
                self._gateway.store.one(self._calls.resign(self._who, incarnation))
            except StoreUnavailableError:
                if not deadline.remaining():
                    raise
                time.sleep(_POLL_S)
            else:
                return

    def drain(self, deadline_s: float) -> DrainProgress:
        """Move all uids away, within so many seconds; return how far that came.

        For a process that is asked to end. Raises what asking the router raises.
        """
        deadline = Deadline.after(deadline_s)
        for_router = max(deadline_s - _STOP_S, deadline_s / 2)  # it answers before we give up
        begin = self._gateway.ask("drain", self.service, self.pod, for_router, go_on=False)
        run(begin, deadline)
        while True:
            asked = self._gateway.ask("drain_progress", self.service, self.pod)
            progress: DrainProgress | None = run(asked, deadline)
            if progress is not None and progress.done:
                return progress
            run(_pause(f"the drain of pod {self.pod} of {self.service}"), deadline)

    def _beat(self) -> None:
        while not self._stopping.wait(self._gateway.config.heartbeat_s):
            try:
                self._renew()
            except RouteError as error:
                self._logger.warning(
                    "pod %d of %s could not renew: %s", self.pod, self.service, error
                )
            except Exception:
                self._logger.exception("pod %d of %s could not renew", self.pod, self.service)

    def _renew(self) -> None:
        membership = self._serving.membership
        asked_at = now()
        if not membership.is_alive():
            self._lost("its lease ran out before it was renewed")
            return
        load = self.get_load_state()
        call = self._calls.renew(self._who, membership.incarnation, load, self.get_routing_state())
        status = self._gateway.store.one(call)
        if status != b"ok":
            membership.end()
            self._lost(f"the directory says {status.decode()}")
        elif not membership.renewed(asked_at):
            self._lost("its renewal came too late")

    def _lost(self, why: str) -> None:
        self._logger.warning("pod %d of %s is fenced: %s", self.pod, self.service, why)
        self._meter.count(POD_FENCINGS, self.service, str(self.pod))
        if self._attendance is not None:
            self._attendance.end()
        if self._on_lost is not None:
            self._stopping.set()
            self._on_lost()
            return
        serving = self._serving
        serving.wait_idle(Deadline.after(_STOP_S))
        self._release_all(serving)
        self._state = RoutingState.READY
        while not self._stopping.is_set():
            try:
                self._claim(Deadline.after(_CLAIM_S))
            except RouteError as error:
                self._logger.warning("pod %d of %s can't claim: %s", self.pod, self.service, error)
                self._stopping.wait(self._gateway.config.heartbeat_s)
            else:
                return

    def _release_all(self, serving: Admissions) -> None:
        """Tell the user's code once of every uid that is no longer this pod's."""
        for uid in serving.forget_all():
            if self._on_release is not None:
                try:
                    self._on_release(uid)
                except Exception:
                    self._logger.exception("on_release(%r) failed", uid)

    # Load and routing state.

    def set_load_state(self, load: float | None) -> None:
        """Report this load, in units of one uid, from the next heartbeat on.

        None returns to the default: the number of uids that this incarnation holds. Raises
        `InvalidInputError` for what is no finite number from 0 on.
        """
        if load is not None:
            try:
                load = float(load)
            except (TypeError, ValueError):
                load = math.nan
            if not (math.isfinite(load) and load >= 0):
                raise InvalidInputError(
                    argument="load", value=load, reason="must be a finite number from 0 on"
                )
        self._load_state = load

    def get_load_state(self) -> float:
        """Return the weighted load: cpu_factor * running + (1 - cpu_factor) * load state."""
        state = float(len(self._serving)) if self._load_state is None else self._load_state
        return self._cpu_factor * self._serving.running + (1 - self._cpu_factor) * state

    def set_routing_state(
        self, state: RoutingState | str, *, timeout: float = DEFAULT_TIMEOUT_S
    ) -> None:
        """Set what this pod accepts; returns when no placement made before is under way.

        `SHUTDOWN` refuses all calls, lets the running ones end and releases every uid; then the
        pod's links go to others at their next touch. To move them one by one: drain. It is the
        end of this incarnation: to take part again, the agent claims its index anew.
        """
        wanted = _routing_state(state)
        deadline = Deadline.after(timeout)
        if wanted is RoutingState.SHUTDOWN:
            self._shut(deadline)
        elif self.get_routing_state() is RoutingState.SHUTDOWN:
            call = self._calls.resign(self._who, self.incarnation)
            self._gateway.store.one(call)
            self._state = wanted
            self._claim(deadline)
            self._ask_router("records", self.service)
            return
        args = (self.service, self.pod, self.incarnation, wanted)
        run(self._gateway.ask("set_state", *args), deadline)
        self._state = wanted

    def _shut(self, deadline: Deadline) -> None:
        serving = self._serving
        serving.close()
        if not serving.wait_idle(deadline):
            serving.open()
            deadline.check("the calls that run on this pod")
        serving.shut()
        self._release_all(serving)

    def get_routing_state(self) -> RoutingState:
        """Return what this pod accepts; a drain changes it too."""
        attendance = self._attendance
        if attendance is not None and attendance.state is RoutingState.SHUTDOWN:
            return RoutingState.SHUTDOWN
        return self._state

    # Links. All are written by the router, by way of their present owner if that is alive.

    def set_linked_pod(
        self,
        uid: str,
        pod: int | None = None,
        persistent: bool = True,  # noqa: FBT001, FBT002 - the API's own signature
        *,
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> Link:
        """Link a uid to `pod` (None: this one), whoever holds it.

        A living owner gives it up first: its calls end, its `on_release` runs. Never call this
        for a uid from within a call for that uid: it would wait for itself. Raises
        `PodUnavailableError` if the owner keeps it or the target takes none.
        """
        target = self._target(uid, pod)
        asked = self._gateway.ask(
            "set_link",
            self.service,
            uid,
            target,
            persistent=persistent,
            timeout_s=_OF_TIMEOUT * timeout,
        )
        link: Link = run(asked, Deadline.after(timeout))
        return link

    def try_set_linked_pod(
        self,
        uid: str,
        pod: int | None = None,
        persistent: bool = True,  # noqa: FBT001, FBT002 - the API's own signature
        *,
        steal: bool = False,
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> tuple[bool, Link]:
        """Link a uid to `pod` (None: this one) unless another living pod holds it.

        Returns whether it is linked there now, and the link that holds. With `steal` a living
        owner gives it up first.
        """
        target = self._target(uid, pod)
        asked = self._gateway.ask(
            "try_set_link",
            self.service,
            uid,
            target,
            persistent=persistent,
            steal=steal,
            timeout_s=_OF_TIMEOUT * timeout,
        )
        outcome: tuple[bool, Link] = run(asked, Deadline.after(timeout))
        return outcome

    def remove_linked_pod(
        self, uid: str, after_s: float = 0, *, timeout: float = DEFAULT_TIMEOUT_S
    ) -> bool:
        """Remove a uid's link, whoever holds it, now or after some seconds; say if there was one.

        A later removal is never undone by use, only by setting the link anew.
        """
        return self._remove(uid, None, after_s, timeout)

    def remove_linked_pod_with_id(
        self, uid: str, pod: int, after_s: float = 0, *, timeout: float = DEFAULT_TIMEOUT_S
    ) -> bool:
        """Do the same, but only if `pod` holds it."""
        return self._remove(uid, check_pod(pod), after_s, timeout)

    def _remove(self, uid: str, pod: int | None, after_s: float, timeout: float) -> bool:
        check_uid(uid)
        if isinstance(after_s, bool) or not isinstance(after_s, (int, float)) or not after_s >= 0:
            raise InvalidInputError(
                argument="after_s", value=after_s, reason="must be a number of seconds from 0 on"
            )
        asked = self._gateway.ask(
            "remove_link", self.service, uid, pod, after_s=after_s, timeout_s=_OF_TIMEOUT * timeout
        )
        removed: bool = run(asked, Deadline.after(timeout))
        return removed

    def _target(self, uid: str, pod: int | None) -> int:
        check_uid(uid)
        return self.pod if pod is None else check_pod(pod)

    # Admission.

    def use(self, links: Mapping[str, Link]) -> None:
        """Count uids as held and used here, whose calls some other way brings to this pod.

        For services whose calls are not admitted one by one: the uids make up the pod's load,
        and their links live on; unused ones are given up after `ttl_s`. Links of other lives,
        and those that have been released, are passed over.
        """
        self._serving.use(links, self._gateway.config.ttl_s)

    def admit(self, uid: str, epoch: int, incarnation: int) -> None:
        """Return if this pod owns the uid under that epoch now; run `on_acquire` if it is new.

        Raises `FencedError` if it does not, `StoreUnavailableError` if that can't be confirmed.
        The user's code must not run in either case. `serving` also covers the time that it runs.
        """
        self.gate.enter(uid, epoch, incarnation).leave(uid)

    @contextlib.contextmanager
    def serving(self, uid: str, epoch: int, incarnation: int) -> Iterator[None]:
        """Admit a call for as long as it runs, and check again before its result may leave.

        Raises what `admit` raises, before; `FencedError` with `may_have_run` after, if the uid
        was lost meanwhile. While it runs, a release of the uid waits.
        """
        admissions = self.gate.enter(uid, epoch, incarnation)
        try:
            yield
            self.gate.recheck(admissions, uid, epoch)
        finally:
            admissions.leave(uid)

    def _unavailable(self, reason: str) -> PodUnavailableError:
        return PodUnavailableError(
            reason=reason,
            may_have_run=False,
            namespace=self.namespace,
            service=self.service,
            pod=self._index,
        )


def _pause(what: str) -> Steps[None]:
    yield Pause(_POLL_S, what)


def _routing_state(state: RoutingState | str) -> RoutingState:
    try:
        return RoutingState(state)
    except ValueError as error:
        raise InvalidInputError(
            argument="state", value=state, reason="must be READY, DENY_NEW or SHUTDOWN"
        ) from error
