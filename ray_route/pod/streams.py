"""Calls that answer item by item: a generator of the user's, within the fence from end to end."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from ray_route.errors import FencedError, RouteError
from ray_route.pod.agent import PodAgent
from ray_route.pod.current_link import under
from ray_route.pod.due import check_due, due_of, is_over, late
from ray_route.pod.endings import EXITS
from ray_route.pod.leaving import leaving, own_refusal
from ray_route.pod.methods import is_generator, is_stream, no_stream_error, stream_of
from ray_route.pod.surely_left import surely_left
from ray_route.protocol.calls import Header, Refused, StreamEnd, chain_of
from ray_route.runtime.running_hooks import check_not_awaited

_END = object()


def stream(pod: Any, header: Header, /, *args: Any, **kwargs: Any) -> Iterator[Any]:
    """Yield what the user's generator does, if this pod owns the uid, and then a `StreamEnd`.

    A `Refused` instead says that nothing has run, if it comes first; or that no more comes.
    """
    call = object()
    with surely_left(pod._ray_route_agent, header[0], call):
        yield from _served(pod, call, header, args, kwargs)


def _served(pod: Any, call: object, header: Header, args: Any, kwargs: Any) -> Iterator[Any]:
    uid, epoch, incarnation, method = header[:4]
    agent: PodAgent = pod._ray_route_agent
    gate = agent.gate
    try:
        check_due(due_of(header), agent.service, uid, method)
        check_not_awaited(chain_of(header), agent.namespace, agent.service, uid)
        function = stream_of(pod, method)
        gate.enter(uid, epoch, incarnation, call, due=due_of(header))
    except RouteError as error:
        yield Refused(error)
        return
    last: Any = StreamEnd()
    items: Any = None
    try:
        with pod._ray_route_turn:
            items = checked(_begun(agent, header, partial(function, *args, **kwargs)), method)
        has_run = not is_generator(function)
        for item in _taking_turns(pod, agent, header, items, has_run=has_run):
            if type(item) is Refused:
                last = item
                break
            gate.recheck(uid, epoch)
            yield item
        else:
            gate.recheck(uid, epoch)
    except FencedError as error:
        last = own_refusal(agent, error)
    except EXITS as error:
        last = Refused(leaving(agent, uid, method, error, may_have_run=True))
    finally:
        try:
            with pod._ray_route_turn:
                _close(agent, header, items)
        except EXITS as error:  # whoever closes it early is told nothing any more
            leaving(agent, uid, method, error, may_have_run=True)
        finally:
            gate.leave(uid, call)
    yield last


def _begun(agent: PodAgent, header: Header, function: Callable[[], Any]) -> Any:
    """Return what the user's code returns that begins a call; a refusal if it waited too long.

    Raises `FencedError` if its uid was lost meanwhile.
    """
    due = due_of(header)
    if is_over(due):
        return Refused(late(due, agent.service, header[0], header[3]))
    agent.gate.recheck(header[0], header[1], has_run=False)
    return _step(agent, header, function)


def checked(items: Any, method: str) -> Any:
    """Return a generator or a refusal; a refusal instead of anything else."""
    known = type(items) is Refused or is_stream(items)
    return items if known else Refused(no_stream_error(method, items))


def _taking_turns(
    pod: Any, agent: PodAgent, header: Header, items: Any, *, has_run: bool
) -> Iterator[Any]:
    """Yield the items, each made in a turn of its own: hooks may run in between; or a refusal.

    Of a generator nothing `has_run` before its first one: it may have waited too long for that.
    """
    if type(items) is Refused:
        yield items
        return
    step = partial(next, items, _END)
    with pod._ray_route_turn:
        item = _step(agent, header, step) if has_run else _begun(agent, header, step)
    while item is not _END:
        yield item
        with pod._ray_route_turn:
            item = _step(agent, header, step)


def _step(agent: PodAgent, header: Header, step: Callable[[], Any]) -> Any:
    with under(agent, header, None):
        return step()


def _close(agent: PodAgent, header: Header, items: Any) -> None:
    if inspect.isgenerator(items):
        with under(agent, header, None):
            items.close()


async def stream_async(
    pod: Any, header: Header, /, *args: Any, **kwargs: Any
) -> AsyncIterator[Any]:
    """Do the same on the event loop; the generator may be one of either kind."""
    uid, epoch, incarnation, method = header[:4]
    agent: PodAgent = pod._ray_route_agent
    gate = agent.gate
    try:
        check_due(due_of(header), agent.service, uid, method)
        check_not_awaited(chain_of(header), agent.namespace, agent.service, uid)
        function = stream_of(pod, method)
        await gate.enter_async(uid, epoch, incarnation, due=due_of(header))
    except RouteError as error:
        yield Refused(error)
        return
    last: Any = StreamEnd()
    items: Any = None
    try:
        items = _begun(agent, header, partial(function, *args, **kwargs))
        if inspect.isawaitable(items):
            with under(agent, header, None):
                items = await items
        items = checked(items, method)
        if type(items) is Refused:
            last = items
        else:
            async for item in _one_by_one(agent, header, items):
                await gate.recheck_async(uid, epoch)
                yield item
            await gate.recheck_async(uid, epoch)
    except FencedError as error:
        last = own_refusal(agent, error)
    except EXITS as error:
        last = Refused(leaving(agent, uid, method, error, may_have_run=True))
    finally:
        try:
            await _close_async(agent, header, items)
        except EXITS as error:  # whoever closes it early is told nothing any more
            leaving(agent, uid, method, error, may_have_run=True)
        finally:
            gate.leave(uid)
    yield last


async def _close_async(agent: PodAgent, header: Header, items: Any) -> None:
    if inspect.isasyncgen(items):
        with suppress(RuntimeError):  # it is closed already, or closes itself
            await items.aclose()
    else:
        _close(agent, header, items)


async def _one_by_one(agent: PodAgent, header: Header, items: Any) -> AsyncIterator[Any]:
    while True:
        with under(agent, header, None):
            try:
                item = await anext(items) if hasattr(items, "__anext__") else next(items)
            except (StopIteration, StopAsyncIteration):
                return
        yield item
