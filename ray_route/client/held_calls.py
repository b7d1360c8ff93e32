"""Calls that wait: for a link, a pod, an argument, or what was sent before them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ray_route.client import operations
from ray_route.client.arrivals import Arrivals, have_arrived
from ray_route.client.call_loop import CallLoop
from ray_route.client.lanes import Lane
from ray_route.client.outgoing import Outgoing, cancelled
from ray_route.client.refusals import unavailable
from ray_route.client.session import NoSuchActorError, Session
from ray_route.errors import NoAvailablePodError, RouteError
from ray_route.runtime.waiting import run_async

_POLL_S = 0.005
_BACKOFF_S = 0.02

Send = Callable[[Lane, Outgoing, Any, Any], None]
Fail = Callable[[Lane, Outgoing, Exception], None]


class NotRunError(Exception):
    """A call has not run, and is to be sent again as it was."""


class HeldCalls:
    """Sends calls that wait, each when its turn has come.

    `send` sends a call of a lane whose lock is held, to a pod by its link and handle; `fail` ends
    a call with an error.
    """

    def __init__(self, session: Session, loop: CallLoop, send: Send, fail: Fail) -> None:
        self._session = session
        self._loop = loop
        self._send = send
        self._fail = fail
        self._arrivals = Arrivals()

    def drive(self, lane: Lane) -> None:
        """Have what waits in a lane sent, and what will by the time that its lock is let go of."""
        if not lane.is_driven:
            self._loop.run_soon(self._drive, lane)

    async def _drive(self, lane: Lane) -> None:
        """Send the waiting calls of one uid, each when its turn has come."""
        if lane.is_driven:
            return
        lane.is_driven = True
        try:
            while (call := self._first(lane)) is not None:
                try:
                    await self._send_next(lane, call)
                except Exception as error:  # noqa: BLE001 - it is the call's outcome
                    with lane.lock:
                        if call.ref is None:  # else its maker has sent it
                            self._fail(lane, call, call.judged(error))
        finally:
            lane.is_driven = False

    def _first(self, lane: Lane) -> Outgoing | None:
        with lane.lock:
            lane.is_driven = bool(lane.waiting)
            return lane.first

    async def _send_next(self, lane: Lane, call: Outgoing) -> None:
        """Send the first of the waiting calls, once it is certain that none comes back before.

        Returns without having sent it when an earlier one has come back, which it may wait for.
        """
        if call.trouble is not None:
            await self._judge(call, call.trouble)
        self._check(call)
        if not have_arrived(call):
            await self._arrivals.of(call)
            return  # to look who is the first now
        if (failed := call.failed_argument()) is not None:
            raise failed
        while True:
            link, handle = await self._owner(call)
            with lane.lock:
                if call.over or lane.first is not call:
                    return
                self._check(call)  # under the lock: whoever waits may have been told its end
                if lane.may_send(link.epoch):
                    self._send(lane, call, link, handle)
                    lane.waiting.remove(call)
                    return
                before = list(lane.out)
            self._check(call)
            lane.look(before)
            await asyncio.sleep(_POLL_S)

    async def _judge(self, call: Outgoing, trouble: Exception) -> None:
        """Find out what a missing answer means; return if the call is to be sent again."""
        call.trouble = None
        if isinstance(trouble, NotRunError):
            await asyncio.sleep(call.busy_pause_s)  # too many wait for its uid
            return
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
        if call.cancelled:
            raise cancelled(call, may_have_run=call.may_have_run)

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
