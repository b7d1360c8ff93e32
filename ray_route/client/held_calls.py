"""Calls that wait: for a link, a pod, an argument, or what was sent before them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import ray

from ray_route.client import operations
from ray_route.client.call_loop import CallLoop
from ray_route.client.calls import unavailable
from ray_route.client.lanes import Lane, Lanes
from ray_route.client.outgoing import Outgoing
from ray_route.client.session import NoSuchActorError, Session
from ray_route.client.user_errors import of_user
from ray_route.errors import NoAvailablePodError, RouteTimeoutError
from ray_route.runtime.waiting import run_async

_POLL_S = 0.005
_BACKOFF_S = 0.02

Send = Callable[[Lane, Outgoing, Any, Any], None]
Fail = Callable[[Lane, Outgoing, Exception], None]
Look = Callable[[list[Outgoing]], None]


class NotRunError(Exception):
    """A call has not run, and is to be sent again as it was."""


class HeldCalls:
    """Sends calls that wait, each when its turn has come.

    `send` sends a call of a lane whose lock is held, to a pod by its link and handle; `fail` ends
    a call with an error; `look` sees to calls that are out and have an answer.
    """

    def __init__(
        self, session: Session, lanes: Lanes, loop: CallLoop, send: Send, fail: Fail, look: Look
    ) -> None:
        self._session = session
        self._lanes = lanes
        self._loop = loop
        self._send = send
        self._fail = fail
        self._look = look

    def drive(self, lane: Lane) -> None:
        """Begin to send what waits in a lane, whose lock is held."""
        if not lane.is_driven:
            lane.is_driven = True
            self._loop.run_soon(self._drive(lane))

    async def _drive(self, lane: Lane) -> None:
        """Send the waiting calls of one uid, each when its turn has come."""
        while True:
            with lane.lock:
                if not lane.waiting:
                    lane.is_driven = False
                    self._lanes.drop_if_empty(lane)
                    return
                call = lane.waiting[0]
            try:
                await self._send_next(lane, call)
            except Exception as error:  # noqa: BLE001 - it is the call's outcome
                self._fail(lane, call, error)

    async def _send_next(self, lane: Lane, call: Outgoing) -> None:
        """Send the first of the waiting calls, once it is certain that none comes back before."""
        if call.trouble is not None:
            await self._judge(call, call.trouble)
        for one in call.upstream():
            await self._until(_is_sent, one, call)
        while True:
            link, handle = await self._owner(call)
            with lane.lock:
                if call.over:
                    return
                if lane.waiting[0] is not call:
                    return  # an earlier one came back
                if lane.may_send(link.epoch) and not lane.is_held_up():
                    lane.waiting.remove(call)
                    self._send(lane, call, link, handle)
                    return
                before = list(lane.out)
            self._check(call)
            self._look(before)
            await asyncio.sleep(_POLL_S)

    async def _judge(self, call: Outgoing, trouble: Exception) -> None:
        """Find out what a missing answer means; return if the call is to be sent again."""
        upstream = call.upstream()
        for one in upstream:
            self._look([one])
            await self._until(_is_certain, one, call)
        call.trouble = None
        if tuple(one.ref for one in upstream) != call.sent_refs or isinstance(trouble, NotRunError):
            return
        if isinstance(trouble, ray.exceptions.RayTaskError):
            raise of_user(trouble, call.method, call.ids)
        session, link = self._session, call.link
        assert link is not None
        call.may_have_run = True
        lost = unavailable(session, call.uid, call.service, link, trouble)
        report = operations.failed(session, call.uid, call.service, link, trouble)
        try:
            call.min_epoch = await run_async(report, call.deadline)
        except Exception:
            if call.idempotent:
                raise
        if not call.idempotent:
            raise lost from trouble

    async def _until(
        self, there: Callable[[Outgoing], bool], one: Outgoing, call: Outgoing
    ) -> None:
        """Wait until the call whose answer is an argument has come so far, or raise its error."""
        while not there(one) and one.error is None:
            self._check(call)
            await asyncio.sleep(_POLL_S)
        if one.error is not None:
            raise one.error

    def _check(self, call: Outgoing) -> None:
        """Raise if a waiting call is not to be sent any more."""
        try:
            call.deadline.check(f"the turn of {call.what}")
        except RouteTimeoutError as error:
            ids = {"service": call.service, "uid": call.uid, "may_have_run": call.may_have_run}
            raise RouteTimeoutError(
                waiting_for=error.waiting_for, timeout_s=error.timeout_s, **ids
            ) from None
        if call.error is not None:
            raise call.error

    async def _owner(self, call: Outgoing) -> tuple[Any, Any]:
        """Return the link of a call's uid, and the handle of its pod."""
        session, service, first = self._session, call.service, True
        while True:
            self._check(call)
            link = None
            try:
                ask = operations.compute(session, call.uid, service, call.min_epoch)
                link = await run_async(ask, call.deadline)
                return link, await run_async(session.handle(service, link), call.deadline)
            except NoAvailablePodError:
                if first and not call.min_epoch:
                    raise
            except NoSuchActorError:
                assert link is not None
                report = operations.failed(session, call.uid, service, link)
                call.min_epoch = await run_async(report, call.deadline)
            first = False
            await asyncio.sleep(_BACKOFF_S)


def _is_sent(call: Outgoing) -> bool:
    return call.ref is not None


def _is_certain(call: Outgoing) -> bool:
    return call.certain
