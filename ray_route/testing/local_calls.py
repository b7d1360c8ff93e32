"""Calls of a service without Ray: as by a handle, and by the short way of a test."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterator,
    Mapping,
)
from concurrent.futures import CancelledError, Future, InvalidStateError
from concurrent.futures import TimeoutError as LateError
from contextlib import aclosing, suppress
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

from ray import cloudpickle

from ray_route.client.handles import CallOptions, check_method
from ray_route.clock import Deadline
from ray_route.errors import (
    CallCancelledError,
    FencedError,
    PodUnavailableError,
    RouteTimeoutError,
    UnpicklableError,
)
from ray_route.model import check_uid
from ray_route.protocol.calls import SAME_PROCESS, Chain, Header, Refused, SendAgain, StreamEnd
from ray_route.runtime.call_context import current_chain, seconds, time_of
from ray_route.runtime.futures import Outcome
from ray_route.testing.local_pod import LocalPod, LocalPods

R = TypeVar("R")
_PAUSE_S = 0.002


class Call(NamedTuple):
    """One call, as its caller makes it."""

    uid: str
    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    idempotent: bool
    deadline: Deadline
    chain: Chain

    def header(self, epoch: int, incarnation: int) -> Header:
        """Return it as a pod is told of it."""
        until = [time_of(self.deadline), SAME_PROCESS, self.chain or 0]
        return [self.uid, epoch, incarnation, self.name, 0, 0, *until]


def copied(value: Any, name: str, what: str) -> Any:
    """Return a copy of what travels with a call; raise `UnpicklableError` for what can't."""
    try:
        return cloudpickle.loads(cloudpickle.dumps(value))
    except Exception as error:
        raise UnpicklableError(method=name, what=what, reason=str(error)) from error


