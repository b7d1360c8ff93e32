"""`deploy`: N pod actors from one unmodified class; and how they are found afterwards."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ray_route.client.session import Session
from ray_route.client.sessions import close_session, open_session
from ray_route.clock import Deadline
from ray_route.controller.actor import Description
from ray_route.controller.handle import ControllerHandle, make_controller
from ray_route.controller.making import NameTakenError, PodMaker, named_pods
from ray_route.controller.recipe import Recipe, differing
from ray_route.deployment import DEPLOY_S, Deployment
from ray_route.errors import ClosedError, ConfigError, InvalidInputError
from ray_route.model import (
    check_name,
)
from ray_route.pod.arguments import pack
from ray_route.pod.instances import StateStore
from ray_route.pod.methods import is_async
from ray_route.pod.options import PodOptions, no_class
from ray_route.pod.pod_actor import PodSpec
from ray_route.pod.starting import wait_ready
from ray_route.pod.stopping import GRACE_S, Actors, ended_at_failure, kill
from ray_route.pod.user_threads import AT_ONCE
from ray_route.policies import Autoscale, check_tolerance, size_facts, sized
from ray_route.runtime.given_up import check_wanted
from ray_route.runtime.waiting import Pause, Stage, run, within
from ray_route.store.url import StoreUrl

# A deployment whose driver died half-way is ended when its time is over, and so long after.
_LATE_S = 60.0
_LOOK_S = 0.1
# Among what a deployment has made: its controller, which is no pod.
_CONTROLLER = -1


@dataclass(frozen=True)
class _Making:
    """One attempt to deploy a service."""

    session: Session
    controller: ControllerHandle
    recipe: Recipe
    held: list[Any]
    cls: type
    replicas: int
    autoscale: Autoscale | None
    tolerance: float | None
    deadline: Deadline

    @property
    def _service(self) -> str:
        return self.recipe.spec.service

    def deployment(self) -> Deployment:
        """Make the service, or find that it is there, and the same.

        Raises `ConfigError` if it is another, `RouteTimeoutError`, and what making pods raises:
        then nothing is left of what was made.
        """
        while not self._is_there():
            try:
                return ended_at_failure(self._made)
            except NameTakenError:
                continue  # another process has just begun to deploy it
        return Deployment(self.session, self._service, self.controller)

    def _is_there(self) -> bool:
        """Say whether the service is deployed as it is wanted here; wait for who is at it."""
        try:
            while True:
                held: Description = run(self.controller.ask("describe"), self.deadline)
                if held.size is not None and not held.ended:
                    self._check_same({**held.facts, **held.size})
                    within(self.deadline, Stage("Ray"), self.controller.bound)
                    return True
                self._wait("ends" if held.ended else "deploys")
        except ClosedError:
            return False

    def _wait(self, doing: str) -> None:
        what = f"another process, which {doing} service {self._service!r}"
        Pause(_LOOK_S, what).wait(self.deadline)

    def _check_same(self, held: dict[str, str]) -> None:
        size = size_facts(self.replicas, self.autoscale, self.tolerance)
        others = differing(held, {**self.recipe.facts, **size})
        if others:
            as_deployed = ", ".join(map(" ".join, others.items()))
            raise ConfigError(
                option=", ".join(others),
                reason=f"the service is deployed already, with {as_deployed}; take it by "
                "get_deployment(), scale it, upgrade it, or shut it down first",
                namespace=self.session.namespace.name,
                service=self._service,
            )

    def _made(self, made: Actors) -> Deployment:
        self._make(made)
        return Deployment(self.session, self._service, self.controller)

    def _make(self, made: Actors) -> None:
        what = f"pods {list(range(self.replicas))} of service {self._service!r}"
        stage, actors = Stage(f"Ray to make {what}"), partial(self._make_actors, made)
        within(self.deadline, stage, actors, undo=lambda _: kill(made), makes=True)
        pods = {index: pod for index, pod in made.items() if index != _CONTROLLER}
        wait_ready(pods, what, self.deadline, self.recipe.options)
        # The router must know them before anyone places a uid on the strength of this.
        run(self.session.refresh(self._service), self.deadline)
        wanted = (self.replicas, self.autoscale, self.tolerance)
        run(self.controller.ask("begin", *wanted), self.deadline)

    def _make_actors(self, made: Actors) -> None:
        try:
            self._check_nobody_there()
            patience_s = self.deadline.timeout_s + _LATE_S
            made[_CONTROLLER] = make_controller(self.recipe, self.held, patience_s)
            self.controller.bound()
            maker = PodMaker(self.recipe, self.cls, self.held)
            for index in range(self.replicas):
                check_wanted()
                made[index] = maker.make(index)
        except BaseException:
            kill(made)
            raise

    def _check_nobody_there(self) -> None:
        """Raise `ConfigError` if there are pods of nobody: a controller owns all of its service.

        Or `NameTakenError`, if they are those of a controller that has just been made.
        """
        if named_pods(self.session.namespace.name, self._service):
            if self.controller.found() is not None:
                raise NameTakenError
            raise ConfigError(
                option="service",
                reason="is deployed already, and has no controller: "
                "get_deployment(namespace, service).shutdown() ends it",
                namespace=self.session.namespace.name,
                service=self._service,
            )


def deploy(
    cls: type,
    *,
    namespace: str,
    service: str,
    replicas: int | tuple[int, int],
    target_uids: float | None = None,
    target_load: float | None = None,
    down_s: float | None = None,
    rebalance: float | None = None,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    ray_actor_options: Mapping[str, Any] | None = None,
    cpu_factor: float = 0.0,
    grace_s: float = GRACE_S,
    exit_when_fenced: bool = False,
    release_s: float | None = None,
    on_unpicklable: str = "keep",
    per_uid: bool = False,
    turns: bool = False,
    idle_s: float | None = None,
    store: StateStore | None = None,
    save_every_s: float = 10.0,
    redis_url: str | StoreUrl | None = None,
    timeout: float = DEPLOY_S,
    **options: Any,
) -> Deployment:
    """Make N pod actors of an unmodified class, each with an agent in its process.

    The class may define `on_acquire(uid)`, called before a uid's first call under a new epoch,
    `on_release(uid)`, called after its last one here and before it is anyone else's, and
    `on_lost(uid)`, called instead if it is another's already: there is nothing to save. All may
    be sync or async; a hook runs once, never beside a call of its uid, to its end or for
    `release_s` seconds (see `docs/pods.md`), and takes turns with calls where these do
    (`max_concurrency` 1, the default of a class without coroutines).

    If `on_acquire(uid, state)` takes two arguments, what `on_release(uid)` returns goes along when
    the uid moves, of any size, and is given to the next pod's `on_acquire`; None where there is
    none. A uid whose state can't be pickled stays where it is, and whoever moves it gets
    `StateNotMovedError`; with `on_unpicklable="drop"` it moves without.

    With `per_uid=True` each uid has an object of its own: `cls(uid, *args, **kwargs)` is made
    before its first call, its methods are the calls, and it is dropped after its `on_release()`,
    if it has one, or after `on_lost()`, if it is another's already; its state goes along when the
    uid moves. Its calls run one at a time, in the order in which a caller sent them; see
    `docs/per_uid.md`. `turns=True` gives that order to a class of one object per pod. Then
    `max_concurrency` (16) says how many calls, of different uids, run at a time in threads; those
    of a class with coroutines run on its event loop. A temporary uid without a call for `idle_s`
    seconds (two thirds of `ttl_s`) is released, and its link removed. A `store` keeps the
    objects' states beyond the life of a pod, as of `save_every_s` seconds ago: see `StateStore`.

    A pod whose process gets SIGTERM is drained first, within `grace_s` seconds. One that could
    not renew its lease in time (the store was away, it was frozen or cut off) serves nobody and
    keeps its memory; it goes on where it was when the store is back, unless its life was ended
    meanwhile: then it exits, so that its memory serves nobody. With `exit_when_fenced=True` it
    exits as soon as its lease has run out.

    With `replicas=(min, max)` the service has as many pods as it needs, within these limits: one
    for every `target_uids` uids, or for every `target_load` of the load that pods report. More are
    made at once; once `down_s` seconds (300) have needed fewer, the emptiest pod is drained, which
    hands states over, and ended, one after the other. See `docs/howto/autoscale.md`.

    With `rebalance=0.2` loads are evened out by themselves, as `Deployment.rebalance` does, when a
    pod's has been above the mean by more than a fifth for a minute: 20 uids a second at the most,
    and only while all pods are as they are wanted.

    A service that is deployed already with the same class, arguments and options is returned as it
    is (see `get_deployment`); one that another process is just deploying is waited for.

    Every instance gets `args` and `kwargs`, which may take 5 MB when pickled. The actors are named
    `ray_route:<namespace>:<service>:<pod>` in Ray namespace `ray_route`, detached, and restarted
    by Ray without end unless `ray_actor_options` says otherwise; a restarted pod has the same
    index, empty memory and a new incarnation. It waits for a store that is away, serving nobody,
    and is made again with a back-off if its `__init__` fails.

    Raises `InvalidInputError` for a class that is an actor class already or for bad names,
    `ConfigError` if the service is deployed already with other options, which it names, or if what
    the class is given can't outlive this process, `PodStartError` if an `__init__` fails, with
    what that raised, `RouteTimeoutError` after `timeout` seconds, which names what kept a pod
    from joining, as resources that no node has, and what `connect` raises, at once also if only a
    pod meets it.
    """
    check_name("service", service)
    least, autoscale = sized(replicas, target_uids, target_load, down_s)
    tolerance = check_tolerance("rebalance", rebalance)
    if not inspect.isclass(cls):
        raise no_class(cls, "must be a plain class, without @ray.remote")
    how = PodOptions(
        cpu_factor=cpu_factor,
        grace_s=grace_s,
        exit_when_fenced=exit_when_fenced,
        release_s=release_s,
        on_unpicklable=on_unpicklable,
        per_uid=per_uid,
        turns=turns,
        idle_s=idle_s,
        save_every_s=save_every_s,
        threads=(ray_actor_options or {}).get("max_concurrency", AT_ONCE),
    )
    how.check(cls, args, kwargs or {}, store)
    for fixed in ("name", "namespace", "lifetime", "max_task_retries"):
        if fixed in (ray_actor_options or {}):
            raise ConfigError(
                option=f"ray_actor_options[{fixed!r}]", reason="is decided by ray_route"
            )
    deadline = Deadline.after(timeout)
    session = open_session(namespace, redis_url, options, deadline)
    try:
        actor_options = {"num_cpus": 0, "max_restarts": -1, **how.for_ray(ray_actor_options or {})}
        spec = PodSpec(
            namespace=session.namespace.name,
            service=service,
            pod=-1,  # the maker's to say, and the actor's name, too
            url=session.namespace.url,
            actor="",
            how=how,
            on_loop=is_async(cls),
            one_by_one=actor_options.get("max_concurrency", 1) == 1,
        )
        init, held = pack(args, kwargs or {}, store, deadline)
        recipe = Recipe.of(cls, init, actor_options, spec)
        controller = ControllerHandle(namespace, service, session.namespace.check_here)
        making = _Making(
            session, controller, recipe, held, cls, least, autoscale, tolerance, deadline
        )
        return making.deployment()
    except BaseException:
        close_session(session)
        raise


def get_deployment(
    namespace: str,
    service: str,
    *,
    redis_url: str | StoreUrl | None = None,
    timeout: float = DEPLOY_S,
) -> Deployment:
    """Return a service that was deployed before, by whatever process: the class is not needed.

    Raises `InvalidInputError` if it is not deployed, and what `connect` raises.
    """
    check_name("service", service)
    deadline = Deadline.after(timeout)
    session = open_session(namespace, redis_url, {}, deadline)
    try:
        stage = Stage(f"Ray to find service {service!r}")
        controller = ControllerHandle(namespace, service, session.namespace.check_here)
        within(deadline, stage, partial(_check_deployed, controller, namespace, service))
        return Deployment(session, service, controller)
    except BaseException:
        close_session(session)
        raise


def _check_deployed(controller: ControllerHandle, namespace: str, service: str) -> None:
    if controller.bound().found() is None and not named_pods(namespace, service):
        raise InvalidInputError(
            argument="service", value=service, reason="is not deployed", namespace=namespace
        )
