"""Calls whose callers have given up: they do not begin."""

from __future__ import annotations

from typing import Any

from ray_route.clock import Deadline
from ray_route.errors import RouteTimeoutError
from ray_route.protocol.calls import DUE_AT, NODE, SAME_PROCESS, Header
from ray_route.runtime.call_context import deadline_at, node_mark

# Clocks of two nodes differ; a pod must not refuse for that what its caller still waits for.
_SKEW_S = 1.0
# What an answer takes on its way back, on a busy machine: a part of the time that is left, or that.
_EARLIER = 0.05
_EARLIER_S = 0.2


def due_of(header: Header) -> Deadline | None:
    """Return when the caller of a call gives up; None if it does not say.

    Exact for a caller on the same node; for any other, up to a second later.
    """
    if len(header) <= DUE_AT:
        return None
    is_near = header[NODE] == SAME_PROCESS or header[NODE] == node_mark()
    return deadline_at(header[DUE_AT] + (0.0 if is_near else _SKEW_S))


def patience_s(due: Deadline | None) -> float | None:
    """Return for how long a call may wait for its turn, in seconds; None: without limit.

    A little less than its caller waits, who so hears that it has not run, and what had the turn.
    """
    if due is None:
        return None
    left_s = due.remaining()
    return left_s - min(_EARLIER * left_s, _EARLIER_S)


def is_over(due: Deadline | None) -> bool:
    """True once the caller has given up."""
    return due is not None and not due.remaining()


def check_due(due: Deadline | None, service: str, uid: str, method: str) -> None:
    """Raise the error of a call that is not begun, once its caller has given up."""
    if is_over(due):
        raise late(due, service, uid, method)


def late(due: Any, service: str, uid: str, method: str, behind: str = "") -> RouteTimeoutError:
    """Make that error; `behind` says what had the turn."""
    return RouteTimeoutError(
        waiting_for=f"the turn of {method} at its pod, where it has not begun{behind}",
        timeout_s=due.timeout_s,
        may_have_run=False,
        service=service,
        uid=uid,
    )


def not_acquired(due: Any, service: str, uid: str) -> RouteTimeoutError:
    """Make the error of a call whose uid was not acquired before its caller gave up."""
    return RouteTimeoutError(
        waiting_for="its pod to acquire it, or an earlier owner to give it up",
        timeout_s=due.timeout_s,
        may_have_run=False,
        service=service,
        uid=uid,
    )
