"""The user's methods as calls find them: which there are, and what they may answer with."""

from __future__ import annotations

import inspect
import os
import traceback
from collections.abc import Callable
from functools import lru_cache
from types import AsyncGeneratorType, GeneratorType
from typing import Any, ParamSpec, TypeVar

import ray

from ray_route.errors import InvalidInputError, RouteError, UnknownMethodError, UnpicklableError
from ray_route.protocol.calls import Raised, Refused, SendAgain

P = ParamSpec("P")
R = TypeVar("R")

_OURS = "_ray_route"
_INTERLEAVED = "_ray_route_interleaved"
_NO_VALUES = (Refused, SendAgain)
_STREAMS = (GeneratorType, AsyncGeneratorType)
_PLAIN = (int, float, str, bytes, bool, type(None))


def method_of(pod: Any, name: str) -> Callable[..., Any]:
    """Return a method that has one result, of an object or a class.

    Raises `UnknownMethodError` if there is none of that name.
    """
    found = stream_of(pod, name)
    if is_generator(found):
        raise stream_error(name)
    return found


def is_generator(method: Any) -> bool:
    """True of a method of which nothing runs until its first item is asked for."""
    function = getattr(method, "__func__", None)  # of anything but a method none is remembered
    return _yields(method) if function is None else _known_to_yield(function)


@lru_cache(maxsize=1024)
def _known_to_yield(function: Callable[..., Any]) -> bool:
    return _yields(function)  # which takes 1 µs


def _yields(function: Callable[..., Any]) -> bool:
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def stream_of(pod: Any, name: str) -> Callable[..., Any]:
    """Return any method of a pod; raise `UnknownMethodError`, which names those there are."""
    found = None if name.startswith(_OURS) else getattr(pod, name, None)
    if not callable(found):
        cls = pod if isinstance(pod, type) else type(pod)
        known = ", ".join(method_names(cls)) or "no methods"
        reason = f"is no method of {cls.__name__}, which has {known}"
        raise UnknownMethodError(argument="method", value=name, reason=reason)
    return found  # type: ignore[no-any-return]


def interleave(method: Callable[P, R]) -> Callable[P, R]:
    """Mark a method that may run beside the other calls of its uid: it takes no turn.

    So it may see an object of which another call has done a half, and is answered at once.
    """
    setattr(method, _INTERLEAVED, True)
    return method


def is_interleaved(method: Any) -> bool:
    """True if a method is marked so."""
    return getattr(method, _INTERLEAVED, False) is True


def lacks_value(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """True if an argument is no value, but the refusal of the call that was to bring it."""
    for value in args:  # `any` of a generator takes three times as long
        if type(value) in _NO_VALUES:
            return True
    return bool(kwargs) and any(type(value) in _NO_VALUES for value in kwargs.values())


def method_names(cls: type) -> list[str]:
    """Return the names of a class's public methods."""
    return [
        name
        for name in dir(cls)
        if not name.startswith("_") and callable(inspect.getattr_static(cls, name))
    ]


def is_stream(result: Any) -> bool:
    """True for a generator, of which Ray would send the first item alone."""
    return isinstance(result, _STREAMS)


def stream_error(name: str) -> InvalidInputError:
    """Make the error of a call whose method yields, which has not run."""
    return _invalid(
        name,
        "is a generator: call it by a handle with options(stream=True), or let it return a list",
    )


def no_stream_error(name: str, result: Any) -> InvalidInputError:
    """Make the error of a streaming call whose method, which has run, is no generator."""
    return _invalid(name, f"has run, is no generator and returned one {type(result).__name__}")


def _invalid(name: str, reason: str) -> InvalidInputError:
    return InvalidInputError(argument="method", value=name, reason=reason)


def raised(pod: Any, name: str, error: BaseException) -> Raised:
    """Return an error of the user's code as Ray would send it, with its traceback as text."""
    if isinstance(error, RouteError):
        return Raised(error)
    shown = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    as_ray_does = ray.exceptions.RayTaskError(
        name,
        shown,
        error if isinstance(error, Exception) else RuntimeError(repr(error)),
        proctitle=f"ray::{type(pod).__name__}.{name}",
        pid=os.getpid(),
        actor_repr=repr(type(pod).__name__),
    )
    return Raised(as_ray_does)


def sendable(outcome: Any, name: str) -> Any:
    """Return an outcome of a batch, or an error in its place if it can't be pickled."""
    if type(outcome) in _PLAIN:
        return outcome
    try:
        ray.cloudpickle.dumps(outcome)
    except Exception as error:  # noqa: BLE001 - whatever its pickling does
        return Raised(UnpicklableError(method=name, what=_what(outcome), reason=str(error)))
    return outcome


def _what(outcome: Any) -> str:
    if isinstance(outcome, Raised):
        return f"exception ({type(outcome.error).__name__})"
    return f"result ({type(outcome).__name__})"


def is_async(cls: type) -> bool:
    """True if Ray runs this class's actors on an event loop."""
    members = [member for _, member in inspect.getmembers(cls)]
    return any(map(inspect.iscoroutinefunction, members)) or any(
        map(inspect.isasyncgenfunction, members)
    )
