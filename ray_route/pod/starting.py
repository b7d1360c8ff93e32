"""Waits for pods that have just been made, or that Ray makes again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import ray

from ray_route.clock import Deadline
from ray_route.errors import (
    ConfigError,
    PodUnavailableError,
    RouteTimeoutError,
    UnsafeStoreError,
)
from ray_route.protocol.calls import Refused

_RETRY_S = 0.1

# What a pod may meet that stays so until somebody mends it.
_NEVER_MENDED = (ConfigError, UnsafeStoreError)


def wait_ready(handles: Mapping[int, Any], what: str, deadline: Deadline) -> None:
    """Wait until all pods serve, also those that Ray is just restarting.

    Raises at once what no waiting mends, and at the deadline says what was in the way.
    """
    waiting, seen = dict(handles), ""
    while waiting:
        answers: dict[int, Any] = {}
        try:
            asked = {index: pod._ray_route_ready.remote() for index, pod in waiting.items()}
            values = ray.get(list(asked.values()), timeout=deadline.remaining())
            answers = dict(zip(asked, values, strict=True))
        except ray.exceptions.ActorUnavailableError:
            pass
        except ray.exceptions.GetTimeoutError:
            raise RouteTimeoutError(waiting_for=what + seen, timeout_s=deadline.timeout_s) from None
        except ray.exceptions.RayActorError as error:
            raise PodUnavailableError(
                reason=f"{what} failed to start: {_last_line(error)}", may_have_run=False
            ) from error
        waiting = {index: pod for index, pod in waiting.items() if answers.get(index) is not True}
        for index, answer in answers.items():
            if isinstance(answer, Refused):
                if isinstance(answer.error, _NEVER_MENDED):
                    raise answer.error
                seen = f"; pod {index} can't join: {answer.error}"
        if waiting:
            deadline.check(what + seen)
            time.sleep(min(_RETRY_S, deadline.remaining()))


def _last_line(error: Exception) -> str:
    """Return what was raised, without the traceback that Ray puts before it."""
    return str(error).strip().rpartition("\n")[2]
