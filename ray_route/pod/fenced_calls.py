"""Fenced calls of pods whose uids take no turns: in threads, or on the event loop."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

from ray_route.errors import FencedError, RouteError
from ray_route.pod.agent import PodAgent
from ray_route.pod.call_order import Place
from ray_route.pod.current_link import under
from ray_route.pod.due import check_due, due_of, is_over, late
from ray_route.pod.endings import EXITS
from ray_route.pod.leaving import leaving, own_refusal
from ray_route.pod.methods import (
    is_stream,
    lacks_value,
    method_of,
    raised,
    sendable,
    stream_error,
)
from ray_route.pod.surely_left import surely_left
from ray_route.protocol.calls import BatchedCall, Header, Refused, chain_of, unpacked
from ray_route.runtime.running_hooks import check_not_awaited


def _call(pod: Any, header: Header, /, *args: Any, **kwargs: Any) -> Any:
    """Run one call if this pod owns its uid."""
    place = Place(pod._ray_route_order, header)
    with surely_left(pod._ray_route_agent, header[0], place, place):
        return _served(pod, place, header, args, kwargs)


def _served(pod: Any, place: Place, header: Header, args: Any, kwargs: Any) -> Any:
    uid, epoch, incarnation, method = header[:4]
    agent: PodAgent = pod._ray_route_agent
    due = due_of(header)
    try:
        if not place.turn() or lacks_value(args, kwargs):
            return place.send_again()
        check_due(due, agent.service, uid, method)
        check_not_awaited(chain_of(header), agent.namespace, agent.service, uid)
        gate, function = agent.gate, method_of(pod, method)
        gate.enter(uid, epoch, incarnation, place, due=due)
    except RouteError as error:
        return place.refused(error)
    finally:
        place.leave()
    try:
        with pod._ray_route_turn, under(agent, header, due):
            if is_over(due):  # it waited for its turn, or for on_acquire
                return Refused(late(due, agent.service, uid, method))
            gate.recheck(uid, epoch, has_run=False)
            result = function(*args, **kwargs)
        gate.recheck(uid, epoch)
    except FencedError as error:
        return own_refusal(agent, error)
    except EXITS as error:
        return Refused(leaving(agent, uid, method, error, may_have_run=True))
    finally:
        gate.leave(uid, place)
    return Refused(stream_error(method)) if is_stream(result) else result


def _call_packed(pod: Any, packed: list[Any] | bytes) -> Any:
    """Run one call whose header and arguments are one argument: Ray makes two of each."""
    header, args = unpacked(packed)
    return _call(pod, header, *args)


async def _call_packed_async(pod: Any, packed: list[Any] | bytes) -> Any:
    header, args = unpacked(packed)
    return await _call_async(pod, header, *args)


async def _call_async(pod: Any, header: Header, /, *args: Any, **kwargs: Any) -> Any:
    """Run one call if this pod owns its uid."""
    uid, epoch, incarnation, method = header[:4]
    agent: PodAgent = pod._ray_route_agent
    place, due = Place(pod._ray_route_order, header), due_of(header)
    try:
        if not await place.turn_async() or lacks_value(args, kwargs):
            return place.send_again()
        check_due(due, agent.service, uid, method)
        check_not_awaited(chain_of(header), agent.namespace, agent.service, uid)
        gate, function = agent.gate, method_of(pod, method)
        await gate.enter_async(uid, epoch, incarnation, due=due)
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
        return own_refusal(agent, error)
    except EXITS as error:
        return Refused(leaving(agent, uid, method, error, may_have_run=True))
    finally:
        gate.leave(uid)
    return Refused(stream_error(method)) if is_stream(result) else result


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


METHODS = {
    "_ray_route_call": _call,
    "_ray_route_call_packed": _call_packed,
    "_ray_route_call_many": _call_many,
    "_ray_route_flush": _flush,
}
ASYNC_METHODS = {
    "_ray_route_call": _call_async,
    "_ray_route_call_packed": _call_packed_async,
    "_ray_route_call_many": _call_many_async,
    "_ray_route_flush": _flush_async,
}
