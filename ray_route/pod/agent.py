"""The pod's side: claims an index, keeps its lease, and admits only calls it owns.

One `PodAgent` per pod, in the pod's own process. It puts one small command per heartbeat on
Redis, and one read per uid at its first call and whenever that uid's lease has run out.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ray_route.clock import Deadline, shorter
from ray_route.errors import InvalidInputError, PodUnavailableError
from ray_route.model import DrainProgress, Link, RoutingState, check_name, check_pod, check_uid
from ray_route.pod.admission import Admissions
from ray_route.pod.command_loop import Hook
from ray_route.pod.gate import Gate
from ray_route.pod.index_lease import CLAIM_S, Hooks, IndexLease
from ray_route.runtime import telemetry
from ray_route.runtime.metrics import POD_RUNNING_CALLS, POD_UIDS, meter
from ray_route.runtime.namespace import Namespace, resolve_url
from ray_route.runtime.waiting import Operation, Pause, run
from ray_route.store.url import StoreUrl

DEFAULT_TIMEOUT_S = 30.0
_SOONER_S = 5.0
_POLL_S = 0.05


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
        self._index_lease = IndexLease(
            service,
            pod if pod is None else check_pod(pod),
            actor=actor,
            hooks=Hooks(on_acquire, on_release, on_lost),
            load=self.get_load_state,
        )
        if not 0 <= cpu_factor <= 1:
            raise InvalidInputError(
                argument="cpu_factor", value=cpu_factor, reason="must be between 0 and 1"
            )
        self._redis_url = redis_url
        self._cpu_factor = cpu_factor
        self._options = options
        self._meter = meter(namespace)
        self._load_state: float | None = None
        self._namespace_or_none: Namespace | None = None

    # Membership.

    def start(self, timeout: float = CLAIM_S) -> PodAgent:
        """Claim the index and begin to renew it.

        Waits for a previous owner's lease to end. Raises `RouteTimeoutError` if that takes
        longer than `timeout` seconds, and what `connect` raises.
        """
        deadline = Deadline.after(timeout)
        url = resolve_url(self._redis_url, deadline)
        namespace = Namespace(self.namespace, url, self._options, deadline)
        self._namespace_or_none = namespace
        self._index_lease.begin(namespace, deadline)
        self._measure()
        return self

    def _measure(self) -> None:
        me = self._me
        self._meter.gauge(POD_UIDS, lambda: [(self._labels(), len(self._serving))], me)
        self._meter.gauge(POD_RUNNING_CALLS, lambda: [(self._labels(), self._serving.running)], me)
        telemetry.start()

    @property
    def _me(self) -> tuple[str, str]:
        return self.service, str(id(self))

    def _labels(self) -> tuple[str, str]:
        return self.service, str(self.pod)  # one that floats may get another index

    @property
    def _namespace(self) -> Namespace:
        if self._namespace_or_none is None:
            raise self._unavailable("its agent has not been started")
        return self._namespace_or_none

    @property
    def pod(self) -> int:
        """The index; raises `PodUnavailableError` while one that floats has none."""
        index = self._index_lease.index
        if index is None:
            raise self._unavailable("it has not claimed an index")
        return index

    @property
    def gate(self) -> Gate:
        """Where calls enter; raises `PodUnavailableError` before `start`."""
        gate = self._index_lease.gate
        if gate is None:
            raise self._unavailable("its agent has not been started")
        return gate

    @property
    def _serving(self) -> Admissions:
        return self.gate.admissions

    @property
    def incarnation(self) -> int:
        """The number of this life."""
        return self._serving.lease.incarnation

    def stop(self) -> None:
        """Admit nothing more, let running calls end (5 s), and give the index back at once."""
        self._index_lease.stop_renewing()
        if self._namespace_or_none is None:
            return
        self._meter.forget(POD_UIDS, POD_RUNNING_CALLS, owner=self._me)
        try:
            self._index_lease.end()
        finally:
            self._namespace.close()

    def drain(self, deadline_s: float) -> DrainProgress:
        """Move all uids away, within so many seconds; return how far that came.

        For a process that is asked to end. Raises what asking the router raises.
        """
        deadline = Deadline.after(deadline_s)
        for_router = max(deadline_s - _SOONER_S, deadline_s / 2)  # it answers before we give up
        begin = self._namespace.ask("drain", self.service, self.pod, for_router, go_on=False)
        run(begin, deadline)
        while True:
            asked = self._namespace.ask("drain_progress", self.service, self.pod)
            progress: DrainProgress | None = run(asked, deadline)
            if progress is not None and progress.done:
                return progress
            run(_pause(f"the drain of pod {self.pod} of {self.service}"), deadline)

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
            self._index_lease.begin_anew(wanted, deadline)
            return
        args = (self.service, self.pod, self.incarnation, wanted)
        run(self._namespace.ask("set_state", *args), deadline)
        self._index_lease.state = wanted

    def _shut(self, deadline: Deadline) -> None:
        serving = self._serving
        serving.close()
        if not serving.wait_idle(deadline):
            serving.open()
            deadline.check("the calls that run on this pod")
        serving.shut()
        self._index_lease.release_all()

    def get_routing_state(self) -> RoutingState:
        """Return what this pod accepts; a drain changes it too."""
        return self._index_lease.state

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
        asked = self._namespace.ask(
            "set_link",
            self.service,
            uid,
            target,
            persistent=persistent,
            timeout_s=shorter(timeout),
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
        asked = self._namespace.ask(
            "try_set_link",
            self.service,
            uid,
            target,
            persistent=persistent,
            steal=steal,
            timeout_s=shorter(timeout),
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
        asked = self._namespace.ask(
            "remove_link", self.service, uid, pod, after_s=after_s, timeout_s=shorter(timeout)
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
        self._serving.use(links, self._namespace.config.ttl_s)

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
            pod=self._index_lease.index,
        )


def _pause(what: str) -> Operation[None]:
    yield Pause(_POLL_S, what)


def _routing_state(state: RoutingState | str) -> RoutingState:
    try:
        return RoutingState(state)
    except ValueError as error:
        raise InvalidInputError(
            argument="state", value=state, reason="must be READY, DENY_NEW or SHUTDOWN"
        ) from error
