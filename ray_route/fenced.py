"""What `deploy` adds to a user's class: an agent in its process, and calls that are fenced."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from ray_route.agent import Hook, PodAgent
from ray_route.errors import RouteError
from ray_route.store.url import StoreUrl

CONTROL_GROUP = "ray_route"
Header = tuple[str, int, int, str]


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
class Refused:
    """A pod's answer instead of a result. A value, so that user code's errors stay apart."""

    error: RouteError


@dataclass(frozen=True, slots=True)
class Raised:
    """An error of the user's code within a batch of calls."""

    error: Exception


@dataclass(frozen=True, slots=True)
class Birth:
    """What a pod needs to become one."""

    namespace: str
    service: str
    pod: int
    url: StoreUrl
    actor: str
    cpu_factor: float


_current: contextvars.ContextVar[CurrentLink | None] = contextvars.ContextVar(
    "ray_route_link", default=None
)


def current_link() -> CurrentLink | None:
    """Return the link under which the running code was called; None outside a fenced call."""
    return _current.get()


@contextmanager
def _under(agent: PodAgent, header: Header) -> Iterator[None]:
    uid, epoch, incarnation, _ = header
    link = CurrentLink(agent.service, uid, agent.pod, incarnation, epoch)
    token = _current.set(link)
    try:
        with agent.running():
            yield
    finally:
        _current.reset(token)


def _call(pod: Any, header: Header, *args: Any, **kwargs: Any) -> Any:
    """Run one call if this pod owns its uid."""
    uid, epoch, incarnation, method = header
    agent: PodAgent = pod._ray_route_agent
    try:
        agent.admit(uid, epoch, incarnation)
    except RouteError as error:
        return Refused(error)
    with _under(agent, header):
        result = getattr(pod, method)(*args, **kwargs)
    try:
        agent.recheck(uid, epoch)
    except RouteError as error:
        return Refused(error)
    return result


async def _call_async(pod: Any, header: Header, *args: Any, **kwargs: Any) -> Any:
    """Run one call if this pod owns its uid."""
    uid, epoch, incarnation, method = header
    agent: PodAgent = pod._ray_route_agent
    try:
        if not agent.admits_now(uid, epoch, incarnation):
            await asyncio.to_thread(agent.admit, uid, epoch, incarnation)
    except RouteError as error:
        return Refused(error)
    with _under(agent, header):
        result = getattr(pod, method)(*args, **kwargs)
        if inspect.isawaitable(result):
            result = await result
    try:
        if not agent.admits_now(uid, epoch, incarnation):
            await asyncio.to_thread(agent.recheck, uid, epoch)
    except RouteError as error:
        return Refused(error)
    return result


def _call_many(pod: Any, calls: list[tuple[Header, tuple[Any, ...]]]) -> list[Any]:
    """Run many calls in order, each fenced by itself."""
    outcomes = []
    for header, args in calls:
        try:
            outcomes.append(_call(pod, header, *args))
        except Exception as error:  # noqa: BLE001 - one call's error is not the batch's
            outcomes.append(_raised(error))
    return outcomes


async def _call_many_async(pod: Any, calls: list[tuple[Header, tuple[Any, ...]]]) -> list[Any]:
    """Run many calls at once, each fenced by itself."""
    running = (_call_async(pod, header, *args) for header, args in calls)
    outcomes = await asyncio.gather(*running, return_exceptions=True)
    return [_raised(item) if isinstance(item, Exception) else item for item in outcomes]


_METHODS = {"_ray_route_call": _call, "_ray_route_call_many": _call_many}
_ASYNC_METHODS = {"_ray_route_call": _call_async, "_ray_route_call_many": _call_many_async}


def _raised(error: Exception) -> Raised:
    try:
        ray.cloudpickle.dumps(error)
    except Exception:  # noqa: BLE001 - whatever its pickling does, the others' results count
        return Raised(RuntimeError(f"{error!r} (which can't be pickled)"))
    return Raised(error)


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

    return lambda uid: asyncio.run_coroutine_threadsafe(on_loop(uid), loop).result()


def _exit_fenced() -> None:
    # Memory of an ended incarnation must not serve the next one: Ray restarts the actor clean.
    os._exit(1)


def is_async(cls: type) -> bool:
    """True if Ray runs this class's actors on an event loop."""
    return any(inspect.iscoroutinefunction(member) for _, member in inspect.getmembers(cls))


def pod_class(cls: type) -> type:
    """Derive the class of the pod actors from an unmodified user class."""

    class Pod(cls):  # type: ignore[misc]
        def __init__(self, _ray_route_birth: Birth, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            birth = _ray_route_birth
            self._ray_route_agent = PodAgent(
                birth.namespace,
                birth.service,
                birth.pod,
                redis_url=birth.url,
                actor=birth.actor,
                on_acquire=_hook(self, "on_acquire"),
                on_lost=_exit_fenced,
                cpu_factor=birth.cpu_factor,
            ).start()

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
