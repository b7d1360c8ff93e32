"""`deploy`: N pod actors from one unmodified class, and what to do with them afterwards."""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Iterator, Mapping
from typing import Any, cast

import ray

from ray_route.client.base import DRAIN_S
from ray_route.client.session import Session, close_session, open_session
from ray_route.client.sync_client import RouteClient
from ray_route.clock import Deadline
from ray_route.errors import (
    ConfigError,
    InvalidInputError,
    PodUnavailableError,
    RouteError,
    RouteTimeoutError,
)
from ray_route.model import DrainProgress, Life, Pod, RoutingState, check_name
from ray_route.pod.pod_actor import CONTROL_GROUP, PodSpec, pod_class
from ray_route.protocol.names import RAY_NAMESPACE, pod_name
from ray_route.runtime.waiting import run
from ray_route.store.url import StoreUrl

_DEPLOY_S = 60.0
_STOP_S = 5.0
_RETRY_S = 0.2


class Deployment:
    """The pods of one service, as the process that deployed them holds them.

    The pods are detached: they outlive this object and its process, until `shutdown`.
    """

    def __init__(self, session: Session, service: str, make: _Maker) -> None:
        self._session = session
        self._make = make
        self.service = service
        self.namespace = session.namespace.name

    def __repr__(self) -> str:
        return f"Deployment(namespace={self.namespace!r}, service={self.service!r})"

    def pods(self, timeout: float = _DEPLOY_S) -> dict[int, Pod]:
        """Return all pods of the service, dead ones included, by index."""
        asked: dict[int, Pod] = run(
            self._session.namespace.ask("pods", self.service), Deadline.after(timeout)
        )
        return asked

    def scale(self, replicas: int, deadline_s: float = DRAIN_S, timeout: float = _DEPLOY_S) -> None:
        """Add pods, which moves no uid, or drain and end those of the highest indexes.

        Afterwards indexes 0 … `replicas` - 1 are alive. Raises `PodUnavailableError` if a pod
        could not be drained within `deadline_s` seconds: it and those below it stay.
        """
        _check_replicas(replicas)
        pods = self.pods(timeout)
        living = {index for index, pod in pods.items() if pod.life is Life.ALIVE}
        for index in sorted(living & set(range(replicas))):
            if pods[index].state is RoutingState.SHUTDOWN:  # drained before, and wanted again
                _stop(pods[index].actor)
                living.remove(index)
        for index in sorted(living - set(range(replicas)), reverse=True):
            for progress in self.drain(index, deadline_s):
                if progress.problem:
                    raise PodUnavailableError(
                        reason=f"it could not be drained: {progress.problem}",
                        may_have_run=False,
                        namespace=self.namespace,
                        service=self.service,
                        pod=index,
                    )
            _stop(pods[index].actor)
        missing = sorted(set(range(replicas)) - living)
        if missing:
            self._make.pods(missing, Deadline.after(timeout), or_existing=True)

    def drain(
        self, pod: int, deadline_s: float = DRAIN_S, *, go_on: bool = False
    ) -> Iterator[DrainProgress]:
        """Drain one pod; see `RouteClient.drain`. Its actor stays, and serves nothing."""
        return RouteClient(self._session).drain(self.service, pod, deadline_s, go_on=go_on)

    def shutdown(self) -> None:
        """Stop all pods and give their indexes back. Links stay until their TTL ends."""
        with contextlib.suppress(RouteError):
            run(self._session.refresh(self.service), Deadline.after(_STOP_S))
        for record in self._session.table.pods(self.service).values():
            if record.actor:
                _stop(record.actor)
        close_session(self._session)

    def __enter__(self) -> Deployment:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()


def _stop(actor: str) -> None:
    with contextlib.suppress(ValueError, ray.exceptions.RayError):
        handle = ray.get_actor(actor, namespace=RAY_NAMESPACE)
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(handle._ray_route_stop.remote(), timeout=2 * _STOP_S)
            # Queued calls are refused and follow their uids; killed ones would be in doubt.
            ray.get(handle._ray_route_flush.remote(), timeout=_STOP_S)
        ray.kill(handle, no_restart=True)