class Caller:
    """Brings calls to the pods of one service, and follows uids that move."""

    def __init__(self, pods: LocalPods, loop: asyncio.AbstractEventLoop) -> None:
        self._pods = pods
        self.loop = loop

    def soon(self, work: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> Future[Any]:
        """Run `work(*args)` on the loop, in no call's context."""
        outcome: Outcome[Any] = Outcome()
        begin = partial(self._begin, outcome, work, args)
        contextvars.Context().run(self.loop.call_soon_threadsafe, begin)
        return outcome

    def _begin(self, outcome: Outcome[Any], work: Callable[..., Any], args: Any) -> None:
        task = self.loop.create_task(work(*args))
        task.add_done_callback(partial(_settle, outcome))
        outcome.add_done_callback(partial(self._cancel, task))

    def _cancel(self, task: asyncio.Task[Any], outcome: Future[Any]) -> None:
        if outcome.cancelled():
            with suppress(RuntimeError):  # the loop has been closed
                self.loop.call_soon_threadsafe(task.cancel)

    async def outcome(self, call: Call) -> Any:
        """Return what a call returns, wherever its uid is; raise what it raises."""
        while True:
            pod, header = await self._pod_of(call)
            try:
                answer = await pod.call(header, call.args, call.kwargs)
            except PodUnavailableError:
                if not call.idempotent:
                    raise
                continue
            if not _is_sent_again(answer, call):
                return copied(answer, call.name, f"result ({type(answer).__name__})")
            await asyncio.sleep(_PAUSE_S)

    async def items(self, call: Call) -> AsyncGenerator[Any, None]:
        """Yield the items of a stream; raise what keeps it from its end."""
        while True:
            pod, header = await self._pod_of(call)
            items = pod.stream(header, call.args, call.kwargs)
            item = await anext(items)
            if not _is_sent_again(item, call):
                break
            await items.aclose()
            await asyncio.sleep(_PAUSE_S)
        async with aclosing(items):
            while type(item) is not StreamEnd:
                if type(item) is Refused:
                    raise item.error
                yield copied(item, call.name, f"item ({type(item).__name__})")
                item = await anext(items)

    async def _pod_of(self, call: Call) -> tuple[LocalPod, Header]:
        while True:
            call.deadline.check(f"{call.name} of uid {call.uid!r}")
            link = self._pods.directory.link_of(call.uid)
            pod = self._pods.serving(link.pod, link.incarnation)
            if pod is not None:
                return pod, call.header(link.epoch, link.incarnation)
            await asyncio.sleep(_PAUSE_S)


def _settle(outcome: Outcome[Any], task: asyncio.Task[Any]) -> None:
    error = None if task.cancelled() else task.exception()
    with suppress(InvalidStateError):  # it has been cancelled
        if task.cancelled():
            outcome.cancel()
        elif error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(task.result())


def _is_sent_again(answer: Any, call: Call) -> bool:
    """Say whether a pod has not run a call, which then follows its uid; raise other refusals."""
    if type(answer) is SendAgain:
        return True
    if type(answer) is not Refused:
        return False
    error = answer.error
    if isinstance(error, FencedError) and (call.idempotent or not error.may_have_run):
        return True
    raise error


class LocalResponse(Generic[R]):
    """The outcome of a call; see `ray_route.Response`."""

    def __init__(self, call: Call, outcome: Future[R]) -> None:
        self._call = call
        self._outcome = outcome

    def result(self, timeout_s: float | None = None) -> R:
        """Wait for the outcome; return it, or raise it, as the user's code did."""
        left_s = self._call.deadline.remaining()
        patience_s = left_s if timeout_s is None else min(timeout_s, left_s)
        _check_not_on_loop(self._call.name)
        try:
            return self._outcome.result(patience_s)
        except LateError:
            if self._outcome.done():  # its own
                return self._outcome.result()
            raise self._late() from None
        except CancelledError:
            raise _cancelled(self._call) from None

    def __await__(self) -> Generator[Any, None, R]:
        return self._awaited().__await__()

    async def _awaited(self) -> R:
        outcome = asyncio.wrap_future(self._outcome)
        await asyncio.wait({outcome}, timeout=self._call.deadline.remaining())
        if not outcome.done():
            raise self._late()
        if outcome.cancelled():
            raise _cancelled(self._call)
        return outcome.result()

    def done(self) -> bool:
        """Return True if the outcome is there."""
        return self._outcome.done()

    def cancel(self) -> None:
        """Ask that the call does not run, or ends."""
        self._outcome.cancel()

    def _late(self) -> RouteTimeoutError:
        call = self._call
        return RouteTimeoutError(
            waiting_for=f"{call.name} of uid {call.uid!r}",
            timeout_s=call.deadline.timeout_s,
            may_have_run=True,
            uid=call.uid,
        )


def _cancelled(call: Call) -> CallCancelledError:
    return CallCancelledError(method=call.name, may_have_run=True, uid=call.uid)


class LocalStream(Generic[R]):
    """The items of a stream, each when it is asked for; see `ray_route.ResponseStream`."""

    def __init__(self, caller: Caller, call: Call) -> None:
        self._caller = caller
        self._call = call
        self._items = caller.items(call)

    def __iter__(self) -> Iterator[R]:
        return self

    def __next__(self) -> R:
        _check_not_on_loop(self._call.name)
        try:
            item: R = self._caller.soon(self._next).result()
        except StopAsyncIteration:
            raise StopIteration from None
        except CancelledError:  # the user's own
            raise _cancelled(self._call) from None
        return item

    def __aiter__(self) -> AsyncIterator[R]:
        return self

    async def __anext__(self) -> R:
        item: R = await asyncio.wrap_future(self._caller.soon(self._next))
        return item

    async def _next(self) -> R:
        item: R = await anext(self._items)
        return item

    def close(self) -> None:
        """End the stream: the user's generator is closed."""
        try:
            self._caller.soon(self._items.aclose).result()
        except CancelledError:  # the user's own
            raise _cancelled(self._call) from None


def _check_not_on_loop(name: str) -> None:
    """Raise for a wait in the thread of an event loop, which may be that of the pods."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(f"{name} is called by `await ….{name}.remote(…)` in a coroutine")


class LocalMethod:
    """A method for one uid: called, it waits for its result; by `.remote(…)` it does not."""

    def __init__(
        self, caller: Caller, cls: type, uid: str, name: str, options: CallOptions
    ) -> None:
        self._caller = caller
        self._cls = cls
        self._uid = uid
        self._name = name
        self._options = options

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call, and return the result; of a generator the iterator of its items."""
        _check_not_on_loop(self._name)
        sent = self.remote(*args, **kwargs)
        return sent.result() if isinstance(sent, LocalResponse) else sent

    def remote(self, *args: Any, **kwargs: Any) -> LocalResponse[Any] | LocalStream[Any]:
        """Send a call; return its `LocalResponse`, or a `LocalStream`, at once."""
        call = self._call(args, kwargs)
        if self._streams:
            return LocalStream(self._caller, call)
        return LocalResponse(call, self._caller.soon(self._caller.outcome, call))

    @property
    def _streams(self) -> bool:
        if self._options.stream is not None:
            return self._options.stream
        method = getattr(self._cls, self._name)
        return inspect.isgeneratorfunction(method) or inspect.isasyncgenfunction(method)

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        args, kwargs = copied((args, kwargs), self._name, "arguments")
        options, deadline = self._options, Deadline.after(seconds(self._options.timeout_s))
        chain = current_chain()
        return Call(self._uid, self._name, args, kwargs, options.idempotent, deadline, chain)


class LocalUid:
    """One uid of a local service. Its attributes are the methods of the pods' class."""

    def __init__(self, caller: Caller, cls: type, uid: str, options: CallOptions) -> None:
        self._caller = caller
        self._cls = cls
        self._uid = check_uid(uid)
        self._options = options

    def __repr__(self) -> str:
        return f"LocalUid({self._uid!r} of {self._cls.__name__})"

    def options(
        self,
        *,
        timeout_s: float | None = None,
        idempotent: bool | None = None,
        stream: bool | None = None,
    ) -> LocalUid:
        """Return this handle with other options; see `UidHandle.options`."""
        changed = self._options.changed(timeout_s=timeout_s, idempotent=idempotent, stream=stream)
        return LocalUid(self._caller, self._cls, self._uid, changed)

    def __getattr__(self, name: str) -> LocalMethod:
        if name.startswith("_"):
            raise AttributeError(name)
        return self[name]

    def __getitem__(self, method: Any) -> LocalMethod:
        """Return a method, by its name or its function; raises `UnknownMethodError`."""
        name = method if isinstance(method, str) else method.__name__
        check_method(self._cls, name)
        return LocalMethod(self._caller, self._cls, self._uid, name, self._options)
