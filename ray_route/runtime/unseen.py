"""Answers of Ray calls that nobody may be there to see.

Ray prints the error of each call that failed and whose reference was dropped before anybody looked,
with its traceback, on standard error: at once, or whenever it comes. So no reference of ours is
dropped as it is. Calls of users have their own way: see `client/untaken.py`.
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


def answer_of(ref: Any, within_s: float) -> Any:
    """Return what comes within so many seconds; raise what Ray does. What is late is taken, too."""
    try:
        return ray.get(ref, timeout=within_s)
    except (ray.exceptions.GetTimeoutError, KeyboardInterrupt):
        seen(ref)
        raise