class _Maker:
    """Makes pod actors of one service."""

    def __init__(
        self,
        session: Session,
        service: str,
        cls: type,
        init: tuple[tuple[Any, ...], Mapping[str, Any]],
        options: Mapping[str, Any],
        cpu_factor: float,
        grace_s: float,
        exit_when_fenced: bool,  # noqa: FBT001 - all options of one call
    ) -> None:
        self._session = session
        self._service = service
        given = dict(options)
        groups = {**given.pop("concurrency_groups", {}), CONTROL_GROUP: 2}
        as_actor = cast(Any, ray.remote)(concurrency_groups=groups)  # Ray's stubs lack it
        self._actor_class = as_actor(pod_class(cls))
        self._args, self._kwargs = init
        self._options = {"num_cpus": 0, "max_restarts": -1, **given}
        self._cpu_factor = cpu_factor
        self._grace_s = grace_s
        self._exit_when_fenced = exit_when_fenced

    def pods(self, indexes: list[int], deadline: Deadline, *, or_existing: bool = False) -> None:
        """Make the pods of these indexes and wait until all serve; undo all if one fails.

        With `or_existing` an actor that Ray is restarting is waited for instead.
        """
        made: list[Any] = []
        try:
            made.extend(self._pod(index, or_existing=or_existing) for index in indexes)
            what = f"pods {indexes} of service {self._service!r}"
            _wait_ready(made, what, deadline)
        except BaseException:
            for handle in made:
                ray.kill(handle, no_restart=True)
            raise
        # The router must know them before anyone places a uid on the strength of this.
        run(self._session.refresh(self._service), deadline)

    def _pod(self, index: int, *, or_existing: bool) -> Any:
        name = pod_name(self._session.namespace.name, self._service, index)
        spec = PodSpec(
            namespace=self._session.namespace.name,
            service=self._service,
            pod=index,
            url=self._session.namespace.url,
            actor=name,
            cpu_factor=self._cpu_factor,
            grace_s=self._grace_s,
            exit_when_fenced=self._exit_when_fenced,
        )
        fixed = {
            "name": name,
            "namespace": RAY_NAMESPACE,
            "lifetime": "detached",
            "get_if_exists": or_existing,
        }
        try:
            return self._actor_class.options(**self._options, **fixed).remote(
                spec, *self._args, **self._kwargs
            )
        except ValueError as error:
            if "already" not in str(error):
                raise
            raise ConfigError(
                option="service",
                reason="is deployed already: shut it down first, or scale it",
                namespace=self._session.namespace.name,
                service=self._service,
                pod=index,
            ) from error


def _wait_ready(handles: list[Any], what: str, deadline: Deadline) -> None:
    """Wait until all pods serve, also those that Ray is just restarting."""
    while True:
        try:
            asked = [handle._ray_route_ready.remote() for handle in handles]
            ray.get(asked, timeout=deadline.remaining())
        except ray.exceptions.ActorUnavailableError:
            deadline.check(what)
            time.sleep(_RETRY_S)
        except ray.exceptions.GetTimeoutError:
            raise RouteTimeoutError(waiting_for=what, timeout_s=deadline.timeout_s) from None
        except ray.exceptions.RayActorError as error:
            raise PodUnavailableError(
                reason=f"{what} failed to start: {_last_line(error)}", may_have_run=False
            ) from error
        else:
            return


def _last_line(error: Exception) -> str:
    """Return what was raised, without the traceback that Ray puts before it."""
    return str(error).strip().rpartition("\n")[2]


def _check_replicas(replicas: object) -> None:
    if not isinstance(replicas, int) or isinstance(replicas, bool) or replicas < 1:
        raise InvalidInputError(
            argument="replicas", value=replicas, reason="must be an integer of at least 1"
        )


def deploy(
    cls: type,
    *,
    namespace: str,
    service: str,
    replicas: int,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    ray_actor_options: Mapping[str, Any] | None = None,
    cpu_factor: float = 0.0,
    grace_s: float = 20.0,
    exit_when_fenced: bool = True,
    redis_url: str | StoreUrl | None = None,
    timeout: float = _DEPLOY_S,
    **options: Any,
) -> Deployment:
    """Make N pod actors of an unmodified class, each with an agent in its process.

    The class may define `on_acquire(uid)`, called before a uid's first call under a new epoch,
    and `on_release(uid)`, called after its last one here and before it is anyone else's, both
    sync or async. A pod whose process gets SIGTERM is drained first, within `grace_s` seconds.
    One that was frozen or cut off for longer than its lease exits, so that its memory serves
    nobody; with `exit_when_fenced=False` it releases its uids and claims its index anew.
    Every instance gets `args` and `kwargs`. The actors are named
    `ray_route:<namespace>:<service>:<pod>` in Ray namespace `ray_route`, detached, and restarted
    by Ray without end unless `ray_actor_options` says otherwise; a restarted pod has the same
    index, empty memory and a new incarnation.

    Raises `InvalidInputError` for a class that is an actor class already or for bad names,
    `ConfigError` if the service is deployed already, `PodUnavailableError` if an `__init__`
    fails, `RouteTimeoutError` after `timeout` seconds, and what `connect` raises.
    """
    check_name("service", service)
    _check_replicas(replicas)
    if not inspect.isclass(cls):
        raise InvalidInputError(
            argument="cls", value=cls, reason="must be a plain class, without @ray.remote"
        )
    for fixed in ("name", "namespace", "lifetime", "max_task_retries"):
        if fixed in (ray_actor_options or {}):
            raise ConfigError(
                option=f"ray_actor_options[{fixed!r}]", reason="is decided by ray_route"
            )
    deadline = Deadline.after(timeout)
    session = open_session(namespace, redis_url, options, deadline)
    try:
        init = (args, kwargs or {})
        make = _Maker(
            session,
            service,
            cls,
            init,
            ray_actor_options or {},
            cpu_factor,
            grace_s,
            exit_when_fenced,
        )
        make.pods(list(range(replicas)), deadline)
    except BaseException:
        close_session(session)
        raise
    return Deployment(session, service, make)
