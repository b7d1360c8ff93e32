"""Errors of the user's code as their caller sees them: the user's traceback, without our frames."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import ray

from ray_route.clock import Deadline
from ray_route.errors import NestedCallError, RouteError, UnpicklableError
from ray_route.runtime.waiting import Wait

_OUR_CALL = (
    "._ray_route_call_many(",
    "._ray_route_call_packed(",
    "._ray_route_call(",
    "._ray_route_stream(",
)
_OUR_MODULE = "ray_route.pod.pod_actor."
_OUR_FRAMES = ("/ray_route/pod/",)
_PICKLING = "/ray/cloudpickle/"
_OF_AN_ARGUMENT = "At least one of the input arguments"


class UserCall(NamedTuple):
    """Wait for a pod's answer; an error of ray_route that the user's code met is nested.

    It is no verdict on the call itself. `ids` are those of the call.
    """

    answer: Wait
    method: str
    ids: Mapping[str, Any]

    def wait(self, deadline: Deadline) -> Any:
        """Wait in the calling thread."""
        with self._apart():
            return self.answer.wait(deadline)

    async def wait_async(self, deadline: Deadline) -> Any:
        """Wait on the running event loop."""
        with self._apart():
            return await self.answer.wait_async(deadline)

    @contextlib.contextmanager
    def _apart(self) -> Iterator[None]:
        try:
            yield
        except ray.exceptions.RayTaskError as error:
            if not isinstance(error.cause, RouteError):
                raise
            raise of_user(error, self.method, self.ids)  # noqa: B904 - it has its cause


def of_user(
    error: BaseException, method: str, ids: Mapping[str, Any], *, raised: bool = False
) -> BaseException:
    """Return the error of a call that has run, as its caller is to see it.

    It has the type of what the user's code raised, and its text begins with the user's frames; one
    of ray_route is in a `NestedCallError` with the call's `ids`. An error, or a result, that can't
    be pickled is an `UnpicklableError`. Its cause is what Ray brought, or what that came from.
    One that is `raised`, as the pod says, and not by Ray, is no verdict on the call either.
    """
    if raised and isinstance(error, RouteError) and not isinstance(error, UnpicklableError):
        return NestedCallError(method=method, error=error, **ids)
    if not isinstance(error, ray.exceptions.RayTaskError):
        return error
    made = _of_user(error, method, ids)
    if made.__cause__ is None:
        made.__cause__ = error if isinstance(made, NestedCallError) else error.__cause__
    return made


def is_of_an_argument(error: BaseException) -> bool:
    """True if a call has not run, since what was brought to its pod could not be read there."""
    return isinstance(error, ray.exceptions.RayTaskError) and _OF_AN_ARGUMENT in str(error)


def _of_user(
    error: ray.exceptions.RayTaskError, method: str, ids: Mapping[str, Any]
) -> BaseException:
    if isinstance(error.cause, RouteError):
        return NestedCallError(method=method, error=error.cause, **ids)
    text = str(error)
    if type(error) is ray.exceptions.RayTaskError and "isn't serializable" in str(error.cause):
        return _unpicklable_exception(error, text, method)
    if _PICKLING in text and not _passes_us(text) and _OF_AN_ARGUMENT not in text:
        return UnpicklableError(method=method, what="result", reason=_last_line(text))
    return _rewritten(error, text, method)


def _passes_us(text: str) -> bool:
    return any(frame in text for frame in _OUR_FRAMES)


def _unpicklable_exception(
    error: ray.exceptions.RayTaskError, text: str, method: str
) -> UnpicklableError:
    why = str(error.cause).partition("isn't serializable: ")[2].partition("\n")[0]
    made = UnpicklableError(
        method=method, what=f"exception ({_last_line(text)})", reason=why.rstrip(".")
    )
    made.__cause__ = _rewritten(error, text, method)
    return made


def _rewritten(
    error: ray.exceptions.RayTaskError, text: str, method: str
) -> ray.exceptions.RayTaskError:
    for ours in _OUR_CALL:
        text = text.replace(ours, f".{method}(")
    text = text.replace(_OUR_MODULE, "")
    # The process and the address stand in the text already; asking for them takes time.
    shown = ray.exceptions.RayTaskError(method, without_ours(text), error.cause, method, 1, "-")
    as_caused: ray.exceptions.RayTaskError = shown.as_instanceof_cause()
    return as_caused


def without_ours(text: str) -> str:
    """Cut our own frames out of a traceback, and the marks that Ray leaves of its own."""
    kept: list[str] = []
    hidden = False
    for line in text.splitlines():
        if line.startswith("  File "):
            hidden = _passes_us(line)
        elif not line.startswith("    "):
            hidden = False
        elif _is_mark(line) and not (kept and kept[-1].startswith("    ")):
            continue
        if not hidden:
            kept.append(line)
        # Of the first frame, which is ours, Ray may leave the code without its file.
        hidden = hidden or "ray::" in line
    return "\n".join(kept)


def _is_mark(line: str) -> bool:
    return not line.strip(" ^~")


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]
