"""`Response`: the outcome of a call that was sent, to be taken when it suits."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, NoReturn, TypeVar

import ray

from ray_route.client.dispatcher import Dispatcher, log_untaken
from ray_route.client.outgoing import Change, Outgoing, cancelled
from ray_route.client.refusals import UNDECIDED
from ray_route.client.user_errors import of_user
from ray_route.clock import Deadline, now
from ray_route.model import check_duration
from ray_route.protocol.calls import Refused
from ray_route.runtime.metrics import CALL_SECONDS
from ray_route.runtime.unseen import arrived, leave_behind
from ray_route.runtime.waiting import Operation, Remote, run, run_async

R = TypeVar("R")

_NONE = object()
_SLICE_S = 0.2
_FETCH_S = 30.0
_POLL_S = 0.002
_MAX_POLL_S = 0.02


class Response(Generic[R]):
    """The outcome of a call that has been sent. Thread-safe; made by `.remote()`.

    Take it by `result()` or `await`, as often as you like. Given as an argument of another call of
    ours it stands for its value, which goes from pod to pod and never by way of the caller; plain
    Ray tasks take `ref()`. It need not be taken: the call goes on all the same, follows its uid if
    that moves, and a failure that nobody takes is logged once.
    """

    __slots__ = ("__weakref__", "_call", "_dispatcher")

    def __init__(self, dispatcher: Dispatcher, call: Outgoing) -> None:
        self._dispatcher = dispatcher
        self._call = call

    def __repr__(self) -> str:
        call = self._call
        state = "over" if call.over else "sent" if call.ref is not None else "waiting"
        return f"Response({call.method} of uid {call.uid!r} of {call.service!r}, {state})"

    def result(self, timeout_s: float | None = None) -> R:
        """Wait for the outcome and return it, or raise it.

        Waits until the call's own deadline, or for `timeout_s` seconds if that is less (0: not at
        all); then `RouteTimeoutError` is raised, and the call goes on. What the user's code raised
        keeps its type. `PodUnavailableError` says whether the call may have run; see
        `RouteClient.call`.
        """
        deadline = self._deadline(timeout_s)
        answer = self._taken_now(deadline)
        return run(taken(self._dispatcher, self._call), deadline) if answer is _NONE else answer  # type: ignore[no-any-return]

    def __await__(self) -> Generator[Any, None, R]:
        """Do the same as `result`, on the running event loop."""
        return run_async(taken(self._dispatcher, self._call), self._deadline(None)).__await__()

    def done(self) -> bool:
        """Return True if the outcome is there. Asks nobody and waits for nothing."""
        if not self._call.over:
            self._dispatcher.untaken.look([self._call])
        return self._call.over

    def cancel(self) -> None:
        """Ask that the call does not run, or ends: its outcome is then `CallCancelledError`.

        A call that has not been sent is over at once. One that a pod has begun ends only if its
        method is a coroutine, which sees `asyncio.CancelledError`; calls that it made go on.
        """
        self._dispatcher.cancel(self._call)

    def ref(self, timeout_s: float | None = None) -> ray.ObjectRef[R]:
        """Return the reference of the result for a plain Ray task, once it is certain.

        Fetches no value. Raises what kept the call from running. If the user's code raised, the
        reference is of what it raised, as ever with Ray.
        """
        return run(settled(self._dispatcher, self._call), self._deadline(timeout_s))

    async def ref_async(self, timeout_s: float | None = None) -> ray.ObjectRef[R]:
        """Do the same as `ref`, awaited."""
        return await run_async(settled(self._dispatcher, self._call), self._deadline(timeout_s))

    def as_argument(self) -> Outgoing:
        """Return what stands for the value among the arguments of another call."""
        self._call.taken = True
        return self._call

    if not TYPE_CHECKING:  # to type checkers it has none

        def __iter__(self) -> NoReturn:
            """Say how the items of a generator are had."""
            raise TypeError(f"{self!r} is one outcome: call a generator by options(stream=True)")

        __aiter__ = __iter__

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Response can't be pickled: give it to a call of a service as an argument by itself, "
            "give its .ref() to a plain Ray task, or take its .result()"
        )

    def __del__(self) -> None:
        with suppress(AttributeError):  # of one that was never made
            call = self._call
            call.forsaken = True
            if call.over:
                log_untaken(call)

    def _deadline(self, timeout_s: float | None) -> Deadline:
        self._dispatcher.session.namespace.check_here()
        own = self._call.deadline
        if not own.remaining() and self.done():  # it came in time, and may have to be fetched
            own = Deadline.after(_FETCH_S)
        if timeout_s is None:
            return own
        asked = Deadline.after(timeout_s and check_duration("timeout_s", timeout_s))
        return asked if asked.at < own.at else own

    def _taken_now(self, deadline: Deadline) -> Any:
        """Take an answer that is a value, without the machinery of waiting; else nothing."""
        call = self._call
        if call.ref is None or call.error is not None:
            return _NONE
        ref = call.ref
        try:
            answer = ray.get(ref, timeout=min(_SLICE_S, deadline.remaining()))
        except Exception:  # noqa: BLE001 - taken once more, and dealt with there
            return _NONE
        except SystemExit:
            leave_behind(ref)
            raise
        if not self._dispatcher.take_in(call, ref, answer):
            return _NONE
        measure(self._dispatcher, call)
        return answer


def taken(dispatcher: Dispatcher, call: Outgoing) -> Operation[Any]:
    """Wait for the outcome of a call, whatever has to be done for it; return it, or raise it."""
    while True:
        ref = call.ref
        if call.error is not None:
            call.taken = True
            raise call.error
        try:
            if ref is None:
                yield Change(call)
                continue
            is_void = partial(_is_void, dispatcher, call, ref)
            answer = yield _Outcome(Remote(ref, call.what, is_void))
        except UNDECIDED as error:
            # Told that its time is over, its caller has its outcome.
            call.taken = call.taken or not call.deadline.remaining()
            raise call.judged(error) from None
        except Exception as error:  # noqa: BLE001 - the dispatcher decides
            answer = Failed(error)
        if type(answer) is Failed:
            if dispatcher.take_in_error(call, ref, answer.error):
                call.taken = True
                raise _shown(call, answer.error)
        elif dispatcher.take_in(call, ref, answer):
            measure(dispatcher, call)
            return answer
        elif type(answer) is Refused and call.certain and call.ref is ref:
            call.taken = True  # a refusal that was taken for a value, for its size
            raise answer.error


def measure(dispatcher: Dispatcher, call: Outgoing) -> None:
    """Take in that the outcome of a call has been taken, and how long that took."""
    if not call.taken:
        call.taken = True
        meter = dispatcher.session.meter
        meter.observe(CALL_SECONDS, now() - call.begun_at, call.service)


def arguments(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a call's arguments with what stands for those that are a `Response`."""
    if not kwargs:
        return tuple(map(_outgoing, args)), kwargs
    return tuple(map(_outgoing, args)), {name: _outgoing(value) for name, value in kwargs.items()}


