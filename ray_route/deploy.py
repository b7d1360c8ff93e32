"""`deploy`: N pod actors from one unmodified class, and what to do with them afterwards."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, cast

import ray

from ray_route.client.base import DRAIN_S
from ray_route.client.scaling import ScalingTurn, scaling_turn
from ray_route.client.session import Session
from ray_route.client.sessions import close_session, open_session
from ray_route.client.sync_client import RouteClient
from ray_route.clock import Deadline
from ray_route.errors import (
    ClosedError,
    ConfigError,
    InvalidInputError,
    PodUnavailableError,
    RouteError,
)
from ray_route.model import DrainProgress, Life, Pod, RoutingState, check_name
from ray_route.pod.arguments import cut, pack
from ray_route.pod.pod_actor import CONTROL_GROUP, PodSpec, pod_class
from ray_route.pod.starting import wait_ready
from ray_route.pod.stopping import GRACE_S, STOP_S, Actors, ended_at_failure, kill, stop
from ray_route.pod.streams import with_streams
from ray_route.protocol.names import RAY_NAMESPACE, pod_name
from ray_route.runtime.given_up import check_wanted
from ray_route.runtime.waiting import Stage, run, within
from ray_route.store.url import StoreUrl

_DEPLOY_S = 60.0


class Deployment:
    """The pods of one service, as the process that deployed them holds them.

    The pods are detached: they outlive this object and its process, until `shutdown`. Then it
    raises `ClosedError`, and `RayGoneError` once this process has left its Ray.
    """

    def __init__(self, session: Session, service: str, make: _Maker) -> None:
        self.namespace = session.namespace.name
        self.service = service
        self._client = RouteClient(session)
        self._make = make

    def __repr__(self) -> str:
        return f"Deployment(namespace={self.namespace!r}, service={self.service!r})"

    @property
    def _session(self) -> Session:
        if self._client.closed:
            raise ClosedError(what=repr(self), namespace=self.namespace, service=self.service)
        return self._client._session

    def pods(self, timeout: float = _DEPLOY_S) -> dict[int, Pod]:
        """Return all pods of the service, dead ones included, by index."""
        asked: dict[int, Pod] = run(
            self._session.namespace.ask("pods", self.service), Deadline.after(timeout)
        )
        return asked

    def scale(self, replicas: int, deadline_s: float = DRAIN_S, timeout: float = _DEPLOY_S) -> None:
        """Add pods, which moves no uid, or drain and end those of the highest indexes.

        Afterwards indexes 0 … `replicas` - 1 are alive, and no others. Missing ones and those that
        were drained before are made first, within `timeout` seconds; only when they serve are
        others drained. Callers that scale one service at once do so one after the other.

        Raises `PodUnavailableError` if a pod could not be drained within `deadline_s` seconds (it
        and those below it stay), `PodStartError` if one fails to start, `RouteTimeoutError` if the
        turn did not come or the pods did not serve within `timeout`. Then only pods that this very
        call made are ended again.
        """
        _check_replicas(replicas)
        deadline = Deadline.after(timeout)
        with scaling_turn(self._session, self.service, deadline) as turn:
            self._grow(replicas, deadline)
            self._shrink(replicas, deadline_s, turn)

    def _grow(self, replicas: int, deadline: Deadline) -> None:
        pods = self.pods(deadline.remaining())
        missing = set(range(replicas))
        for index in sorted(missing & pods.keys()):
            if pods[index].life is not Life.ALIVE:
                continue
            if pods[index].state is RoutingState.SHUTDOWN:  # drained before, and wanted again
                stop([pods[index].actor])
            else:
                missing.remove(index)
        if missing:
            with ended_at_failure() as made:
                self._make.pods(sorted(missing), made, deadline, or_existing=True)

    def _shrink(self, replicas: int, deadline_s: float, turn: ScalingTurn) -> None:
        for index in sorted(self.pods(), reverse=True):
            if index < replicas:
                return
            ended = False
            while not ended:
                ended = self._end(index, deadline_s, turn)

    def _end(self, index: int, deadline_s: float, turn: ScalingTurn) -> bool:
        """Drain a pod and end it; False if it has begun another life, which may have users."""
        pod = self.pods()[index]
        if pod.life is Life.ALIVE:
            self._drain_fully(index, deadline_s)
        turn.check()
        return stop([pod.actor], spared=lambda: self._lives_anew(index, pod))

    def _lives_anew(self, index: int, pod: Pod) -> bool:
        now = self.pods()[index]
        return now.life is Life.ALIVE and now.incarnation > pod.incarnation

    def _drain_fully(self, pod: int, deadline_s: float) -> None:
        for progress in self.drain(pod, deadline_s):
            if progress.problem:
                raise PodUnavailableError(
                    reason=f"it could not be drained: {progress.problem}",
                    may_have_run=False,
                    namespace=self.namespace,
                    service=self.service,
                    pod=pod,
                ) from next(iter(progress.damaged), None)

    def drain(
        self, pod: int, deadline_s: float = DRAIN_S, *, go_on: bool = False
    ) -> Iterator[DrainProgress]:
        """Drain one pod; see `RouteClient.drain`. Its actor stays, and serves nothing."""
        return RouteClient(self._session).drain(self.service, pod, deadline_s, go_on=go_on)

    def shutdown(self, grace_s: float = GRACE_S) -> None:
        """Stop all pods, each after `on_release` of all its uids, and give their indexes back.

        What can't be released within `grace_s` seconds is lost, logged and counted. Links stay
        until their TTL ends. A second time it does nothing. Raises `RayGoneError`, having stopped
        nothing, once this process has left the Ray of the pods; `RouteTimeoutError` if Ray has not
        ended all within 15 s more: it ends them when it can, and this may be called again.
        """
        if self._client.closed:
            return
        session = self._session
        with contextlib.suppress(RouteError):
            run(session.refresh(self.service), Deadline.after(STOP_S))
        pods = session.table.pods(self.service).values()
        actors = [record.actor for record in pods if record.actor]
        stage = Stage(f"Ray to end {', '.join(actors)}")
        within(Deadline.after(grace_s + 3 * STOP_S), stage, partial(stop, actors, grace_s))
        self._client.close()

    def __enter__(self) -> Deployment:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()


class _Maker:
    """Makes pod actors of one service."""

    def __init__(
        self,
        session: Session,
        service: str,
        cls: type,
        init: bytes,
        options: Mapping[str, Any],
        cpu_factor: float,
        grace_s: float,
        *,
        exit_when_fenced: bool,
        release_s: float | None,
    ) -> None:
        self._session = session
        self._service = service
        given = dict(options)
        groups = {**given.pop("concurrency_groups", {}), CONTROL_GROUP: 2}
        as_actor = cast(Any, ray.remote)(concurrency_groups=groups)  # Ray's stubs lack it
        self._actor_class = as_actor(with_streams(pod_class(cls)))
        self._pieces = cut(init)
        self._options = {"num_cpus": 0, "max_restarts": -1, **given}
        self._cpu_factor = cpu_factor
        self._grace_s = grace_s
        self._exit_when_fenced = exit_when_fenced
        self._release_s = release_s

    def pods(
        self, indexes: list[int], made: Actors, deadline: Deadline, *, or_existing: bool = False
    ) -> None:
        """Make the pods of these indexes, note them in `made`, and wait until all serve.

        With `or_existing` an actor that Ray is restarting is waited for instead, and is not noted.
        """
        what = f"pods {indexes} of service {self._service!r}"
        actors = partial(self._make, indexes, made, or_existing=or_existing)
        stage = Stage(f"Ray to make {what}")
        found = within(deadline, stage, actors, undo=lambda _: kill(made), makes=True)
        wait_ready({**made, **found}, what, deadline, self._options)
        # The router must know them before anyone places a uid on the strength of this.
        run(self._session.refresh(self._service), deadline)

    def _make(self, indexes: list[int], made: Actors, *, or_existing: bool) -> Actors:
        """Make actors, and return those that are there already."""
        found: Actors = {}
        try:
            for index in indexes:
                check_wanted()
                handle = self._found(index) if or_existing else None
                if handle is not None:
                    found[index] = handle
                else:
                    made[index] = self._made(index)
        except BaseException:
            kill(made)
            raise
        return found

    def _name(self, index: int) -> str:
        return pod_name(self._session.namespace.name, self._service, index)

    def _found(self, index: int) -> Any:
        try:
            return ray.get_actor(self._name(index), namespace=RAY_NAMESPACE)
        except ValueError:
            return None

    def _made(self, index: int) -> Any:
        name = self._name(index)
        spec = PodSpec(
            namespace=self._session.namespace.name,
            service=self._service,
            pod=index,
            url=self._session.namespace.url,
            actor=name,
            cpu_factor=self._cpu_factor,
            grace_s=self._grace_s,
            exit_when_fenced=self._exit_when_fenced,
            takes_turns=self._options.get("max_concurrency", 1) == 1,
            release_s=self._release_s,
        )
        fixed = {"name": name, "namespace": RAY_NAMESPACE, "lifetime": "detached"}
        try:
            return self._actor_class.options(**self._options, **fixed).remote(spec, *self._pieces)
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
    grace_s: float = GRACE_S,
    exit_when_fenced: bool = False,
    release_s: float | None = None,
    redis_url: str | StoreUrl | None = None,
    timeout: float = _DEPLOY_S,
    **options: Any,
) -> Deployment:
    """Make N pod actors of an unmodified class, each with an agent in its process.

    The class may define `on_acquire(uid)`, called before a uid's first call under a new epoch,
    `on_release(uid)`, called after its last one here and before it is anyone else's, and
    `on_lost(uid)`, called instead if it is another's already: there is nothing to save. All may
    be sync or async; a hook runs once, never beside a call of its uid, to its end or for
    `release_s` seconds (see `Hooks`), and takes turns with calls where these do
    (`max_concurrency` 1, the default of a class without coroutines).

    A pod whose process gets SIGTERM is drained first, within `grace_s` seconds. One that could
    not renew its lease in time (the store was away, it was frozen or cut off) serves nobody and
    keeps its memory; it goes on where it was when the store is back, unless its life was ended
    meanwhile: then it exits, so that its memory serves nobody. With `exit_when_fenced=True` it
    exits as soon as its lease has run out.

    Every instance gets `args` and `kwargs`. The actors are named
    `ray_route:<namespace>:<service>:<pod>` in Ray namespace `ray_route`, detached, and restarted
    by Ray without end unless `ray_actor_options` says otherwise; a restarted pod has the same
    index, empty memory and a new incarnation. It waits for a store that is away, serving nobody,
    and is made again with a back-off if its `__init__` fails.

    Raises `InvalidInputError` for a class that is an actor class already or for bad names,
    `ConfigError` if the service is deployed already, `PodStartError` if an `__init__` fails,
    with what that raised, `RouteTimeoutError` after `timeout` seconds, which names what kept a pod
    from joining, as resources that no node has, and what `connect` raises, at once also if only a
    pod meets it.
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
        init = pack(args, kwargs or {}, deadline)
        make = _Maker(
            session,
            service,
            cls,
            init,
            ray_actor_options or {},
            cpu_factor,
            grace_s,
            exit_when_fenced=exit_when_fenced,
            release_s=release_s,
        )
        with ended_at_failure() as made:
            make.pods(list(range(replicas)), made, deadline)
            return Deployment(session, service, make)
    except BaseException:
        close_session(session)
        raise
