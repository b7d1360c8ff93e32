"""An event loop in a thread of its own, for what is done about calls while nobody waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any


class CallLoop:
    """Runs coroutines, in one thread, which is started by the first. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._over = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def run_soon(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine there, unless it has been stopped; never waits."""
        with self._lock:
            if self._over:
                work.close()
                return
            asyncio.run_coroutine_threadsafe(work, self._running())

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            loop = self._loop = asyncio.new_event_loop()
            name = "ray_route-calls"
            threading.Thread(target=loop.run_forever, name=name, daemon=True).start()
        return self._loop

    def stop(self) -> None:
        """End the thread."""
        with self._lock:
            if self._loop is not None and not self._over:
                asyncio.run_coroutine_threadsafe(_end(), self._loop)
            self._over = True


async def _end() -> None:
    """Cancel all that runs on the loop, let it end, and stop the loop."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    asyncio.get_running_loop().stop()
