"""The call behind a stream: it is sent to its pod, and again if need be; its items are taken."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from concurrent.futures import Future
from typing import Any

import ray

from ray_route.client import operations
from ray_route.client.arrivals import have_arrived
from ray_route.client.dispatcher import Dispatcher
from ray_route.client.feed import Feed, Item, Sent
from ray_route.client.outgoing import Outgoing, cancelled
from ray_route.client.refusals import (
    GONE,
    UNDECIDED,
    follow,
    judged,
    may_have_run,
    unavailable,
)
from ray_route.client.responses import Failed, settled
from ray_route.client.session import NoSuchActorError
from ray_route.client.user_errors import of_user
from ray_route.clock import now
from ray_route.errors import (
    InvalidInputError,
    NoAvailablePodError,
    RayGoneError,
    RouteError,
    RouteTimeoutError,
)
from ray_route.protocol.calls import UNREAD_S, Raised, Refused, SendAgain, StreamEnd
from ray_route.runtime.futures import Outcome
from ray_route.runtime.joined_ray import joined_by_client
from ray_route.runtime.waiting import Operation, Pause, run_async

AHEAD = 16
"""Items that a pod makes before the first of them has been taken."""
IDLE_S = UNREAD_S
END = object()
"""What comes after the last item."""
_LOOK_S = 0.2
_WATCH_S = 5.0
_BACKOFF_S = 0.02
_ARGUMENTS_S = 0.005


class StreamedCall:
    """A call that is answered by items, until all have been taken. Dropped, it is closed."""

    def __init__(self, dispatcher: Dispatcher, call: Outgoing) -> None:
        self.call = call
        self.feed = Feed()
        self._dispatcher = dispatcher
        self._sent: Future[Any] = Outcome()
        self._taken = 0
        self._used_at = now()
        self._over = False
        self._error: Exception | None = None

    # Sending.

    def open(self) -> None:
        """Have it sent, as soon as its link and its pod are known."""
        self._dispatcher.session.namespace.check_here()
        if joined_by_client():
            raise _no_streams(self.call.method)
        # In a thread that no interrupt reaches: a generator that nobody has runs on at its pod.
        self._dispatcher.loop.run_soon(self._open_soon)
        self._dispatcher.loop.run_soon(_watch, weakref.ref(self), self.feed)

    async def _open_soon(self) -> None:
        try:
            link, handle = await run_async(self._owner(), self.call.deadline)
            if not self._over:
                self._send(link, handle)
            self._sent.set_result(None)
        except Exception as error:  # noqa: BLE001 - it is the stream's outcome
            self._sent.set_exception(error)

    def _send(self, link: Any, handle: Any) -> None:
        call = self.call
        call.link = link
        streamed = handle._ray_route_stream.options(
            num_returns="streaming", _generator_backpressure_num_objects=AHEAD
        )
        call.sent_refs = tuple(one.ref for one in call.upstream())  # certain by now
        args, kwargs = call.as_sent()
        self.feed.generator = streamed.remote(call.header(link), *args, **kwargs)
        if self._over:  # closed meanwhile
            self.close()

    def _owner(self) -> Operation[tuple[Any, Any]]:
        """Return the link of the uid, and the handle of its pod."""
        session, call, first = self._dispatcher.session, self.call, True
        for one in call.upstream():
            yield from settled(self._dispatcher, one)
        while not have_arrived(call):
            yield Pause(_ARGUMENTS_S, f"the arguments of {call.what}")
        while True:
            link = None
            try:
                link = yield from operations.compute(
                    session, call.uid, call.service, call.min_epoch
                )
                return link, (yield from session.handle(call.service, link))
            except NoAvailablePodError:
                if first and not call.min_epoch:
                    raise
            except NoSuchActorError:
                assert link is not None
                call.min_epoch = yield from operations.failed(session, call.uid, call.service, link)
            first = False
            yield Pause(_BACKOFF_S, call.what)

    def _again(self) -> None:
        """Send the call once more: nothing of it has run, or it may run twice."""
        with contextlib.suppress(ray.exceptions.RayError, ValueError):
            self.feed.close()  # its pod waits until the answer has been read
        self.feed.generator, self.feed.item, self._sent = None, None, Outcome()
        self._dispatcher.loop.run_soon(self._open_soon)

    # Taking.

    def next_item(self) -> Operation[Any]:
        """Return the next item, or `END`."""
        if self._error is not None:
            raise self._error
        try:
            return (yield from self._item())
        except UNDECIDED as error:
            ran = self.call.may_have_run or self.feed.generator is not None or self._taken > 0
            raise judged(error, self.call.ids, may_have_run=ran) from error

    def _item(self) -> Operation[Any]:
        self._dispatcher.session.namespace.check_here()
        while not self._over:
            if self.feed.is_broken:
                raise self._interrupted()
            yield Sent(self._sent, self.call.what)
            if self.feed.generator is None:  # closed meanwhile
                break
            try:
                item = yield Item(self.feed, self.call.what, self._has_ended)
            except GONE as error:
                yield from self._lost(error)
                continue
            if type(item) in (Failed, Raised):
                self.close()
                raise of_user(item.error, self.call.method, self.call.ids, raised=True)
            if type(item) is Refused:
                self._refused(item)
                continue
            if type(item) is SendAgain:  # its pod has too many that wait for this uid
                self.call.busy += 1
                yield Pause(self.call.busy_pause_s, self.call.what)
                self._again()
                continue
            if type(item) is StreamEnd:
                break
            self._taken += 1
            self._used_at = now()
            return item
        self.close()
        return END

    def _interrupted(self) -> Exception:
        """Close it, since an item may be lost; return the error that says so, now and later."""
        self._error = cancelled(self.call, may_have_run=True)
        self.close()
        return self._error

    def _refused(self, refused: Refused) -> None:
        session, call = self._dispatcher.session, self.call
        if self._taken:
            self.close()
            raise refused.error
        link, idempotent = call.link, call.idempotent
        assert link is not None
        call.may_have_run |= may_have_run(refused)
        try:
            call.min_epoch = follow(
                session, call.uid, call.service, link, refused, idempotent=idempotent
            )
        except BaseException:
            self.close()
            raise
        self._again()

    def _lost(self, error: Exception) -> Operation[None]:
        """See to a pod that ended before the stream did."""
        session, call = self._dispatcher.session, self.call
        link = call.link
        assert link is not None
        self.feed.generator, call.may_have_run = None, True
        lost = unavailable(call.ids, error)
        is_repeated = call.idempotent and not self._taken
        try:
            report = operations.failed(session, call.uid, call.service, link, error)
            call.min_epoch = yield from report
        except RouteError:
            if is_repeated:
                self.close()
                raise
        if not is_repeated:
            self.close()
            raise lost from error
        self._again()

    def _has_ended(self) -> bool:
        link = self.call.link
        return link is not None and self._dispatcher.session.has_ended(self.call.service, link)

    # Its end.

    @property
    def is_over(self) -> bool:
        """True once nothing more comes."""
        return self._over

    def close(self) -> None:
        """Close the generator at the pod, if it has not come to its end. Waits for nothing."""
        self._over = True
        with contextlib.suppress(RayGoneError, ray.exceptions.RayError, ValueError):
            self._dispatcher.session.namespace.check_here()
            self.feed.close()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # of one that was never made
            self.close()

    def close_if_idle(self) -> float:
        """Close it if nobody has taken an item for long; return when to look again, in seconds."""
        left_s = self._used_at + IDLE_S - now()
        if left_s <= 0 and not self._over:
            what = f"an item of {self.call.what} to be taken: the stream is closed"
            self._error = RouteTimeoutError(waiting_for=what, timeout_s=IDLE_S, may_have_run=True)
            self.close()
        return max(left_s, _LOOK_S)


def _no_streams(method: str) -> InvalidInputError:
    reason = (
        "can't be streamed by Ray Client (ray://…), which brings no streams: run this program on a "
        "node of the cluster, or let the method return a list"
    )
    return InvalidInputError(argument="method", value=method, reason=reason)


async def _watch(call: weakref.ref[StreamedCall], feed: Feed) -> None:
    """Close a stream of which nobody takes items, or whose dropping was interrupted."""
    while (one := call()) is not None and not one.is_over:
        pause_s = min(one.close_if_idle(), _WATCH_S)
        del one
        await asyncio.sleep(pause_s)
    with contextlib.suppress(ray.exceptions.RayError, ValueError):
        feed.close()
