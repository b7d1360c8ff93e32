"""What `deploy` adds to a user's class: an agent in its process, and calls that are fenced."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray

from ray_route.errors import FencedError, RouteError
from ray_route.pod.agent import PodAgent
from ray_route.pod.command_loop import Hook
from ray_route.pod.gate import Gate
from ray_route.pod.sigterm import before_sigterm_ends
from ray_route.protocol.calls import Header, Raised, Refused
from ray_route.store.url import StoreUrl

CONTROL_GROUP = "ray_route"
_HOOK_S = 30.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CurrentLink:
    """The uid that the running call is for, and the epoch under which this pod owns it.

    A store that the user's code writes to can refuse an epoch lower than the highest it has
    seen for the uid: then a pod that was fenced in mid-call can't overwrite its successor.
    """

    service: str
    uid: str
    pod: int
    incarnation: int
    epoch: int


@dataclass(frozen=True, slots=True)
class PodSpec:
    """What a pod needs to become one."""

    namespace: str
    service: str
    pod: int
    url: StoreUrl
    actor: str
    cpu_factor: float
    grace_s: float
    exit_when_fenced: bool


_current: contextvars.ContextVar[CurrentLink | None] = contextvars.ContextVar(
    "ray_route_link", default=None
)


_agent_here: PodAgent | None = None


def current_agent() -> PodAgent | None:
    """Return the agent of the pod that this process was deployed as; None elsewhere."""
    return _agent_here


def current_link() -> CurrentLink | None:
    """Return the link under which the running code was called; None outside a fenced call."""
    return _current.get()


@contextmanager
def _under(agent: PodAgent, header: Header) -> Iterator[None]:
    uid, epoch, incarnation, _ = header
    link = CurrentLink(agent.service, uid, agent.pod, incarnation, epoch)
    token = _current.set(link)
    try:
        yield
    finally:
        _current.reset(token)


def _call(pod: Any, header: Header, /, *args: Any, **kwargs: Any) -> Any:
    """Run one call if this pod owns its uid."""
    uid, epoch, incarnation, method = header
    agent: PodAgent = pod._ray_route_agent
    gate = agent.gate
    try:
        admissions = gate.enter(uid, epoch, incarnation)
    except RouteError as error:
        return Refused(error)
    try:
        with _under(agent, header):
            result = getattr(pod, method)(*args, **kwargs)
        gate.recheck(admissions, uid, epoch)
    except FencedError as error:
        return _own(agent, header, error)
    finally:
        admissions.leave(uid)
    return result


async def _call_async(pod: Any, header: Header, /, *args: Any, **kwargs: Any) -> Any:
    """Run one call if this pod owns its uid."""
    uid, epoch, incarnation, method = header
    agent: PodAgent = pod._ray_route_agent
    gate = agent.gate
    try:
        admissions = gate.try_enter(uid, epoch, incarnation)
        if admissions is None:
            admissions = await _in_thread(gate, gate.enter, uid, epoch, incarnation)
    except RouteError as error:
        return Refused(error)
    try:
        with _under(agent, header):
            result = getattr(pod, method)(*args, **kwargs)
            if inspect.isawaitable(result):
                result = await result
        if not gate.still_serves(admissions, uid, epoch):
            await _in_thread(gate, gate.recheck, admissions, uid, epoch)
    except FencedError as error:
        return _own(agent, header, error)
    finally:
        admissions.leave(uid)
    return result


def _own(agent: PodAgent, header: Header, error: FencedError) -> Refused:
    """Answer with the refusal of this very call; one that user code met elsewhere is the user's."""
    uid, epoch, _, _ = header
    ours = (agent.service, agent.pod, uid, epoch)
    if (error.service, error.pod, error.uid, error.epoch) != ours:
        raise error
    return Refused(error)


