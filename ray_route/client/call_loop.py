"""An event loop in a thread of its own, for what is done about calls while nobody waits."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from ray_route.runtime.cancelling import ended


class CallLoop:
    """Runs coroutines, in one thread, which no interrupt reaches. Thread-safe."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()  # a loop itself does not keep them
        self._over = False
        threading.Thread(target=self._run, name="ray_route-calls", daemon=True).start()

    def _run(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    def run_soon(self, work: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """Run `work(*args)` there, unless it has been stopped.

        Waits for nothing and takes no lock, so that it can be called wherever garbage is collected.
        """
        self._call_soon(self._begin, work, args)

    def stop(self) -> None:
        """Cancel all that runs there, and end the thread."""
        self._call_soon(self._end)

    def _call_soon(self, work: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # it has been closed
            self._loop.call_soon_threadsafe(work, *args)

    # On the loop.

    def _begin(self, work: Callable[..., Coroutine[Any, Any, None]], args: tuple[Any, ...]) -> None:
        if not self._over:
            task = self._loop.create_task(work(*args))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _end(self) -> None:
        if not self._over:
            self._over = True
            self._ending = self._loop.create_task(self._ended())

    async def _ended(self) -> None:
        await ended(list(self._tasks))
        self._loop.stop()
