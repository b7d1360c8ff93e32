"""Answers of Ray calls that nobody may be there to see.

Ray prints the error of each call that failed and whose reference was dropped before anybody looked,
with its traceback, on standard error: at once, or whenever it comes. So no reference of ours is
dropped as it is. Calls of users have their own way: see `client/untaken.py`.

Nor is one dropped while Ray shuts down, in whatever thread: Ray would end the process, with status
1. Who waits for an answer then is told so by a `SystemExit` out of that wait.
"""

from __future__ import annotations

from typing import Any

import ray


def seen(ref: Any) -> Any:
    """Have whatever comes be taken, also if nobody waits for it; return the reference.

    For small answers: a large one is fetched by that.
    """
    ref.future()
    return ref


# References of calls that were under way when this process left their Ray.
_left_behind: list[Any] = []


def leave_behind(*refs: Any) -> None:
    """Keep references for ever, since Ray shuts down."""
    _left_behind.extend(refs)


def arrived(refs: list[Any], within_s: float, *, fetch: bool = True) -> tuple[list[Any], list[Any]]:
    """Wait for all answers, or so many seconds; return those that are there, and the late ones."""
    try:
        return ray.wait(refs, num_returns=len(refs), timeout=within_s, fetch_local=fetch)
    except SystemExit:
        leave_behind(*refs)
        raise


def answer_of(ref: Any, within_s: float) -> Any:
    """Return what comes within so many seconds; raise what Ray does. What is late is taken, too."""
    try:
        return ray.get(ref, timeout=within_s)
    except (ray.exceptions.GetTimeoutError, KeyboardInterrupt):
        seen(ref)
        raise
    except SystemExit:
        leave_behind(ref)
        raise