async def _in_thread(gate: Gate, work: Callable[..., Any], *args: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(gate.admitters, work, *args)


def _flush(pod: Any) -> None:
    """Return when every call that was queued before has been answered."""


async def _flush_async(pod: Any) -> None:
    """Return when every call that was queued before has begun."""


def _call_many(pod: Any, calls: list[tuple[Header, tuple[Any, ...]]]) -> list[Any]:
    """Run many calls in order, each fenced by itself."""
    outcomes = []
    for header, args in calls:
        try:
            outcomes.append(_sendable(_call(pod, header, *args)))
        except Exception as error:  # noqa: BLE001 - one call's error is not the batch's
            outcomes.append(_sendable(Raised(error)))
    return outcomes


async def _call_many_async(pod: Any, calls: list[tuple[Header, tuple[Any, ...]]]) -> list[Any]:
    """Run many calls at once, each fenced by itself."""
    running = (_call_async(pod, header, *args) for header, args in calls)
    outcomes = await asyncio.gather(*running, return_exceptions=True)
    return [
        _sendable(Raised(item) if isinstance(item, BaseException) else item) for item in outcomes
    ]


_PLAIN = (int, float, str, bytes, bool, type(None))
_METHODS = {
    "_ray_route_call": _call,
    "_ray_route_call_many": _call_many,
    "_ray_route_flush": _flush,
}
_ASYNC_METHODS = {
    "_ray_route_call": _call_async,
    "_ray_route_call_many": _call_many_async,
    "_ray_route_flush": _flush_async,
}


def _sendable(outcome: Any) -> Any:
    """Return an outcome, or an error in its place if it can't be pickled: the others count."""
    if type(outcome) in _PLAIN:
        return outcome
    try:
        ray.cloudpickle.dumps(outcome)
    except Exception as error:  # noqa: BLE001 - whatever its pickling does
        what = outcome.error if isinstance(outcome, Raised) else outcome
        return Raised(TypeError(f"{type(what).__name__} can't be pickled: {error}"))
    return outcome


def _hook(pod: Any, name: str) -> Hook | None:
    """Return the user's hook as a function that blocks; of an async pod, on the pod's own loop."""
    hook = getattr(pod, name, None)
    if hook is None or not is_async(type(pod)):
        return hook
    loop = asyncio.get_running_loop()

    async def on_loop(uid: str) -> None:
        done = hook(uid)
        if inspect.isawaitable(done):
            await done

    return lambda uid: asyncio.run_coroutine_threadsafe(on_loop(uid), loop).result(_HOOK_S)


def _exit_fenced() -> None:
    # Memory of an ended incarnation must not serve the next one: Ray restarts the actor clean.
    os._exit(1)


def _leave_service(agent: PodAgent, grace_s: float) -> None:
    """Drain this pod and give its index back, because its process has been asked to end."""
    try:
        progress = agent.drain(grace_s)
        logger.info("pod %d of %s leaves: %s", agent.pod, agent.service, progress)
    except Exception:
        logger.exception("pod %d of %s leaves before it was drained", agent.pod, agent.service)
    finally:
        agent.stop()


def _become_pod(pod: Any, spec: PodSpec) -> PodAgent:
    # At module level: the class that `pod_class` makes travels by value, with globals of its own.
    global _agent_here  # noqa: PLW0603 - a process is one pod
    _agent_here = PodAgent(
        spec.namespace,
        spec.service,
        spec.pod,
        redis_url=spec.url,
        actor=spec.actor,
        on_acquire=_hook(pod, "on_acquire"),
        on_release=_hook(pod, "on_release"),
        on_lost=_exit_fenced if spec.exit_when_fenced else None,
        cpu_factor=spec.cpu_factor,
    ).start()
    before_sigterm_ends(partial(_leave_service, _agent_here, spec.grace_s))
    return _agent_here


def is_async(cls: type) -> bool:
    """True if Ray runs this class's actors on an event loop."""
    return any(inspect.iscoroutinefunction(member) for _, member in inspect.getmembers(cls))


def pod_class(cls: type) -> type:
    """Derive the class of the pod actors from an unmodified user class."""

    class Pod(cls):  # type: ignore[misc]
        def __init__(self, _ray_route_spec: PodSpec, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._ray_route_agent = _become_pod(self, _ray_route_spec)

        @ray.method(concurrency_group=CONTROL_GROUP)
        def _ray_route_ready(self) -> int:
            return int(self._ray_route_agent.incarnation)

        @ray.method(concurrency_group=CONTROL_GROUP)
        def _ray_route_stop(self) -> None:
            self._ray_route_agent.stop()

    for name, method in (_ASYNC_METHODS if is_async(cls) else _METHODS).items():
        setattr(Pod, name, method)
    Pod.__name__ = cls.__name__
    Pod.__qualname__ = cls.__qualname__
    Pod.__doc__ = cls.__doc__
    return Pod
