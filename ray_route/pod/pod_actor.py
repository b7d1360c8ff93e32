"""What `deploy` adds to a user's class: an agent in its process, and calls that are fenced."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray

from ray_route.clock import Deadline
from ray_route.errors import FencedError, PodUnavailableError, RouteError
from ray_route.pod.actor_name import leads_here, this_worker
from ray_route.pod.agent import PodAgent
from ray_route.pod.arguments import unpack
from ray_route.pod.call_order import ArrivalOrder, CallOrder, Place
from ray_route.pod.current_link import under
from ray_route.pod.due import check_due, due_of, is_over, late
from ray_route.pod.endings import (
    EXITS,
    Departure,
    exit_to_be_made_again,
    made_again,
    watch_loop,
)
from ray_route.pod.hooks import Hook, Hooks
from ray_route.pod.index_lease import OfPod
from ray_route.pod.methods import (
    is_stream,
    lacks_value,
    method_of,
    raised,
    sendable,
    stream_error,
)
from ray_route.pod.sigterm import before_sigterm_ends
from ray_route.protocol.calls import HEADER_LENGTH, BatchedCall, Header, Refused
from ray_route.store.url import StoreUrl

CONTROL_GROUP = "ray_route"

# Of the time that a pod has to leave, for moving its uids to others.
_DRAIN_SHARE = 0.6
_SHOWN_CHARACTERS = 500

logger = logging.getLogger(__name__)


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
    takes_turns: bool
    release_s: float | None


_agent_here: PodAgent | None = None
_departure: Departure | None = None


def current_agent() -> PodAgent | None:
    """Return the agent of the pod that this process was deployed as; None elsewhere."""
    return _agent_here


def _call(pod: Any, header: Header, /, *args: Any, **kwargs: Any) -> Any:
    """Run one call if this pod owns its uid."""
    uid, epoch, incarnation, method = header[:4]
    agent: PodAgent = pod._ray_route_agent
    place, due = Place(pod._ray_route_order, header), due_of(header)
    try:
        if not place.turn() or lacks_value(args, kwargs):
            return place.send_again()
        check_due(due, agent.service, uid, method)
        gate, function = agent.gate, method_of(pod, method)
        gate.enter(uid, epoch, incarnation)
    except RouteError as error:
        return place.refused(error)
    finally:
        place.leave()
    try:
        with pod._ray_route_turn, under(agent, header, due):
            if is_over(due):  # it waited for its turn, or for on_acquire
                return Refused(late(due, agent.service, uid, method))
            result = function(*args, **kwargs)
        gate.recheck(uid, epoch)
    except FencedError as error:
        return own_refusal(agent, header, error)
    except EXITS as error:
        return Refused(leaving(agent, uid, method, error, may_have_run=True))
    finally:
        gate.leave(uid)
    return Refused(stream_error(method)) if is_stream(result) else result


def _call_packed(pod: Any, packed: list[Any]) -> Any:
    """Run one call whose header and arguments are one list: Ray makes two of each argument."""
    return _call(pod, packed[:HEADER_LENGTH], *packed[HEADER_LENGTH:])


async def _call_packed_async(pod: Any, packed: list[Any]) -> Any:
    return await _call_async(pod, packed[:HEADER_LENGTH], *packed[HEADER_LENGTH:])


async def _call_async(pod: Any, header: Header, /, *args: Any, **kwargs: Any) -> Any:
    """Run one call if this pod owns its uid."""
    uid, epoch, incarnation, method = header[:4]
    agent: PodAgent = pod._ray_route_agent
    place, due = Place(pod._ray_route_order, header), due_of(header)
    try:
        if not await place.turn_async() or lacks_value(args, kwargs):
            return place.send_again()
        check_due(due, agent.service, uid, method)
        gate, function = agent.gate, method_of(pod, method)
        await gate.enter_async(uid, epoch, incarnation)
    except RouteError as error:
        return place.refused(error)
    finally:
        place.leave()
    try:
        with under(agent, header, due):
            if is_over(due):  # it waited for on_acquire
                return Refused(late(due, agent.service, uid, method))
            result = function(*args, **kwargs)
            if inspect.isawaitable(result):
                result = await result
        await gate.recheck_async(uid, epoch)
    except FencedError as error:
        return own_refusal(agent, header, error)
    except EXITS as error:
        return Refused(leaving(agent, uid, method, error, may_have_run=True))
    finally:
        gate.leave(uid)
    return Refused(stream_error(method)) if is_stream(result) else result


def own_refusal(agent: PodAgent, header: Header, error: FencedError) -> Refused:
    """Answer with the refusal of this very call; one that user code met elsewhere is the user's."""
    uid, epoch, *_ = header
    ours = (agent.service, agent.pod, uid, epoch, True)  # for the call has begun
    if (error.service, error.pod, error.uid, error.epoch, error.may_have_run) != ours:
        raise error
    return Refused(error)


def leaving(
    agent: PodAgent, uid: str, what: str, error: BaseException, *, may_have_run: bool
) -> PodUnavailableError:
    """Begin to end this process, since the user's code asked for it; return what a caller gets.

    Ray must not see what was raised: it would never make the pod again. Nor is the call repeated
    elsewhere, `idempotent` or not: it would end one pod after the other.
    """
    shown = repr(error)[:_SHOWN_CHARACTERS]  # a refusal is never so large that Ray stores it apart
    reason = f"{what}({uid!r}) raised {shown}, so its process ends; Ray makes it again"
    logger.error("pod %d of %s leaves: %s", agent.pod, agent.service, reason, exc_info=error)
    if _departure is not None:
        _departure.begin(exit_to_be_made_again)
    return PodUnavailableError(
        reason=reason,
        may_have_run=may_have_run,
        namespace=agent.namespace,
        service=agent.service,
        pod=agent.pod,
        uid=uid,
    )


