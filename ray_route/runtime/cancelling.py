"""Ends tasks, though a cancel of theirs may be lost.

Before Python 3.12 `asyncio.wait_for`, by which redis-py sends, loses a cancel that comes as what it
waits for is done (https://github.com/python/cpython/issues/86296): a task that works in a loop goes
on for ever then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

# Long enough for what a cancelled task still has to do.
_AGAIN_S = 1.0


async def ended(tasks: Collection[asyncio.Future[Any]]) -> None:
    """Cancel tasks until all have ended; what they raised is nobody's business.

    Does so to the end, if it is itself cancelled, which it raises then.
    """
    cancelled: asyncio.CancelledError | None = None
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        try:
            _, pending = await asyncio.wait(pending, timeout=_AGAIN_S)
        except asyncio.CancelledError as error:
            cancelled, pending = error, {task for task in pending if not task.done()}
    for task in tasks:
        if not task.cancelled():
            task.exception()  # it counts as taken
    if cancelled is not None:
        raise cancelled
