"""Sends calls at once, in order, and sees to those that nobody waits for.

A call whose link and pod are known, and that no earlier call of its uid holds up, is sent by the
thread that makes it. All else is done on a loop in one thread of the process: look-ups, refusals,
pods that end (`held_calls`), and a look now and then at answers that nobody has taken (`untaken`).
"""

from __future__ import annotations

import logging
import threading
from typing import Any

import ray

from ray_route.client.call_loop import CallLoop
from ray_route.client.held_calls import HeldCalls, NotRunError
from ray_route.client.lanes import Lane, Lanes
from ray_route.client.outgoing import Outgoing
from ray_route.client.refusals import GONE, amended, follow, may_have_run, unavailable
from ray_route.client.session import Session
from ray_route.client.untaken import Untaken
from ray_route.client.user_errors import of_user
from ray_route.errors import CallCancelledError, ClosedError, RouteError
from ray_route.protocol.calls import Refused, SendAgain
from ray_route.runtime.call_context import node_mark, time_of

logger = logging.getLogger(__name__)


class Dispatcher:
    """The calls of one session that are on their way. Thread-safe."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.lanes = Lanes()
        self._closed = False
        self.loop = CallLoop()
        self.untaken = Untaken(session, self.loop, self)
        look = self.untaken.look
        self._held = HeldCalls(session, self.loop, self._send, self._failed, look)
        session.at_close.append(self.close)

    # Sending.

    def send(self, call: Outgoing) -> None:
        """Send a call, or have it wait for what must come first.

        Raises what Ray raises for arguments that can't be pickled, having sent nothing.
        """
        with self.lanes.of(call) as lane:
            if self._closed:  # asked here, or `close` might not see what is held
                raise self._left()
            self.session.namespace.check_here()
            if lane.waiting or not self._sent_at_once(lane, call):
                self._hold(lane, call)

    def _sent_at_once(self, lane: Lane, call: Outgoing) -> bool:
        session = self.session
        # Whoever waits has just looked it up: once is what is counted, and what it costs.
        link = call.link
        if link is None or session.has_ended(call.service, link):
            link = session.near.get(call.service, call.uid)
        if link is None or not lane.may_send(link.epoch) or lane.is_held_up():
            return False
        handle = session.known_handle(call.service, link)
        return handle is not None and self._send(lane, call, link, handle)

    def _send(self, lane: Lane, call: Outgoing, link: Any, handle: Any) -> bool:
        """Send a call; False if it lacks the answer of a call that is an argument."""
        refs = tuple(one.ref for one in call.upstream())  # read once: one may just come back
        if any(ref is None for ref in refs):
            return False
        call.sent_refs = refs
        due = (time_of(call.deadline), node_mark())
        call.order = lane.order()
        header = [call.uid, link.epoch, link.incarnation, call.method, *call.order, *due]
        try:
            ref = _to_pod(handle, header, call)
        except BaseException:
            lane.place -= 1  # nobody has it
            raise
        lane.sent(call, ref, link)
        self.untaken.add(call)
        return True

    def _hold(self, lane: Lane, call: Outgoing) -> None:
        lane.hold(call)
        self._held.drive(lane)

    def _left(self) -> ClosedError:
        name = self.session.namespace.name
        return ClosedError(
            what=f"the session of namespace {name!r} in this process", namespace=name
        )

    # What became of an answer. Whoever sees one says so; what was said before does nothing.

    def settled(self, call: Outgoing, ref: Any, failure: Exception | None = None) -> bool:
        """Take in that an answer is the outcome, and what the user's code raised.

        False if the call has been sent again meanwhile, and another answer is to count.
        """
        with self.lanes.of(call) as lane:
            if call.ref is not ref:
                return False
            call.failure = failure
            lane.over(call)
            self.untaken.discard(call)
        if call.forsaken:
            log_untaken(call)
        return True

    def _failed(self, lane: Lane, call: Outgoing, error: Exception) -> None:
        with lane.held():
            lane.over(call, error)
            self.untaken.discard(call)
        if call.forsaken:
            log_untaken(call)

    def refused(self, call: Outgoing, ref: Any, refused: Refused) -> None:
        """Follow a refusal: the call is sent again, or ends with what can't be followed."""
        with self.lanes.of(call) as lane:
            if call.ref is not ref or call.over:
                return
            link, ran_before = call.link, call.may_have_run
            assert link is not None
            call.may_have_run |= may_have_run(refused)
            try:
                call.min_epoch = follow(
                    self.session, call.uid, call.service, link, refused, idempotent=call.idempotent
                )
            except RouteError as error:  # the call's outcome
                self._failed(lane, call, amended(error, ran_before=ran_before))
                return
            lane.have_begun(*call.order)  # those before it, or it would not have been refused
            self._come_back(lane, call, ref)

    def troubled(self, call: Outgoing, ref: Any, error: Exception, begun: int = 0) -> None:
        """See to an answer that did not come: its pod is gone, or it is to be sent again.

        So many calls of its run are known to have begun.
        """
        with self.lanes.of(call) as lane:
            if call.ref is ref and not call.over:
                call.trouble = error
                if isinstance(error, GONE) and not isinstance(error, ray.exceptions.RayTaskError):
                    call.may_have_run = True  # its pod has ended with it
                lane.have_begun(call.order[0], begun)
                self._come_back(lane, call, ref)

    def _come_back(self, lane: Lane, call: Outgoing, ref: Any) -> None:
        lost = call.trouble if isinstance(call.trouble, GONE) else None
        if call.cancelled:
            self._failed(lane, call, cancelled(call, may_have_run=call.may_have_run))
        elif self._closed:  # nobody would send it again
            self._failed(lane, call, unavailable(call.ids, lost) if lost else self._left())
        elif lane.came_back(call, ref):
            self.untaken.discard(call)
            self._held.drive(lane)

    def cancel(self, call: Outgoing) -> None:
        """End a call that waits, at once; have the pod cancel one that was sent."""
        self.session.namespace.check_here()
        with self.lanes.of(call):
            self.withdraw(call)
            call.cancelled = True
        if not call.over:
            ray.cancel(call.ref, recursive=False)

    def withdraw(self, call: Outgoing) -> None:
        """End a call that waits; leave alone one that was sent."""
        with self.lanes.of(call) as lane:
            if not call.over and call.ref is None:
                self._failed(lane, call, cancelled(call, may_have_run=call.may_have_run))

    def take_in(self, call: Outgoing, ref: Any, answer: Any) -> bool:
        """Take in an answer; True if it is the call's outcome."""
        if type(answer) is Refused:
            self.refused(call, ref, answer)
        elif type(answer) is SendAgain:
            self.troubled(call, ref, NotRunError(), answer.begun)
        else:
            return self.settled(call, ref)
        return False

    def take_in_error(self, call: Outgoing, ref: Any, error: Exception) -> bool:
        """Take in what came instead of an answer; True if it is the call's outcome."""
        if isinstance(error, ray.exceptions.RayTaskError):
            of_argument = call.sent_refs and isinstance(error.cause, ray.exceptions.RayActorError)
            if not of_argument:
                return self.settled(call, ref, error)
        elif not isinstance(error, GONE):
            return self.settled(call, ref, error)
        self.troubled(call, ref, error)
        return False

    def close(self) -> None:
        """End what waits; what was sent can still be had."""
        self._closed = True
        for lane in self.lanes.all():
            with lane.held():
                for call in list(lane.waiting):
                    self._failed(lane, call, self._left())
        self.loop.stop()


