"""Sends calls at once, in order, and sees to those that nobody waits for.

A call whose link and pod are known, and that no earlier call of its uid holds up, is sent by the
thread that makes it. All else is done on a loop in one thread of the process: look-ups, refusals,
pods that end (`held_calls`), and a look now and then at answers that nobody has taken (`untaken`).
"""

from __future__ import annotations

import logging
from typing import Any

import ray

from ray_route.client.arrivals import have_arrived
from ray_route.client.call_loop import CallLoop
from ray_route.client.held_calls import HeldCalls, NotRunError
from ray_route.client.lanes import Lane, Lanes
from ray_route.client.outgoing import Outgoing, cancelled
from ray_route.client.refusals import GONE, amended, follow, may_have_run, unavailable
from ray_route.client.session import Session
from ray_route.client.untaken import Untaken
from ray_route.client.user_errors import of_user
from ray_route.errors import ClosedError, RouteError
from ray_route.protocol.calls import Header, Refused, SendAgain, packed
from ray_route.runtime.running_hooks import check_not_awaited

logger = logging.getLogger(__name__)


class Dispatcher:
    """The calls of one session that are on their way. Thread-safe."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._closed = False
        self.loop = CallLoop()
        self.untaken = Untaken(session, self.loop, self)
        self.lanes = Lanes(self.untaken.look)
        self._held = HeldCalls(session, self.loop, self._send, self._failed)
        session.at_close.append(self.close)

    # Sending.

    def send(self, call: Outgoing, *, looks_up: bool = False) -> bool:
        """Send a call, or have it wait for what must come first.

        With `looks_up`, True is said of one that waits for its link alone: its maker is to look
        that up, and then to call `go_on`. Raises what Ray raises for arguments that can't be
        pickled, having sent nothing. Interrupted it may have been sent, and is not sent again.
        """
        try:
            return self._take_up(call, looks_up=looks_up)
        except BaseException:
            call.cancelled = call.forsaken = True
            raise

    def _take_up(self, call: Outgoing, *, looks_up: bool) -> bool:
        self.session.namespace.check_here()
        check_not_awaited(call.chain, call.namespace, call.service, call.uid)
        lane = call.lane = self.lanes.of(call)
        may_begin = have_arrived(call)
        with lane.lock:
            if self._closed:  # asked here, or `close` might not see what is held
                raise self._left()
            if may_begin and not lane.waiting and self._sent_at_once(lane, call):
                return False
            is_left = looks_up and may_begin and not (lane.waiting or lane.out)
            if not is_left:
                self._held.drive(lane)  # first: interrupted in between, it finds nothing to do
            lane.hold(call)
            return is_left

    def go_on(self, call: Outgoing) -> None:
        """Send a call whose maker has looked up its link, if nobody has, or else in its turn."""
        lane: Lane = call.lane
        with lane.lock:
            if lane.first is call:
                lane.waiting.remove(call)  # interrupted, it must not be sent twice
                if not self._sent_at_once(lane, call):
                    lane.hold(call)
            if lane.waiting:
                self._held.drive(lane)

    def give_up(self, call: Outgoing) -> None:
        """Have a call not be sent, if it was not, since its maker waits no more. Takes no lock."""
        call.taken = call.cancelled = True
        if call.ref is None and call.lane is not None:
            self._held.drive(call.lane)

    def _sent_at_once(self, lane: Lane, call: Outgoing) -> bool:
        session = self.session
        # Whoever waits has just looked it up: once is what is counted, and what it costs.
        link = call.link
        if link is None or session.has_ended(call.service, link):
            link = session.near.get(call.service, call.uid)
        if link is None or not lane.may_send(link.epoch):
            return False
        handle = session.known_handle(call.service, link)
        if handle is None:
            call.link = link  # who asks for the handle need not look it up again
            return False
        if not call.is_plain and call.failed_argument() is not None:
            return False
        self._send(lane, call, link, handle)
        return True

    def _send(self, lane: Lane, call: Outgoing, link: Any, handle: Any) -> None:
        """Send a call whose arguments are there."""
        if not call.is_plain:
            call.sent_refs = tuple(one.ref for one in call.upstream())
        call.order = lane.order()
        try:
            ref = _to_pod(handle, call.header(link, call.order), call)
        except Exception:
            lane.not_sent()  # nobody has it
            raise
        call.link, call.ref = link, ref
        self.untaken.add(call)  # before anything waits for its end
        lane.sent(call, link.epoch)

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
        lane: Lane = call.lane
        with lane.lock:
            if call.ref is not ref:
                return False
            call.failure = failure
            lane.over(call)
            self.untaken.discard(call)
        if call.forsaken:
            log_untaken(call)
        return True

    def _failed(self, lane: Lane, call: Outgoing, error: Exception) -> None:
        with lane.lock:
            lane.over(call, error)
            self.untaken.discard(call)
        if call.forsaken:
            log_untaken(call)

    def refused(self, call: Outgoing, ref: Any, refused: Refused) -> None:
        """Follow a refusal: the call is sent again, or ends with what can't be followed."""
        lane: Lane = call.lane
        with lane.lock:
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
            self._come_back(lane, call)

    def troubled(self, call: Outgoing, ref: Any, error: Exception, begun: int = 0) -> None:
        """See to an answer that did not come: its pod is gone, or it is to be sent again.

        So many calls of its run are known to have begun.
        """
        lane: Lane = call.lane
        with lane.lock:
            if call.ref is ref and not call.over:
                call.trouble = error
                if isinstance(error, GONE):
                    call.may_have_run = True  # its pod has ended with it
                lane.have_begun(call.order[0], begun)
                self._come_back(lane, call)

    def _again(self, call: Outgoing, ref: Any, answer: SendAgain) -> None:
        lane: Lane = call.lane
        with lane.lock:
            if call.ref is ref and not call.over:
                call.busy = call.busy + 1 if answer.busy else 0
                if answer.busy:
                    lane.is_busy(call, answer.begun)
                self.troubled(call, ref, NotRunError(), answer.begun)

    def _come_back(self, lane: Lane, call: Outgoing) -> None:
        lost = call.trouble if isinstance(call.trouble, GONE) else None
        if call.cancelled:
            self._failed(lane, call, cancelled(call, may_have_run=call.may_have_run))
        elif self._closed:  # nobody would send it again
            self._failed(lane, call, unavailable(call.ids, lost) if lost else self._left())
        else:
            self._held.drive(lane)
            lane.came_back(call)
            self.untaken.discard(call)

    def cancel(self, call: Outgoing) -> None:
        """End a call that waits, at once; have the pod cancel one that was sent."""
        self.session.namespace.check_here()
        call.cancelled = True
        lane: Lane = call.lane
        with lane.lock:
            if not call.over and call.ref is None:
                self._failed(lane, call, cancelled(call, may_have_run=call.may_have_run))
        if not call.over:
            ray.cancel(call.ref, recursive=False)

    def take_in(self, call: Outgoing, ref: Any, answer: Any) -> bool:
        """Take in an answer; True if it is the call's outcome."""
        if type(answer) is Refused:
            self.refused(call, ref, answer)
        elif type(answer) is SendAgain:
            self._again(call, ref, answer)
        else:
            return self.settled(call, ref)
        return False

    def take_in_error(self, call: Outgoing, ref: Any, error: Exception) -> bool:
        """Take in what came instead of an answer; True if it is the call's outcome."""
        if isinstance(error, ray.exceptions.RayTaskError) or not isinstance(error, GONE):
            return self.settled(call, ref, error)
        self.troubled(call, ref, error)
        return False

    def close(self) -> None:
        """End what waits; what was sent can still be had."""
        self._closed = True
        for lane in self.lanes.all():
            with lane.lock:
                for call in list(lane.waiting):
                    self._failed(lane, call, self._left())
        self.loop.stop()


def _to_pod(handle: Any, header: Header, call: Outgoing) -> Any:
    """Hand a call to Ray; return the reference of its answer."""
    if call.is_plain and not call.kwargs:
        return handle._ray_route_call_packed.remote(packed(header, call.args))
    args, kwargs = call.as_sent()
    return handle._ray_route_call.remote(header, *args, **kwargs)


def log_untaken(call: Outgoing) -> None:
    """Log the failure of a call that nobody has taken, or can take any more; once."""
    failure = call.error or call.failure
    if failure is None or call.taken or call.cancelled:
        return
    call.taken = True
    shown = of_user(failure, call.method, call.ids)
    logger.error("%s failed, and nobody took its outcome: %s", call.what, shown)
