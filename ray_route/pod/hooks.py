"""The user's hooks of a pod, and how each is run: once, alone, to its end."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from threading import Timer
from typing import Any

from ray_route.runtime.metrics import POD_HOOKS_OVER, Meter

logger = logging.getLogger(__name__)

Hook = Callable[[str], Any]
Done = Callable[[BaseException | None], None]

# Hooks of an event loop that run at once, and of a pod that lets its calls run side by side.
_ON_LOOP = 64
_IN_THREADS = 16


class Hooks:
    """Runs `on_acquire`, `on_release` and `on_lost`, none of which has to be there.

    Args:
        on_acquire: called with a uid before its first call under a new epoch.
        on_release: called after its last call here, before it is anyone else's.
        on_lost: called when it is another's already, or nobody's: there is nothing to save.
        turn: held while a hook runs, where calls take turns, and by each call.
        loop: on which the hooks are run, if they are coroutine functions.
        release_s: how long `on_release` may take; None: as long as it takes. At its limit one that
            is a coroutine is cancelled, any other is waited for, and both are logged and counted.

    """

    def __init__(
        self,
        on_acquire: Hook | None = None,
        on_release: Hook | None = None,
        on_lost: Hook | None = None,
        *,
        turn: AbstractContextManager[Any] | None = None,
        loop: AbstractEventLoop | None = None,
        release_s: float | None = None,
    ) -> None:
        self.turn: AbstractContextManager[Any] = nullcontext() if turn is None else turn
        self.takes_turns = turn is not None
        self.on_loop = loop is not None
        self._hooks = {"on_acquire": on_acquire, "on_release": on_release, "on_lost": on_lost}
        self._loop = loop
        self._release_s = release_s
        self._over: Callable[[str], None] = lambda _: None

    @property
    def at_once(self) -> int:
        """How many may run at a time."""
        if self.takes_turns:
            return 1
        return _ON_LOOP if self.on_loop else _IN_THREADS

    def measure(self, meter: Meter, service: str, pod: int) -> None:
        """Count and log hooks that are over their limit as those of this pod."""

        def over(uid: str) -> None:
            meter.count(POD_HOOKS_OVER, service, str(pod))
            logger.error(
                "on_release(%r) of pod %d of %s is over its release_s of %g s",
                *(uid, pod, service, self._release_s),
            )

        self._over = over

    def start(self, name: str, uid: str, done: Done) -> None:
        """Run a hook; `done` is told its error, or None, when it has ended.

        One of an event loop runs there, and this returns at once; any other runs here.
        """
        hook = self._hooks[name]
        if hook is None:
            done(None)
        elif self._loop is not None:
            limit_s = self._release_s if name == "on_release" else None
            # Never in the context of a call, whoever starts it.
            ran: Future[None] = contextvars.Context().run(
                asyncio.run_coroutine_threadsafe, self._on_loop(hook, uid, limit_s), self._loop
            )
            ran.add_done_callback(partial(_told, done))
        else:
            done(self._here(name, hook, uid))

    async def _on_loop(self, hook: Hook, uid: str, limit_s: float | None) -> None:
        with self._noticed(uid, limit_s):
            running = hook(uid)
        if not inspect.isawaitable(running):
            return
        task = asyncio.ensure_future(running)
        done, _ = await asyncio.wait({task}, timeout=limit_s)
        if not done:
            self._over(uid)
            task.cancel()
            await asyncio.wait({task})  # to its very end
        if done or not task.cancelled():
            task.result()

    def _here(self, name: str, hook: Hook, uid: str) -> BaseException | None:
        try:
            with self._noticed(uid, self._release_s if name == "on_release" else None):
                contextvars.Context().run(hook, uid)  # never in the context of a call
        except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it
            return error
        return None

    @contextmanager
    def _noticed(self, uid: str, limit_s: float | None) -> Iterator[None]:
        """Have it noticed when what can't be ended is over its limit."""
        if limit_s is None:
            yield
            return
        timer = Timer(limit_s, self._over, (uid,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


def _told(done: Done, ran: Future[None]) -> None:
    done(RuntimeError("the hook was cancelled") if ran.cancelled() else ran.exception())
