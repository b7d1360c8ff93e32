"""Handles: calls written as Ray's users write them, `rooms["ann"].say.remote("hello")`."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from ray_route.client.calls import call_many
from ray_route.client.dispatcher import Dispatcher
from ray_route.client.outgoing import Outgoing
from ray_route.client.responses import Response, arguments
from ray_route.client.session import Session
from ray_route.client.sessions import open_session
from ray_route.client.streamed_call import StreamedCall
from ray_route.client.streams import ResponseStream
from ray_route.clock import Deadline
from ray_route.errors import InvalidInputError, UnknownMethodError
from ray_route.model import check_duration, check_name, check_uid
from ray_route.protocol.calls import Chain
from ray_route.runtime.call_context import current_chain, seconds
from ray_route.runtime.joined_ray import joined_ray
from ray_route.runtime.waiting import Operation, run, run_async
from ray_route.store.url import StoreUrl

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M", bound="_MethodHandle")

_CONNECT_S = 60.0


@dataclass(frozen=True, slots=True)
class CallOptions:
    """How calls are made: until when, in seconds (None: see `seconds`), and whether twice."""

    timeout_s: float | None = None
    idempotent: bool = False
    stream: bool | None = None

    def changed(self, **given: Any) -> CallOptions:
        """Return these with what is given; None is not."""
        changes = {name: value for name, value in given.items() if value is not None}
        if "timeout_s" in changes:
            check_duration("timeout_s", changes["timeout_s"])
        return replace(self, **changes)


class Connection:
    """The way into a service; where it was pickled to, it is opened by its first call."""

    def __init__(
        self,
        namespace: str,
        url: StoreUrl,
        service: str,
        session: Session | None = None,
        chain: Chain = (),
    ) -> None:
        self._chain = chain
        self.namespace = namespace
        self.service = service
        self._url = url
        self._session = session

    @property
    def dispatcher(self) -> Dispatcher:
        """What sends calls; opens the namespace if this process has not."""
        if self._session is None:
            self._session = _session_here(self.namespace, self._url)
        return self._session.dispatcher  # type: ignore[no-any-return]

    @property
    def chain(self) -> Chain:
        """The turns within which it calls: of the code that uses it, or else that pickled it."""
        return current_chain() or self._chain

    def __reduce__(self) -> tuple[Any, ...]:
        return Connection, (self.namespace, self._url, self.service, None, self.chain)


_opened: dict[tuple[object, str, StoreUrl], Session] = {}


def _session_here(namespace: str, url: StoreUrl) -> Session:
    """Return the session that handles share which came to this process; it stays open."""
    key = (joined_ray(), namespace, url)
    session = _opened.get(key)
    if session is None:  # whoever else opens it now gets the same one
        session = open_session(namespace, url, {}, Deadline.after(_CONNECT_S))
        _opened[joined_ray(), namespace, url] = session
    return session


class ServiceHandle(Generic[T]):
    """A service, as something to call: `rooms["ann"].say.remote("hello")`.

    Made by `client.service(name, cls)`. Can be pickled, and connects where it arrives at its first
    call. With the class given, method names are checked as soon as they are written.
    """

    def __init__(
        self, connection: Connection, cls: type[T] | None, options: CallOptions = CallOptions()
    ) -> None:
        self._connection = connection
        self._cls = cls
        self._options = options

    def __repr__(self) -> str:
        where = self._connection
        return f"ServiceHandle({where.service!r} of namespace {where.namespace!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return ServiceHandle, (self._connection, self._cls, self._options)

    def __getitem__(self, uid: str) -> UidHandle[T]:
        """Return the handle of one uid; raises `InvalidInputError` for what is none."""
        return UidHandle(self._connection, self._cls, check_uid(uid), self._options)

    if not TYPE_CHECKING:  # to type checkers it has no such attribute

        def __getattr__(self, name: str) -> Any:
            """Say how a service is called."""
            call = (
                "" if name.startswith("_") else f": it is called for a uid, [uid].{name}.remote(…)"
            )
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{call}")

    def options(
        self,
        *,
        timeout_s: float | None = None,
        idempotent: bool | None = None,
        stream: bool | None = None,
    ) -> ServiceHandle[T]:
        """Return this handle with other options; see `UidHandle.options`."""
        changed = self._options.changed(timeout_s=timeout_s, idempotent=idempotent, stream=stream)
        return ServiceHandle(self._connection, self._cls, changed)

    def map(self, method: str, calls: Mapping[str, tuple[Any, ...]], /) -> dict[str, Any]:
        """Call a method for many uids, `{uid: arguments}`, with one Ray call per pod.

        Returns an outcome per uid: a result, or the exception that a call by itself would have
        raised. See `RouteClient.call_many`.
        """
        outcomes = run(self._mapped(method, calls), self._deadline())
        return dict(zip(calls, outcomes, strict=True))

    async def map_async(
        self, method: str, calls: Mapping[str, tuple[Any, ...]], /
    ) -> dict[str, Any]:
        """Do the same as `map`, awaited."""
        outcomes = await run_async(self._mapped(method, calls), self._deadline())
        return dict(zip(calls, outcomes, strict=True))

    def _deadline(self) -> Deadline:
        return Deadline.after(seconds(self._options.timeout_s))

    def _mapped(self, method: str, calls: Mapping[str, tuple[Any, ...]]) -> Operation[list[Any]]:
        check_method(self._cls, method)
        if not isinstance(calls, Mapping):
            raise InvalidInputError(
                argument="calls", value=calls, reason="must be a dict, {uid: tuple of arguments}"
            )
        session = self._connection.dispatcher.session
        service, idempotent = self._connection.service, self._options.idempotent
        items, chain = list(calls.items()), self._connection.chain
        return call_many(session, items, service, method, idempotent=idempotent, chain=chain)


class UidHandle(Generic[T]):
    """One uid of a service. Its attributes are the methods of the pods' class.

    By name, `ann.say.remote("hello")`; or by the function, `ann[Rooms.say].remote("hello")`, which
    type checkers check with its arguments and result. `ann["options"]` is a method of that name.
    """

    __slots__ = ("_cls", "_connection", "_options", "_uid")

    def __init__(
        self, connection: Connection, cls: type[T] | None, uid: str, options: CallOptions
    ) -> None:
        self._connection = connection
        self._cls = cls
        self._uid = uid
        self._options = options

    def __repr__(self) -> str:
        return f"UidHandle({self._uid!r} of {self._connection.service!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return UidHandle, (self._connection, self._cls, self._uid, self._options)

    def __dir__(self) -> list[str]:
        return [*object.__dir__(self), *(method_names(self._cls) if self._cls else ())]

    def options(
        self,
        *,
        timeout_s: float | None = None,
        idempotent: bool | None = None,
        stream: bool | None = None,
    ) -> UidHandle[T]:
        """Return this handle with other options.

        Args:
            timeout_s: the deadline of each call, in seconds from when it is made; by default 30,
                or within a call what is left of that one's time.
            idempotent: a call may be repeated at the new owner if its pod dies.
            stream: the method is a generator, and `.remote(…)` returns a `ResponseStream`; by
                default so if the class is known and says so.

        """
        changed = self._options.changed(timeout_s=timeout_s, idempotent=idempotent, stream=stream)
        return UidHandle(self._connection, self._cls, self._uid, changed)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self[name]

    # The first that fits counts, so a generator is no method of one result.
    @overload
    def __getitem__(  # type: ignore[overload-overlap]
        self, method: Callable[Concatenate[T, P], AsyncIterator[R] | Iterator[R]]
    ) -> StreamMethodHandle[P, R]: ...

    @overload
    def __getitem__(
        self, method: Callable[Concatenate[T, P], Coroutine[Any, Any, R]]
    ) -> MethodHandle[P, R]: ...

    @overload
    def __getitem__(self, method: Callable[Concatenate[T, P], R]) -> MethodHandle[P, R]: ...

    @overload
    def __getitem__(self, method: str) -> Any: ...

    def __getitem__(self, method: Any) -> Any:
        """Return a method; raises `UnknownMethodError` for one that the class does not have."""
        name = method if isinstance(method, str) else method.__name__
        check_method(self._cls, name)
        stream = self._options.stream
        cls: Any = self._cls  # a class can be hashed, whatever mypy says of type[T]
        if stream or (stream is None and _is_generator(cls, name)):
            return StreamMethodHandle(self._connection, self._uid, name, self._options)
        return MethodHandle(self._connection, self._uid, name, self._options)


class _MethodHandle:
    """A method for one uid."""

    __slots__ = ("_connection", "_name", "_options", "_uid")

    def __init__(self, connection: Connection, uid: str, name: str, options: CallOptions) -> None:
        self._connection = connection
        self._uid = uid
        self._name = name
        self._options = options

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self._name} of {self._uid!r} of {self._connection.service!r})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._connection, self._uid, self._name, self._options)

    @overload
    def options(
        self: M, *, timeout_s: float | None = None, idempotent: bool | None = None
    ) -> M: ...

    @overload
    def options(
        self, *, timeout_s: float | None = None, idempotent: bool | None = None, stream: bool | None
    ) -> Any: ...

    def options(
        self,
        *,
        timeout_s: float | None = None,
        idempotent: bool | None = None,
        stream: bool | None = None,
    ) -> Any:
        """Return this method with other options; see `UidHandle.options`."""
        changed = self._options.changed(timeout_s=timeout_s, idempotent=idempotent, stream=stream)
        kind: Any = type(self)
        if stream is not None:
            kind = StreamMethodHandle if stream else MethodHandle
        return kind(self._connection, self._uid, self._name, changed)

    def __call__(self, *_: Any, **__: Any) -> Any:
        """Say how a method is called."""
        raise TypeError(f"{self!r} is called by .remote(…), as a method of a Ray actor is")

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Outgoing:
        options = self._options
        return Outgoing(
            self._connection.namespace,
            self._connection.service,
            self._uid,
            self._name,
            *arguments(args, kwargs),
            options.idempotent,
            Deadline.after(seconds(options.timeout_s)),
            self._connection.chain,
        )


class MethodHandle(_MethodHandle, Generic[P, R]):
    """A method for one uid: `.remote(…)` calls it."""

    __slots__ = ()

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> Response[R]:
        """Send a call, with all arguments as they are; return its `Response` at once.

        Calls that one caller makes for one uid start in the order made, also those whose
        arguments have to be waited for. An argument that is a `Response` or an `ObjectRef` stands
        for its value. Raises only what is wrong with the arguments.
        """
        dispatcher = self._connection.dispatcher
        call = self._call(args, kwargs)
        dispatcher.send(call)
        return Response(dispatcher, call)


class StreamMethodHandle(_MethodHandle, Generic[P, R]):
    """A method that is a generator, for one uid: `.remote(…)` begins it."""

    __slots__ = ()

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> ResponseStream[R]:
        """Send a call, with all arguments as they are; return the stream of its items at once.

        It begins when it is there, without regard to the order of other calls.
        """
        streamed = StreamedCall(self._connection.dispatcher, self._call(args, kwargs))
        streamed.open()
        return ResponseStream(streamed, seconds(self._options.timeout_s))


@lru_cache(maxsize=1024)
def _is_generator(cls: Hashable, name: str) -> bool:
    method = getattr(cls, name, None)
    return inspect.isgeneratorfunction(method) or inspect.isasyncgenfunction(method)


def method_names(cls: type) -> list[str]:
    """Return the names of a class's public methods."""
    return [name for name in dir(cls) if not name.startswith("_") and callable(getattr(cls, name))]


def check_method(cls: type | None, name: str) -> None:
    """Raise `UnknownMethodError` if the class is known and has no such method."""
    if cls is not None and not callable(getattr(cls, name, None)):
        known = ", ".join(method_names(cls)) or "no methods"
        reason = f"is no method of {cls.__name__}, which has {known}"
        raise UnknownMethodError(argument="method", value=name, reason=reason)


def service_handle(session: Session, service: str, cls: type[T] | None) -> ServiceHandle[T]:
    """See `RouteClient.service`."""
    check_name("service", service)
    namespace = session.namespace
    return ServiceHandle(Connection(namespace.name, namespace.url, service, session), cls)