def _flush(pod: Any) -> None:
    """Return when every call that was queued before has been answered."""


async def _flush_async(pod: Any) -> None:
    """Return when every call that was queued before has begun."""


def _call_many(pod: Any, calls: list[BatchedCall]) -> list[Any]:
    """Run many calls in order, each fenced by itself."""
    outcomes = []
    for header, args, kwargs in calls:
        try:
            outcome = _call(pod, header, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - one call's error is not the batch's
            outcome = raised(pod, header[3], error)
        outcomes.append(sendable(outcome, header[3]))
    return outcomes


async def _call_many_async(pod: Any, calls: list[BatchedCall]) -> list[Any]:
    """Run many calls at once, each fenced by itself."""
    running = (_call_async(pod, header, *args, **kwargs) for header, args, kwargs in calls)
    outcomes = await asyncio.gather(*running, return_exceptions=True)
    names = [header[3] for header, _, _ in calls]
    return [
        sendable(raised(pod, name, item) if isinstance(item, BaseException) else item, name)
        for item, name in zip(outcomes, names, strict=True)
    ]


_METHODS = {
    "_ray_route_call": _call,
    "_ray_route_call_packed": _call_packed,
    "_ray_route_call_many": _call_many,
    "_ray_route_flush": _flush,
}
_ASYNC_METHODS = {
    "_ray_route_call": _call_async,
    "_ray_route_call_packed": _call_packed_async,
    "_ray_route_call_many": _call_many_async,
    "_ray_route_flush": _flush_async,
}


@contextmanager
def _exits_become_errors(uid: str, name: str) -> Iterator[None]:
    try:
        yield
    except EXITS as error:
        if _agent_here is None:
            raise
        raise leaving(_agent_here, uid, name, error, may_have_run=False) from error


def _hook(pod: Any, name: str) -> Hook | None:
    """Return the user's hook; what it raises for the process ends that in order."""
    hook = getattr(pod, name, None)
    if hook is None:
        return None

    def here(uid: str) -> None:
        with _exits_become_errors(uid, name):
            hook(uid)

    async def on_loop(uid: str) -> None:
        with _exits_become_errors(uid, name):
            done = hook(uid)
            if inspect.isawaitable(done):
                await done

    return on_loop if is_async(type(pod)) else here


def _hooks(pod: Any, spec: PodSpec) -> Hooks:
    """Return the hooks of the user's class, which run as its calls do."""
    runs_on_loop = is_async(type(pod))
    return Hooks(
        _hook(pod, "on_acquire"),
        _hook(pod, "on_release"),
        _hook(pod, "on_lost"),
        turn=pod._ray_route_turn if spec.takes_turns and not runs_on_loop else None,
        loop=asyncio.get_running_loop() if runs_on_loop else None,
        release_s=spec.release_s,
    )


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


def _become_pod(pod: Any, spec: PodSpec) -> PodAgent:
    # At module level: the class that `pod_class` makes travels by value, with globals of its own.
    global _agent_here, _departure  # noqa: PLW0603 - a process is one pod
    pod._ray_route_turn = threading.RLock() if spec.takes_turns else nullcontext()
    # Ray runs them one by one, in order, where they take turns.
    runs_in_order = spec.takes_turns and not is_async(type(pod))
    pod._ray_route_order = ArrivalOrder() if runs_in_order else CallOrder()
    on_lapse = _exit_fenced if spec.exit_when_fenced else None
    _agent_here = PodAgent(
        spec.namespace,
        spec.service,
        spec.pod,
        redis_url=spec.url,
        actor=spec.actor,
        cpu_factor=spec.cpu_factor,
        _of_pod=OfPod(_hooks(pod, spec), on_lapse, _exit_fenced, partial(leads_here, spec.actor)),
    )
    _departure = Departure(partial(_leave_service, _agent_here, spec.grace_s))
    before_sigterm_ends(_departure)
    if is_async(type(pod)):
        watch_loop(asyncio.get_running_loop())
    # Not here: what it takes may be away for longer than anyone waits for a constructor.
    _agent_here.join_in_background()
    return _agent_here


def is_async(cls: type) -> bool:
    """True if Ray runs this class's actors on an event loop."""
    members = [member for _, member in inspect.getmembers(cls)]
    return any(map(inspect.iscoroutinefunction, members)) or any(
        map(inspect.isasyncgenfunction, members)
    )


def pod_class(cls: type) -> type:
    """Derive the class of the pod actors from an unmodified user class."""

    class Pod(cls):  # type: ignore[misc]
        def __init__(self, _ray_route_spec: PodSpec, held: list[Any], *pieces: bytes) -> None:
            spec, self._ray_route_held = _ray_route_spec, held
            with made_again(spec.namespace, spec.service, spec.pod, spec.actor):
                args, kwargs = unpack(pieces)
                super().__init__(*args, **kwargs)
                self._ray_route_agent = _become_pod(self, spec)

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

    for name, method in (_ASYNC_METHODS if is_async(cls) else _METHODS).items():
        setattr(Pod, name, method)
    Pod.__name__ = cls.__name__
    Pod.__qualname__ = cls.__qualname__
    Pod.__doc__ = cls.__doc__
    return Pod