def _outgoing(value: Any) -> Any:
    return value.as_argument() if type(value) is Response else value


def settled(dispatcher: Dispatcher, call: Outgoing) -> Operation[Any]:
    """Wait until a call's outcome is certain, and fetch nothing; return its reference."""
    while not call.certain:
        if call.error is not None:
            call.taken = True
            raise call.error
        if call.ref is None:
            yield Change(call)
        else:
            yield _Answer(call.ref, call.what)
            dispatcher.untaken.look([call])  # and see that this process is still in its Ray
    call.taken = True
    return call.ref


class Failed(NamedTuple):
    """What came instead of an answer."""

    error: Exception


class _Outcome(NamedTuple):
    """Wait for an answer, or what the user's code raised: that is apart from errors of the wait."""

    remote: Remote

    def wait(self, deadline: Deadline) -> Any:
        """Wait in the calling thread."""
        try:
            return self.remote.wait(deadline)
        except ray.exceptions.RayTaskError as error:
            return Failed(error)

    async def wait_async(self, deadline: Deadline) -> Any:
        """Wait on the running event loop."""
        try:
            return await self.remote.wait_async(deadline)
        except ray.exceptions.RayTaskError as error:
            return Failed(error)


class _Answer(NamedTuple):
    """Wait a while for an answer, without fetching it."""

    ref: Any
    what: str

    def wait(self, deadline: Deadline) -> None:
        """Wait in the calling thread."""
        deadline.check(self.what)
        slice_s = min(_SLICE_S, deadline.remaining())
        arrived([self.ref], slice_s, fetch=False)

    async def wait_async(self, deadline: Deadline) -> None:
        """Wait on the running event loop."""
        pause_s, until = _POLL_S, now() + _SLICE_S
        while now() < until and not ray.wait([self.ref], timeout=0, fetch_local=False)[0]:
            deadline.check(self.what)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _MAX_POLL_S)


def _is_void(dispatcher: Dispatcher, call: Outgoing, ref: Any) -> bool:
    """Return True if an answer comes no more, its pod having ended, or if another will count."""
    link = call.link
    if call.ref is not ref or link is None:  # whoever saw it first has had the call sent again
        return True
    return dispatcher.session.has_ended(call.service, link)


def _shown(call: Outgoing, error: Exception) -> BaseException:
    cause = getattr(error, "cause", None)
    if isinstance(error, ray.exceptions.TaskCancelledError) or isinstance(
        cause, ray.exceptions.TaskCancelledError
    ):
        return cancelled(call, may_have_run=True)
    return of_user(error, call.method, call.ids)
