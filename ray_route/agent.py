"""The pod's side: claims an index, keeps its lease, and admits only calls it owns.

One `PodAgent` per pod, in the pod's own process. It puts one small command per heartbeat on
Redis, and one read per uid at its first call and whenever that uid's lease has run out.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import ray

from ray_route.admission import Admissions, Membership, Verdict
from ray_route.clock import Deadline, now
from ray_route.errors import (
    FencedError,
    InvalidInputError,
    PodUnavailableError,
    RouteError,
    StoreUnavailableError,
)
from ray_route.gateway import Gateway, resolve_url
from ray_route.model import Link, RoutingState, check_name, check_pod
from ray_route.processes import identify
from ray_route.steps import run
from ray_route.store.pods import Identity, PodCalls
from ray_route.store.url import StoreUrl

logger = logging.getLogger(__name__)

_CLAIM_S = 30.0
_CLAIM_RETRY_S = 0.25
_ASK_S = 2.0
_STOP_S = 5.0

Hook = Callable[[str], Any]


class PodAgent:
    """A pod's membership in a service.

    Usable inside a `deploy()`ed pod and by hand in any Ray actor or process that has joined Ray.

    Args:
        namespace, service, pod: what to claim.
        redis_url: as for `connect`.
        actor: name of the Ray actor (in Ray namespace `ray_route`) that callers reach it by.
        on_acquire: called with the uid before its first call under a new epoch.
        on_lost: called once when an incarnation ends against the agent's will (frozen for too
            long, declared gone). Without it the agent claims the index anew.
        cpu_factor: weight of waiting calls in the load; the rest is the load state.

    """

    def __init__(
        self,
        namespace: str,
        service: str,
        pod: int,
        *,
        redis_url: str | StoreUrl | None = None,
        actor: str = "",
        on_acquire: Hook | None = None,
        on_lost: Callable[[], None] | None = None,
        cpu_factor: float = 0.0,
        **options: Any,
    ) -> None:
        self.namespace = check_name("namespace", namespace)
        self.service = check_name("service", service)
        self.pod = check_pod(pod)
        if not 0 <= cpu_factor <= 1:
            raise InvalidInputError(
                argument="cpu_factor", value=cpu_factor, reason="must be between 0 and 1"
            )
        self._redis_url = redis_url
        self._actor = actor
        self._on_acquire = on_acquire
        self._on_lost = on_lost
        self._cpu_factor = cpu_factor
        self._options = options
        self._load_state: float | None = None
        self._state = RoutingState.READY
        self._running = 0
        self._stopping = threading.Event()
        self._acquiring: dict[tuple[str, int], Future[None]] = {}
        self._seen: dict[int, int] = {}
        self._lock = threading.Lock()
        self._gateway: Gateway | None = None
        self._admissions: Admissions | None = None
        self._thread = threading.Thread(target=self._beat, name="ray_route-agent", daemon=True)

    # Membership.

    def start(self, timeout: float = _CLAIM_S) -> PodAgent:
        """Claim the index and begin to renew it.

        Waits for a previous owner's lease to end. Raises `RouteTimeoutError` if that takes
        longer than `timeout` seconds, and what `connect` raises.
        """
        deadline = Deadline.after(timeout)
        url = resolve_url(self._redis_url, deadline)
        self._gateway = Gateway(self.namespace, url, self._options, deadline)
        self._calls = PodCalls(self._gateway.keys)
        self._who = Identity(self.service, self.pod, identify(), self._gateway.node, self._actor)
        self._claim(deadline)
        self._thread.start()
        return self

    def _claim(self, deadline: Deadline) -> None:
        assert self._gateway is not None
        lease_s = self._gateway.config.pod_lease_s
        while True:
            asked_at = now()
            call = self._calls.claim(self._who, lease_s, self._state)
            status, number = self._gateway.store.one(call)
            if status == b"ok":
                membership = Membership(int(number), lease_s, asked_at)
                self._admissions = Admissions(self.pod, membership)
                logger.info("pod %d of %s is incarnation %s", self.pod, self.service, int(number))
                self._tell_router("records", self.service)
                return
            deadline.check(f"the lease of the present owner of pod {self.pod} of {self.service}")
            # A crashed owner need not be waited for: the router looks for its process.
            self._tell_router("look_for", self.service, self.pod)
            self._stopping.wait(min(_CLAIM_RETRY_S, int(number) / 1000))

    def _tell_router(self, method: str, *args: Any) -> None:
        """Have the router look now; if it can't, it will by itself within a heartbeat."""
        assert self._gateway is not None
        with contextlib.suppress(RouteError, ray.exceptions.RayError):
            run(self._gateway.ask(method, *args), Deadline.after(_ASK_S))

    def stop(self) -> None:
        """Refuse everything from now on, and give the index back at once."""
        self._stopping.set()
        admissions, gateway = self._admissions, self._gateway
        if admissions is None or gateway is None:
            return
        admissions.membership.end()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(_STOP_S)
        gateway.store.one(self._calls.resign(self._who, admissions.membership.incarnation))
        self._tell_router("records", self.service)
        gateway.close()

    def _beat(self) -> None:
        assert self._gateway is not None
        while not self._stopping.wait(self._gateway.config.heartbeat_s):
            try:
                self._renew()
            except RouteError as error:
                logger.warning("pod %d of %s could not renew: %s", self.pod, self.service, error)

    def _renew(self) -> None:
        assert self._gateway is not None
        membership = self._serving.membership
        asked_at = now()
        if not membership.is_alive():
            self._lost("its lease ran out before it was renewed")
            return
        call = self._calls.renew(
            self._who, membership.incarnation, self.get_load_state(), self._state
        )
        status = self._gateway.store.one(call)
        if status != b"ok":
            membership.end()
            self._lost(f"the directory says {status.decode()}")
        elif not membership.renewed(asked_at):
            self._lost("its renewal came too late")

    def _lost(self, why: str) -> None:
        logger.warning("pod %d of %s is fenced: %s", self.pod, self.service, why)
        if self._on_lost is not None:
            self._stopping.set()
            self._on_lost()
        else:
            self._claim(Deadline.after(_CLAIM_S))

    @property
    def _serving(self) -> Admissions:
        if self._admissions is None:
            raise PodUnavailableError(
                reason="its agent has not been started",
                may_have_run=False,
                namespace=self.namespace,
                service=self.service,
                pod=self.pod,
            )
        return self._admissions

    @property
    def incarnation(self) -> int:
        """The number of this life."""
        return self._serving.membership.incarnation

    # Load.

    def set_load_state(self, load: float | None) -> None:
        """Report this load, in units of one uid, from the next heartbeat on.

        None returns to the default: the number of uids admitted by this incarnation.
        """
        self._load_state = load

    def get_load_state(self) -> float:
        """Return the weighted load: cpu_factor * waiting + (1 - cpu_factor) * load state."""
        state = float(len(self._serving)) if self._load_state is None else self._load_state
        return self._cpu_factor * self._running + (1 - self._cpu_factor) * state

    def get_routing_state(self) -> RoutingState:
        """Return what this pod accepts."""
        return self._state

    # Admission.

    def admit(self, uid: str, epoch: int, incarnation: int) -> None:
        """Return if this pod owns the uid under that epoch now; run `on_acquire` if it is new.

        Raises `FencedError` if it does not, `StoreUnavailableError` if that can't be confirmed.
        The user's code must not run in either case.
        """
        while True:
            verdict, reason = self._serving.check(uid, epoch, incarnation)
            if verdict is Verdict.ADMIT:
                return
            if verdict is Verdict.REFUSE:
                raise self._fenced(uid, epoch, reason, may_have_run=False)
            self._confirm_once(uid, epoch)

    def admits_now(self, uid: str, epoch: int, incarnation: int) -> bool:
        """True if `admit` would return without asking Redis; never blocks."""
        return self._serving.check(uid, epoch, incarnation)[0] is Verdict.ADMIT

    def recheck(self, uid: str, epoch: int) -> None:
        """Return if the uid is still owned after its call has run; else raise `FencedError`."""
        try:
            self.admit(uid, epoch, self.incarnation)
        except RouteError as error:
            reason = getattr(error, "reason", str(error))
            raise self._fenced(uid, epoch, reason, may_have_run=True) from error

    def _confirm_once(self, uid: str, epoch: int) -> None:
        """Confirm a uid's link from Redis; callers of the same uid wait for the first one."""
        mine: Future[None] = Future()
        with self._lock:
            first = self._acquiring.setdefault((uid, epoch), mine)
        if first is not mine:
            first.result(_CLAIM_S)
            return
        try:
            self._confirm(uid, epoch)
        except BaseException as error:
            mine.set_exception(error)
            raise
        else:
            mine.set_result(None)
        finally:
            with self._lock:
                del self._acquiring[uid, epoch]

    def _confirm(self, uid: str, epoch: int) -> None:
        serving = self._serving
        asked_at = now()
        link = self._read(uid)
        reason = serving.judge(epoch, link)
        if not reason and link is not None:
            if serving.is_new(uid, epoch) and self._on_acquire is not None:
                self._on_acquire(uid)
            reason = serving.hold(uid, epoch, asked_at + link.lease_s)
        if reason:
            raise self._fenced(uid, epoch, reason, may_have_run=False)

    def _read(self, uid: str) -> Link | None:
        assert self._gateway is not None
        gateway = self._gateway
        shard = gateway.keys.shard(uid)
        call = gateway.links.read(self._seen.get(shard, 0), shard, [(self.service, uid)])
        reply = gateway.links.parse(gateway.store.one(call))
        if reply.status != "ok":
            raise StoreUnavailableError(
                address=gateway.url.address, reason=f"it has lost writes to shard {shard}"
            )
        self._seen[shard] = reply.counter
        return reply.links[0]

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Count a call as waiting while it runs."""
        with self._lock:
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1

    def _fenced(self, uid: str, epoch: int, reason: str, *, may_have_run: bool) -> FencedError:
        return FencedError(
            reason=reason,
            may_have_run=may_have_run,
            namespace=self.namespace,
            service=self.service,
            uid=uid,
            pod=self.pod,
            epoch=epoch,
        )
