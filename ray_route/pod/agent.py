"""The pod's side: claims an index, keeps its lease, and admits only calls it owns.

One `PodAgent` per pod, in the pod's own process. It puts one small command per heartbeat on
Redis, and one read per uid at its first call and whenever that uid's lease has run out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ray_route.clock import Deadline
from ray_route.errors import FencedError, PodUnavailableError, RouteError
from ray_route.model import (
    DrainProgress,
    Link,
    RoutingState,
    check_duration,
    check_name,
    check_pod,
    check_routing_state,
)
from ray_route.pod.agent_gauges import AgentGauges
from ray_route.pod.current_link import current_link
from ray_route.pod.gate import Gate
from ray_route.pod.holdings import Holdings
from ray_route.pod.hooks import Hook, Hooks
from ray_route.pod.incarnations import Incarnations
from ray_route.pod.index_lease import CLAIM_S, IndexLease, OfPod
from ray_route.pod.joining import Joiner
from ray_route.pod.link_writes import LinkWrites
from ray_route.pod.load_state import LoadState, checked_load
from ray_route.pod.own_drain import drain_itself
from ray_route.pod.surely_left import surely_left
from ray_route.pod.uid_loads import UidLoads
from ray_route.runtime import telemetry
from ray_route.runtime.metrics import meter
from ray_route.runtime.namespace import Namespace, namespace_within
from ray_route.runtime.waiting import Operation, run
from ray_route.store.url import StoreUrl

DEFAULT_TIMEOUT_S = 30.0
STOP_S = 5.0


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
        on_uid_lost: called with a uid that is another's already, or nobody's: nothing of it is to
            be saved.
        on_lost: called once when an incarnation was ended by others (its process was thought
            dead, or it was silent for its whole lease). Without it the agent claims the index
            anew, with nothing.
        release_s: how long `on_release` may take; None: as long as it takes. What is over the
            limit is logged and counted, and waited for: it can't be ended.
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
        on_uid_lost: Hook | None = None,
        on_lost: Callable[[], None] | None = None,
        release_s: float | None = None,
        cpu_factor: float = 0.0,
        _of_pod: OfPod | None = None,
        **options: Any,
    ) -> None:
        self.namespace = check_name("namespace", namespace)
        self.service = check_name("service", service)
        if release_s is not None:
            check_duration("release_s", release_s)
        own = Hooks(on_acquire, on_release, on_uid_lost, release_s=release_s)
        self._index_lease = IndexLease(
            service,
            pod if pod is None else check_pod(pod),
            actor=actor,
            hooks=_of_pod.hooks if _of_pod else own,
            load=self.get_load_state,
            on_lapse=_of_pod.on_lapse if _of_pod else None,
            on_end=_of_pod.on_end if _of_pod else on_lost,
            **({"may_claim": _of_pod.may_claim} if _of_pod else {}),
        )
        self._redis_url = redis_url
        self._load = LoadState(cpu_factor)
        self._options = options
        self._gauges = AgentGauges(
            meter(namespace), service, pod=lambda: self.pod, held=lambda: self._held
        )
        self._namespace_or_none: Namespace | None = None
        self._joiner: Joiner | None = None
        self._links = LinkWrites(service, self._ask, lambda: self.pod)

    def _ask(self, method: str, *args: Any, **kwargs: Any) -> Operation[Any]:
        return self._namespace.ask(method, *args, **kwargs)

    # Membership.

    def start(self, timeout: float = CLAIM_S) -> PodAgent:
        """Claim the index and begin to renew it.

        Waits until a previous owner has resigned or is declared gone. Raises `RouteTimeoutError`
        if that takes longer than `timeout` seconds, and what `connect` raises; then it may be
        called again.
        """
        deadline = Deadline.after(timeout)
        if self._namespace_or_none is None:
            given = (self.namespace, self._redis_url, self._options)
            self._namespace_or_none = namespace_within(deadline, *given)
        self._index_lease.begin(self._namespace, deadline)
        self._gauges.begin()
        telemetry.start()
        return self

    def join_in_background(self) -> None:
        """Begin to `start` in a thread, again and again until that succeeds; return at once.

        Until then calls are refused with `FencedError`, `problem` says what is in the way, and
        `stop` ends it.
        """
        self._joiner = Joiner(self._join, f"a pod of {self.service}")
        self._joiner.begin()

    def _join(self) -> None:
        self.start()
        if self._index_lease.stopping:  # told while it was claiming: what it claimed is not kept
            self._index_lease.leave(Deadline.after(0))

    @property
    def joined(self) -> bool:
        """True once it has claimed its index."""
        return self._index_lease.serving is not None

    @property
    def problem(self) -> RouteError | None:
        """Why the last attempt to join in the background failed; None once it has joined."""
        return self._joiner.problem if self._joiner is not None else None

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
        """Where calls enter.

        Before `start` raises `PodUnavailableError`, and while it joins in the background
        `FencedError`: what a caller followed here is the link of an earlier life.
        """
        return self._serving.gate

    def _not_joined(self) -> RouteError:
        if self._joiner is None:
            return self._unavailable("its agent has not been started")
        return FencedError(
            reason=f"the pod has not joined its service yet: {self.problem or 'it is starting'}",
            may_have_run=False,
            namespace=self.namespace,
            service=self.service,
            pod=self._index_lease.index,
        )

    @property
    def _serving(self) -> Incarnations:
        serving = self._index_lease.serving
        if serving is None:
            raise self._not_joined()
        return serving

    @property
    def _held(self) -> Holdings:
        return self._serving.held

    @property
    def incarnation(self) -> int:
        """The number of this life."""
        return self._held.lease.incarnation

    def stop(self, grace_s: float = STOP_S) -> list[str]:
        """Release every uid, with its hook, and give the index back.

        Calls that run may end meanwhile, and others are refused when the time runs out. Returns
        the uids that could not be released within `grace_s` seconds; they are logged and counted.
        """
        deadline = Deadline.after(grace_s)
        if self._joiner is not None:
            self._joiner.stop()
        self._index_lease.stop_claiming()
        if self._joiner is not None:
            self._joiner.wait(deadline.remaining())
        if self._namespace_or_none is None:
            self._index_lease.leave(deadline)
            return []
        self._gauges.end()
        try:
            return self._index_lease.leave(deadline)
        finally:
            self._namespace.close()

    def drain(self, deadline_s: float) -> DrainProgress:
        """Move all uids away, within so many seconds; return how far that came.

        For a process that is asked to end. Raises what asking the router raises.
        """
        return drain_itself(self._namespace, self.service, self.pod, deadline_s)

    # Load and routing state.

    def set_load_state(self, load: float | None) -> None:
        """Report this load, in units of one uid, from the next heartbeat on.

        None returns to the default: the number of uids that this incarnation holds. Raises
        `InvalidInputError` for what is no finite number from 0 on.
        """
        self._load.report(load)

    def set_uid_load(self, uid: str, load: float | None) -> None:
        """Report the load of one uid that this pod serves, in units of one uid, until it leaves.

        By that uids are rebalanced, not placed. None returns to the default: how long its calls
        take. Raises `InvalidInputError` for a uid that is not here, or no finite number from 0 on.
        """
        UidLoads(self._held).report(uid, checked_load(load))

    def get_load_state(self) -> float:
        """Return the weighted load: cpu_factor * running + (1 - cpu_factor) * load state."""
        return self._load.weighted(len(self._held), self._held.running)

    def set_routing_state(
        self, state: RoutingState | str, *, timeout: float = DEFAULT_TIMEOUT_S
    ) -> None:
        """Set what this pod accepts; returns when no placement made before is under way.

        `SHUTDOWN` refuses all calls, lets the running ones end and releases every uid; then the
        pod's links go to others at their next touch. To move them one by one: drain. It is the
        end of this incarnation: to take part again, the agent claims its index anew.
        """
        wanted = check_routing_state(state)
        deadline = Deadline.after(timeout)
        if wanted is RoutingState.SHUTDOWN:
            self._serving.shut(deadline)
        elif self.get_routing_state() is RoutingState.SHUTDOWN:
            self._index_lease.begin_anew(wanted, deadline)
            return
        args = (self.service, self.pod, self.incarnation, wanted)
        run(self._namespace.ask("set_state", *args), deadline)
        self._index_lease.state = wanted

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
        return self._links.set(uid, pod, timeout, persistent=persistent)

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
        return self._links.try_set(uid, pod, timeout, persistent=persistent, steal=steal)

    def remove_linked_pod(
        self, uid: str, after_s: float = 0, *, timeout: float = DEFAULT_TIMEOUT_S
    ) -> bool:
        """Remove a uid's link, whoever holds it, now or after some seconds; say if there was one.

        A later removal is never undone by use, only by setting the link anew.
        """
        return self._links.remove(uid, None, timeout, after_s=after_s)

    def remove_linked_pod_with_id(
        self, uid: str, pod: int, after_s: float = 0, *, timeout: float = DEFAULT_TIMEOUT_S
    ) -> bool:
        """Do the same, but only if `pod` holds it."""
        return self._links.remove(uid, check_pod(pod), timeout, after_s=after_s)

    # Admission.

    def use(self, links: Mapping[str, Link]) -> None:
        """Count uids as held and used here, whose calls some other way brings to this pod.

        For services whose calls are not admitted one by one: the uids make up the pod's load,
        and their links live on; unused ones are given up after two thirds of `ttl_s`. Links of
        other lives, and those that have been released, are passed over.
        """
        self.gate.admission.use(links, self._namespace.config.ttl_s)

    def admit(self, uid: str, epoch: int, incarnation: int) -> None:
        """Return if this pod owns the uid under that epoch now; run `on_acquire` if it is new.

        Raises `FencedError` if it does not, `StoreUnavailableError` if that can't be confirmed.
        The user's code must not run in either case. `serving` also covers the time that it runs.

        Within a call that this pod serves it waits until that call's caller gives up, and then
        raises `RouteTimeoutError`: where calls run one at a time, `on_acquire` of another uid
        waits for that very call.
        """
        call = object()
        with surely_left(self, uid, call):
            self.gate.enter(uid, epoch, incarnation, call, due=_due_here())
            self.gate.leave(uid, call)

    @contextlib.contextmanager
    def serving(self, uid: str, epoch: int, incarnation: int) -> Iterator[None]:
        """Admit a call for as long as it runs, and check again before its result may leave.

        Raises what `admit` raises, before; `FencedError` with `may_have_run` after, if the uid
        was lost meanwhile. While it runs, a release of the uid waits.
        """
        gate, call = self.gate, object()
        with surely_left(self, uid, call):
            gate.enter(uid, epoch, incarnation, call, due=_due_here())
            yield
            gate.recheck(uid, epoch)
            gate.leave(uid, call)

    def _unavailable(self, reason: str) -> PodUnavailableError:
        return PodUnavailableError(
            reason=reason,
            may_have_run=False,
            namespace=self.namespace,
            service=self.service,
            pod=self._index_lease.index,
        )


def _due_here() -> Deadline | None:
    """Return when the caller of the running call gives up, if there is one, and it says so."""
    serving = current_link()
    return None if serving is None else serving.deadline
