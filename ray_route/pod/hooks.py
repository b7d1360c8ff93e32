"""The user's hooks of a pod, and how each is run: once, alone, to its end."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from threading import Timer
from typing import Any

from ray_route.error_root import in_words
from ray_route.errors import PodUnavailableError
from ray_route.pod.states import Prepare, State
from ray_route.runtime.metrics import POD_HOOKS_OVER, Meter
from ray_route.runtime.threads import Threads

logger = logging.getLogger(__name__)

Hook = Callable[..., Any]
Done = Callable[[BaseException | None, Any], None]

# Hooks of an event loop that run at once, and of a pod that lets its calls run side by side.
_ON_LOOP = 64
_IN_THREADS = 16
_ACQUIRERS = 32


class Hooks:
    """Runs `on_acquire`, `on_release` and `on_lost`, none of which has to be there.

    Args:
        on_acquire: called with a uid before its first call under a new epoch; and with its state,
            or None, if `carries`.
        on_release: called after its last call here, before it is anyone else's; what it returns is
            the uid's state, if `carries`, and None is none.
        on_lost: called when it is another's already, or nobody's: there is nothing to save.
        turn: held while a hook runs, where calls take turns, and by each call.
        loop: on which the hooks are run, if they are coroutine functions.
        release_s: how long `on_release` may take; None: as long as it takes. At its limit one that
            is a coroutine is cancelled, any other is waited for, and both are logged and counted.
        carries: states go from one pod's `on_release` to the next one's `on_acquire`.
        prepare: makes of a state, as it was given up, what `on_acquire` is called with; called in a
            thread of its own, before the pod that has it gives it away.
        drops_unpicklable: a uid whose state can't be pickled moves without, instead of staying.
        idle_s: how long a uid may be without a call before it is given up; None: two thirds of its
            links' TTL.

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
        carries: bool = False,
        prepare: Prepare = lambda _, state: state,
        drops_unpicklable: bool = False,
        idle_s: float | None = None,
    ) -> None:
        self.carries = carries
        self.prepare = prepare
        self.drops_unpicklable = drops_unpicklable
        self.idle_s = idle_s
        self.turn: AbstractContextManager[Any] = nullcontext() if turn is None else turn
        self.takes_turns = turn is not None
        self.on_loop = loop is not None
        self._hooks = {"on_acquire": on_acquire, "on_release": on_release, "on_lost": on_lost}
        self._loop = loop
        self._release_s = release_s
        # Many that load for long must not keep other uids from being read. Nor does `on_acquire`
        # run in a call's thread: what interrupts the call must not leave it half done.
        self._acquirers = Threads(_ACQUIRERS, "ray_route-acquire")
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

    def start(self, name: str, uid: str, done: Done, state: State | None = None) -> None:
        """Run a hook; `done` is told its error, or None, when it has ended, and what it returned.

        One of an event loop runs there, and this returns at once; `on_acquire` runs in a thread
        otherwise, when it has its turn, and the others here. `state` is for `on_acquire`; it is
        read in a thread, never on the loop, which a large one would stop.
        """
        hook = self._hooks[name]
        if hook is None:
            done(None, None)
        elif name != "on_acquire":
            self._start(name, hook, uid, done)
        elif self.on_loop and state is None:
            self._acquire(hook, uid, done, state)
        else:
            try:
                self._acquirers.begin(self._acquire, hook, uid, done, state)
            except RuntimeError as error:  # the system has no more threads for us, now
                done(unacquired(uid, error), None)

    def _acquire(self, hook: Hook, uid: str, done: Done, state: State | None) -> None:
        with self.turn:
            try:
                more = (self._read(uid, state),) if self.carries else ()
            except BaseException as error:  # noqa: BLE001 - the user's own code
                done(error, None)
            else:
                self._start("on_acquire", hook, uid, done, *more)

    def _read(self, uid: str, state: State | None) -> Any:
        return None if state is None else state.take(uid, self.prepare)

    def _start(self, name: str, hook: Hook, uid: str, done: Done, *more: Any) -> None:
        limit_s = self._release_s if name == "on_release" else None
        if self._loop is None:
            done(*self._here(hook, limit_s, uid, *more))
            return
        # Never in the context of a call, whoever starts it.
        ran: Future[Any] = contextvars.Context().run(
            asyncio.run_coroutine_threadsafe, self._on_loop(hook, limit_s, uid, *more), self._loop
        )
        ran.add_done_callback(partial(_told, done))

    async def _on_loop(self, hook: Hook, limit_s: float | None, uid: str, *more: Any) -> Any:
        with self._noticed(uid, limit_s):
            running = hook(uid, *more)
        if not inspect.isawaitable(running):
            return running
        task = asyncio.ensure_future(running)
        done, _ = await asyncio.wait({task}, timeout=limit_s)
        if not done:
            self._over(uid)
            task.cancel()
            await asyncio.wait({task})  # to its very end
        return task.result() if done or not task.cancelled() else None

    def _here(
        self, hook: Hook, limit_s: float | None, uid: str, *more: Any
    ) -> tuple[BaseException | None, Any]:
        try:
            with self._noticed(uid, limit_s):
                # Never in the context of a call.
                return None, contextvars.Context().run(hook, uid, *more)
        except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it
            return error, None

    @contextmanager
    def _noticed(self, uid: str, limit_s: float | None) -> Iterator[None]:
        """Have it noticed when what can't be ended is over its limit."""
        if limit_s is None:
            yield
            return
        timer = Timer(limit_s, self._over, (uid,))
        timer.daemon = True
        with suppress(RuntimeError):  # without a thread nobody notices; the hook runs all the same
            timer.start()
        try:
            yield
        finally:
            timer.cancel()


def _told(done: Done, ran: Future[Any]) -> None:
    if ran.cancelled():
        done(RuntimeError("the hook was cancelled"), None)
    else:
        error = ran.exception()
        done(error, None if error else ran.result())


def unacquired(uid: str, error: BaseException) -> PodUnavailableError:
    """Make an error of what would end the thread, or the task, of each call that waits for it."""
    reason = f"{uid!r} could not be acquired: {in_words(error)}"
    return PodUnavailableError(reason=reason, may_have_run=False, uid=uid)


def takes_state(hook: Hook | None) -> bool:
    """True if a user's `on_acquire` takes a uid and its state: two arguments by position."""
    if hook is None:
        return False
    try:
        some = inspect.signature(hook).parameters.values()
    except (ValueError, TypeError):  # what has no signature
        return False
    return sum(it.kind in (it.POSITIONAL_ONLY, it.POSITIONAL_OR_KEYWORD) for it in some) > 1
