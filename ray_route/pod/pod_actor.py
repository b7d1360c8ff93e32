"""What `deploy` adds to a user's class: an agent in its process, and calls that are fenced."""

from __future__ import annotations

import asyncio
import logging
import os
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray

from ray_route.clock import Deadline
from ray_route.pod.actor_name import this_worker
from ray_route.pod.agent import PodAgent
from ray_route.pod.arguments import unpack
from ray_route.pod.endings import Departure, made_again, watch_loop
from ray_route.pod.index_lease import OfPod
from ray_route.pod.instances import Instances, OneForAll
from ray_route.pod.leaving import leave_by
from ray_route.pod.options import PodOptions
from ray_route.pod.readers import WATCHED
from ray_route.pod.serving import Manner, Target, methods_of_calls
from ray_route.pod.sigterm import before_sigterm_ends
from ray_route.pod.unbegun import may_claim
from ray_route.pod.user_hooks import UserHooks
from ray_route.pod.user_threads import in_thread, warn_on_loops_alone
from ray_route.protocol.calls import Refused
from ray_route.store.url import StoreUrl

CONTROL_GROUP = "ray_route"

# Of the time that a pod has to leave, for moving its uids to others.
_DRAIN_SHARE = 0.6

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PodSpec:
    """What a pod needs to become one."""

    namespace: str
    service: str
    pod: int
    url: StoreUrl
    actor: str
    how: PodOptions
    on_loop: bool
    """The user's code runs on the event loop."""
    one_by_one: bool
    """Ray runs its calls one at a time, whichever their uids."""

    @property
    def manner(self) -> Manner:
        """How it serves its calls."""
        return Manner(self.how, on_loop=self.on_loop, one_by_one=self.one_by_one)


_agent_here: PodAgent | None = None


_agent_served: ContextVar[PodAgent | None] = ContextVar("ray_route_agent", default=None)


def current_agent() -> PodAgent | None:
    """Return the agent of the pod that this process was deployed as; None elsewhere.

    In a pod of `ray_route.testing.local` that one's.
    """
    return _agent_here or _agent_served.get()


def serve_by(agent: PodAgent) -> None:
    """Have the code of this context, from here on, be that of one of several pods in a process."""
    _agent_served.set(agent)


_user_hooks = UserHooks(current_agent)


def _exit_fenced() -> None:
    # Memory of an ended incarnation must not serve the next one: Ray restarts the actor clean.
    os._exit(1)


def _leave_service(agent: PodAgent, grace_s: float) -> None:
    """Move this pod's uids to others, because its process has been asked to end.

    Those that nobody takes are released here, in what is left of the time.
    """
    deadline = Deadline.after(grace_s)
    try:
        if not agent.joined:
            return
        progress = agent.drain(_DRAIN_SHARE * grace_s)
        logger.info("pod %d of %s leaves: %s", agent.pod, agent.service, progress)
    except Exception:  # whatever it was, the uids are released below
        logger.exception("pod %d of %s leaves before it was drained", agent.pod, agent.service)
    finally:
        agent.stop(deadline.remaining())


def _become_pod(pod: Any, spec: PodSpec, target: Target) -> PodAgent:
    # At module level: the class that `pod_class` makes travels by value, with globals of its own.
    global _agent_here  # noqa: PLW0603 - a process is one pod
    hooks = spec.manner.begin(pod, target, _user_hooks.find)
    on_lapse = _exit_fenced if spec.how.exit_when_fenced else None
    _agent_here = PodAgent(
        spec.namespace,
        spec.service,
        spec.pod,
        redis_url=spec.url,
        actor=spec.actor,
        cpu_factor=spec.how.cpu_factor,
        _of_pod=OfPod(hooks, on_lapse, _exit_fenced, partial(may_claim, spec.actor)),
    )
    departure = Departure(partial(_leave_service, _agent_here, spec.how.grace_s))
    leave_by(departure)
    before_sigterm_ends(departure)
    spec.manner.take_turns(pod, target, _agent_here)
    if spec.how.has_turns or spec.on_loop:
        watch_loop(asyncio.get_running_loop())
        warn_on_loops_alone()
    # Not here: what it takes may be away for longer than anyone waits for a constructor.
    _agent_here.join_in_background()
    return _agent_here


def pod_class(cls: type, *, per_uid: bool = False, turns: bool = False) -> type:
    """Derive the class of the pod actors from an unmodified user class.

    With `per_uid` they have an object of it for each uid; that, or `turns`, has each uid's calls
    run one at a time.
    """
    base: Any = object if per_uid else cls

    class Pod(base):  # type: ignore[misc]
        def __init__(self, _ray_route_spec: PodSpec, held: list[Any], *pieces: bytes) -> None:
            spec, self._ray_route_held = _ray_route_spec, held
            with made_again(spec.namespace, spec.service, spec.pod, spec.actor):
                args, kwargs, store = unpack(pieces)
                target = Instances(cls, args, kwargs, store) if per_uid else OneForAll(self, cls)
                if not per_uid and turns and not spec.on_loop:
                    in_thread(super().__init__, *args, **kwargs)  # a loop runs in this one
                elif not per_uid:
                    super().__init__(*args, **kwargs)
                self._ray_route_agent = _become_pod(self, spec, target)

        @ray.method(concurrency_group=CONTROL_GROUP)
        def _ray_route_ready(self) -> bool | Refused:
            """Say whether it serves, or what is in the way."""
            problem = self._ray_route_agent.problem
            return Refused(problem) if problem else self._ray_route_agent.joined

        @ray.method(concurrency_group=CONTROL_GROUP)
        def _ray_route_worker(self) -> str:
            return this_worker()

        @ray.method(concurrency_group=CONTROL_GROUP)
        def _ray_route_stop(self, grace_s: float, incarnation: int | None = None) -> bool:
            """Leave in order; False, having done nothing, if this is another life than is meant."""
            agent = self._ray_route_agent
            if incarnation is not None and agent.joined and agent.incarnation != incarnation:
                return False
            agent.stop(grace_s)
            return True

    for name, method in methods_of_calls(cls, turns=turns or per_uid).items():
        setattr(Pod, name, WATCHED.get(method, method))
    Pod.__name__ = cls.__name__
    Pod.__qualname__ = cls.__qualname__
    Pod.__doc__ = cls.__doc__
    return Pod
