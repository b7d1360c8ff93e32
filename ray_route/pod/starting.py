"""Waits for pods that have just been made, or that Ray makes again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import ray

from ray_route.clock import Deadline
from ray_route.errors import ConfigError, PodStartError, RouteTimeoutError, UnsafeStoreError
from ray_route.protocol.calls import Refused
from ray_route.runtime.scheduling import why_not_running
from ray_route.runtime.unseen import arrived, seen
from ray_route.runtime.waiting import Check, no_check, slices

_RETRY_S = 0.1

# What a pod may meet that stays so until somebody mends it.
_NEVER_MENDED = (ConfigError, UnsafeStoreError)


def wait_ready(
    handles: Mapping[int, Any],
    what: str,
    deadline: Deadline,
    options: Mapping[str, Any],
    check: Check = no_check,
) -> None:
    """Wait until all pods serve, also those that Ray is just restarting.

    Raises at once what no waiting mends, and what `check` does; at the deadline it says what was in
    the way. `options` are those that the pods' actors were made with.
    """
    waiting, told = dict(handles), ""
    while waiting:
        asked = {seen(pod._ray_route_ready.remote()): index for index, pod in waiting.items()}
        answered, late = _answers(list(asked), deadline, check)
        for ref in answered:
            index = asked[ref]
            answer = readiness(ref, index, what)
            if answer is True:
                del waiting[index]
            elif isinstance(answer, Refused):
                if isinstance(answer.error, _NEVER_MENDED):
                    raise answer.error
                told = f"; pod {index} can't join: {answer.error}"
        if late:
            index = asked[late[0]]
            told = told or f"; pod {index}: {why_not_running(waiting[index], options)}"
            raise RouteTimeoutError(waiting_for=what + told, timeout_s=deadline.timeout_s)
        if waiting:
            deadline.check(what + told)
            time.sleep(min(_RETRY_S, deadline.remaining()))


def _answers(asked: list[Any], deadline: Deadline, check: Check) -> tuple[list[Any], list[Any]]:
    """Wait for all answers until the deadline; `check` now and then."""
    for slice_s in slices(deadline):
        answered, late = arrived(asked, slice_s)
        if not late:
            break
        check()
    return answered, late


def readiness(ref: Any, index: int, what: str) -> Any:
    """Return a pod's word on whether it serves; None while Ray restarts it.

    Raises `PodStartError` once Ray has given it up.
    """
    try:
        return ray.get(ref)
    except ray.exceptions.ActorUnavailableError:
        return None
    except ray.exceptions.RayActorError as error:
        raise PodStartError(
            reason=f"{what} failed to start: {_last_line(error)}", may_have_run=False, pod=index
        ) from error


def _last_line(error: Exception) -> str:
    """Return what was raised, without the traceback that Ray puts before it."""
    return str(error).strip().rpartition("\n")[2]