def _to_pod(handle: Any, header: list[Any], call: Outgoing) -> Any:
    """Hand a call to Ray; return the reference of its answer."""
    if call.is_plain and not call.kwargs:  # one argument costs Ray less than two
        return handle._ray_route_call_packed.remote([*header, *call.args])
    args, kwargs = call.as_sent()
    return handle._ray_route_call.remote(header, *args, **kwargs)


def cancelled(call: Outgoing, *, may_have_run: bool) -> CallCancelledError:
    """Make the error of a cancelled call."""
    return CallCancelledError(method=call.method, may_have_run=may_have_run, **call.ids)


def log_untaken(call: Outgoing) -> None:
    """Log the failure of a call that nobody has taken, or can take any more; once."""
    failure = call.error or call.failure
    if failure is None or call.taken or isinstance(failure, CallCancelledError):
        return
    call.taken = True
    shown = of_user(failure, call.method, call.ids)
    logger.error("%s failed, and nobody took its outcome: %s", call.what, shown)


_dispatchers_lock = threading.Lock()


def dispatcher_of(session: Session) -> Dispatcher:
    """Return a session's dispatcher, making it at first use."""
    with _dispatchers_lock:
        if session.dispatcher is None:
            session.dispatcher = Dispatcher(session)
        return session.dispatcher  # type: ignore[no-any-return]
