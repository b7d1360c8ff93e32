"""Calls that wait: for a link, a pod, an argument, or what was sent before them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import ray

from ray_route.client import operations
from ray_route.client.call_loop import CallLoop
from ray_route.client.lanes import Lane
from ray_route.client.outgoing import Outgoing
from ray_route.client.refusals import unavailable
from ray_route.client.session import NoSuchActorError, Session
from ray_route.client.user_errors import of_user
from ray_route.errors import NoAvailablePodError, RouteError
from ray_route.runtime.waiting import run_async

_POLL_S = 0.005
_BACKOFF_S = 0.02

Send = Callable[[Lane, Outgoing, Any, Any], bool]
Fail = Callable[[Lane, Outgoing, Exception], None]
Look = Callable[[list[Outgoing]], None]


class NotRunError(Exception):
    """A call has not run, and is to be sent again as it was."""


class HeldCalls:
    """Sends calls that wait, each when its turn has come.

    `send` sends a call of a lane whose lock is held, to a pod by its link and handle, and says
    whether it could; `fail` ends
    a call with an error; `look` sees to calls that are out and have an answer.
    """

    def __init__(
        self, session: Session, loop: CallLoop, send: Send, fail: Fail, look: Look
    ) -> None:
        self._session = session
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
            with lane.held():
                if not lane.waiting:
                    lane.is_driven = False
                    return
                call = lane.waiting[0]
            try:
                await self._send_next(lane, call)
            except Exception as error:  # noqa: BLE001 - it is the call's outcome
                self._fail(lane, call, call.judged(error))

    async def _send_next(self, lane: Lane, call: Outgoing) -> None:
        """Send the first of the waiting calls, once it is certain that none comes back before.

        Returns without having sent it when an earlier one has come back, which it may wait for.
        """
        for one in call.upstream():
            if not await self._is_there(lane, call, one):
                return
        if call.trouble is not None:
            await self._judge(call, call.trouble)
        while True:
            link, handle = await self._owner(call)
            with lane.held():
                if call.over or lane.waiting[0] is not call:
                    return
                self._check(call)  # under the lock: whoever waits may have been told its end
                if lane.may_send(link.epoch) and not lane.is_held_up():
                    if self._send(lane, call, link, handle):
                        lane.waiting.remove(call)
                    return
                before = list(lane.out)
            self._check(call)
            self._look(before)
            await asyncio.sleep(_POLL_S)

    async def _is_there(self, lane: Lane, call: Outgoing, one: Outgoing) -> bool:
        """Wait for the answer of a call that is an argument; False if this is not the first now.

        Until that was sent, or, if this one has come back, until it is certain. If that ends with
        an error, so does this call.
        """
        while one.ref is None or (call.trouble is not None and not one.certain):
            if one.error is not None:
                self._fail(lane, call, one.error)
                return False
            self._check(call)
            self._look([one])
            with lane.held():
                if not lane.waiting or lane.waiting[0] is not call:
                    return False
            await asyncio.sleep(_POLL_S)
        return True

    async def _judge(self, call: Outgoing, trouble: Exception) -> None:
        """Find out what a missing answer means; return if the call is to be sent again."""
        call.trouble = None
        if isinstance(trouble, NotRunError):
            return
        if isinstance(trouble, ray.exceptions.RayTaskError):
            if tuple(one.ref for one in call.upstream()) != call.sent_refs:
                return  # that argument has been sent again, too
            raise of_user(trouble, call.method, call.ids)
        session, link = self._session, call.link
        assert link is not None
        lost = unavailable(call.ids, trouble)
        report = operations.failed(session, call.uid, call.service, link, trouble)
        try:
            call.min_epoch = await run_async(report, call.deadline)
        except RouteError:
            if call.idempotent:
                raise
        if not call.idempotent:
            raise lost from trouble

    def _check(self, call: Outgoing) -> None:
        """Raise if a waiting call is not to be sent any more."""
        self._session.namespace.check_here()
        call.deadline.check(f"the turn of {call.what}")
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
