"""What anyone may do with a service that is deployed, from any process."""

from __future__ import annotations

import inspect
import math
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ray_route.client import operations
from ray_route.client.base import DRAIN_S
from ray_route.client.session import Session
from ray_route.client.sync_client import RouteClient
from ray_route.clock import Deadline, shorter
from ray_route.controller.handle import ControllerHandle
from ray_route.controller.recipe import Given
from ray_route.errors import ClosedError, InvalidInputError
from ray_route.model import (
    DrainProgress,
    Pod,
    Rebalance,
    ServiceStatus,
    UpgradeProgress,
    check_duration,
    check_pod,
)
from ray_route.notebook import facts
from ray_route.pod.instances import StateStore
from ray_route.pod.options import no_class
from ray_route.pod.stopping import GRACE_S, STOP_S
from ray_route.policies import check_at_least_one, check_tolerance, sized
from ray_route.runtime.waiting import run
from ray_route.store.wanted import Upgrade

DEPLOY_S = 60.0
"""How long what is asked of a service may take, in seconds, unless its caller says otherwise."""
# So long after its deadline a rebalancing has answered.
_LATE_S = 60.0
_LEAST_S = 0.1


class Deployment:
    """A deployed service, as any process may hold it: see `get_deployment`.

    The pods are detached, and so is their controller, which keeps the service as it is wanted: they
    outlive this object and its process, until `shutdown`. Then this raises `ClosedError`, also if
    another process has shut the service down, and `RayGoneError` once this process has left its
    Ray.
    """

    def __init__(
        self, session: Session, service: str, controller: ControllerHandle | None = None
    ) -> None:
        self.namespace = session.namespace.name
        self.service = service
        self._client = RouteClient(session)
        check_here = session.namespace.check_here
        self._controller = controller or ControllerHandle(self.namespace, service, check_here)

    def __repr__(self) -> str:
        return f"Deployment(namespace={self.namespace!r}, service={self.service!r})"

    def _repr_html_(self) -> str:
        about = {"namespace": self.namespace, "service": self.service}
        return facts("Deployment", {**about, "closed": self._client.closed})

    @property
    def _session(self) -> Session:
        if self._client.closed:
            raise ClosedError(what=repr(self), namespace=self.namespace, service=self.service)
        return self._client._session

    def _ask(self, deadline: Deadline, method: str, *args: Any) -> Any:
        self._session  # noqa: B018 - raises once this is closed
        return run(self._controller.ask(method, *args), deadline)

    def pods(self, timeout: float = DEPLOY_S) -> dict[int, Pod]:
        """Return all pods of the service, dead ones included, by index."""
        return run(operations.pods(self._session, self.service), Deadline.after(timeout))

    def status(self, timeout: float = DEPLOY_S) -> ServiceStatus:
        """Return what is wanted, what the controller is doing, and what is in the way."""
        asked: ServiceStatus = self._ask(Deadline.after(timeout), "status")
        return asked

    def scale(
        self,
        replicas: int | tuple[int, int],
        deadline_s: float = DRAIN_S,
        timeout: float = DEPLOY_S,
        *,
        target_uids: float | None = None,
        target_load: float | None = None,
        down_s: float | None = None,
    ) -> None:
        """Add pods, which moves no uid, or drain and end those of the highest indexes.

        Afterwards so many are alive, and no others: those of indexes from 0 on, or after an
        `upgrade` from another one, without those that autoscaling has left out. Missing ones and
        those that were drained before are made first, within `timeout` seconds; only when they
        serve are others drained.

        With `(min, max)` and a target the number is left to the load from then on, as by `deploy`:
        this returns once `min` of them serve. A plain number ends that.

        Callers that scale one service at once do so one after the other. What has begun is brought
        to its end also if this process dies.

        Raises `PodUnavailableError` if a pod could not be drained within `deadline_s` seconds (it
        and those below it stay), `PodStartError` if one fails to start, `RouteTimeoutError` if the
        turn did not come or the pods did not serve within `timeout`. Then, and after an interrupt,
        only pods that this very call made are ended again.
        """
        least, autoscale = sized(replicas, target_uids, target_load, down_s)
        _check_limits(deadline_s=deadline_s, timeout=timeout)
        deadline = Deadline.after(timeout)
        longest_s = timeout + (len(self.pods(timeout)) + 1) * (deadline_s + GRACE_S + 4 * STOP_S)
        request = uuid.uuid4().hex
        with self._controller.giving_up(request):
            asked = (request, least, deadline_s, max(deadline.remaining(), _LEAST_S), autoscale)
            self._ask(Deadline.after(longest_s), "scale", *asked)

    def upgrade(
        self,
        cls: type,
        *,
        args: tuple[Any, ...] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        store: StateStore | None = None,
        max_surge: int = 1,
        deadline_s: float = DRAIN_S,
        timeout: float = DEPLOY_S,
        on_progress: Callable[[UpgradeProgress], object] = lambda _: None,
    ) -> None:
        """Have the service run another class: each uid moves once, with its state; no call fails.

        New pods are made beside the old ones, with indexes of their own, at most `max_surge` more
        than the service has. Once one serves, the old ones get no new uids; then one after the
        other is drained, within `deadline_s` seconds each, and ended. `args`, `kwargs` and `store`
        stay as they are where they are not given, and so do all options. The class must be one that
        pods can import, or it travels along. What has begun is brought to its end also if this
        process dies. `on_progress` is told how far it has come, a few times a second.

        Raises `UpgradeError` if a new pod does not serve within `timeout` seconds, if a state can't
        be read by the new class, or an old pod can't be drained in time. Then, and after an
        interrupt, the service is brought back to its old class: the new pods hand over what they
        have, and are ended. Raises `ConfigError` or `InvalidInputError` for a class or arguments
        that can't be deployed, and `RouteTimeoutError` if it could not begin within `timeout`, as
        when another caller's turn or upgrade takes longer: nothing has changed then.

        Once it has begun it goes on, also if `on_progress` raises, or `RouteTimeoutError` comes
        after twice the time that all its pods together may take.
        """
        if not inspect.isclass(cls):
            raise no_class(cls, "must be a plain class, without @ray.remote")
        check_at_least_one("max_surge", max_surge)
        _check_limits(deadline_s=deadline_s, timeout=timeout)
        deadline, request = Deadline.after(timeout), uuid.uuid4().hex
        pods = len(self.pods(timeout)) + max_surge
        each_s = timeout + deadline_s + GRACE_S + 4 * STOP_S
        how = Upgrade(0, 0, "", max_surge, timeout, deadline_s, request=request)
        with self._controller.giving_up(request):
            self._controller.begin_upgrade(cls, Given(args, kwargs, store), how, deadline)
            upgraded = self._controller.upgraded(request, on_progress)
            run(upgraded, Deadline.after(2 * pods * each_s))

    def drain(
        self, pod: int, deadline_s: float = DRAIN_S, *, go_on: bool = False
    ) -> Iterator[DrainProgress]:
        """Drain one pod; see `RouteClient.drain`. Its actor stays, and serves nothing."""
        return RouteClient(self._session).drain(self.service, pod, deadline_s, go_on=go_on)

    def rebalance(
        self,
        *,
        max_moves_per_s: float = 50.0,
        tolerance: float = 0.1,
        dry_run: bool = False,
        deadline_s: float = DRAIN_S,
    ) -> Rebalance:
        """Move uids, with their states, off pods whose load is above the mean by a tenth or more.

        A uid weighs what `PodAgent.set_uid_load` reports, else one, or by how long its calls take.
        Those without a call go first, at most so many a second, and no call fails; those whose
        links are persistent stay. With `dry_run` the plan is returned, and nobody moves. Pods that
        are cordoned take no part. Who could not be moved is in `kept`; a run right after one that
        kept nobody moves nobody.

        Ends early, with a `problem`, after `deadline_s` seconds, or once a pod dies or takes no new
        uids. Raises `PodUnavailableError` if a pod does not tell what it holds. If this process is
        interrupted, nobody is moved back.
        """
        check_duration("max_moves_per_s", max_moves_per_s)
        check_duration("tolerance", tolerance)
        _check_limits(deadline_s=deadline_s)
        request, rate = uuid.uuid4().hex, None if dry_run else max_moves_per_s
        with self._controller.giving_up(request):
            longest = Deadline.after(deadline_s + _LATE_S)
            done: Rebalance = self._ask(longest, "rebalance", request, tolerance, rate, deadline_s)
        return done

    def keep_even(self, tolerance: float | None, timeout: float = DEPLOY_S) -> None:
        """Have loads evened out by themselves from now on, as by `deploy(rebalance=…)`; None: not.

        Raises `RouteTimeoutError` if the turn did not come within `timeout` seconds.
        """
        _check_limits(timeout=timeout)
        tolerance = check_tolerance("tolerance", tolerance)
        self._ask(Deadline.after(timeout), "keep_even", tolerance, shorter(timeout))

    def cordon(self, pod: int, timeout: float = DEPLOY_S) -> None:
        """Have a pod take no new uids; it keeps those that it has.

        Its later lives are closed, too, within two seconds of their start. Raises
        `InvalidInputError` for an unknown pod.
        """
        _check_limits(timeout=timeout)
        self._ask(Deadline.after(timeout), "cordon", check_pod(pod), shorter(timeout))

    def uncordon(self, pod: int, timeout: float = DEPLOY_S) -> None:
        """Have a pod take new uids again; one that was drained is ended and made anew.

        Raises `InvalidInputError` for an unknown pod, `PodStartError` if it fails to start.
        """
        _check_limits(timeout=timeout)
        self._ask(Deadline.after(timeout), "uncordon", check_pod(pod), shorter(timeout))

    def shutdown(self, grace_s: float = GRACE_S) -> None:
        """Stop all pods, each after `on_release` of all its uids, and give their indexes back.

        What can't be released within `grace_s` seconds is lost, logged and counted. Links stay
        until their TTL ends. A second time it does nothing. Raises `RayGoneError`, having stopped
        nothing, once this process has left the Ray of the pods; `RouteTimeoutError` if Ray has not
        ended all within 15 s more: it ends them when it can, and this may be called again: of
        several the shortest `grace_s` counts.
        """
        if not self._client.closed:
            self._session.namespace.check_here()  # before anything is ended
            self._controller.end_within(grace_s, Deadline.after(grace_s + 3 * STOP_S))
        self._client.close()  # also if an interrupt has cut that short before

    def close(self) -> None:
        """Let go of the service, which goes on. A second time it does nothing."""
        self._client.close()

    def __enter__(self) -> Deployment:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()


def _check_limits(**limits: float) -> None:
    """Raise `InvalidInputError` unless these are positive, finite numbers of seconds."""
    for argument, seconds in limits.items():
        if math.isinf(check_duration(argument, seconds)):
            raise InvalidInputError(argument=argument, value=seconds, reason="must be finite")
