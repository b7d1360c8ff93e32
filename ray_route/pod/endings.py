"""Ends of a pod's process that Ray must not see: it would never make that pod again.

Ray restarts an actor whose process has ended. An actor whose constructor raised, or whose code
raised `SystemExit`, it takes for one that wanted to end, and an async actor whose event loop has
ended it takes for one that is busy.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import ray

from ray_route.clock import backoff_s
from ray_route.runtime import telemetry
from ray_route.runtime.joined_ray import was_restarted
from ray_route.runtime.metrics import POD_START_FAILURES, meter

logger = logging.getLogger(__name__)

EXITS = (SystemExit, KeyboardInterrupt)
"""What user code may raise that is meant for the process, not for the caller."""

_MAX_BACKOFF_S = 30.0
_BACKOFF_WITHOUT_FILE_S = 5.0
# Long enough for answers that have been given to leave the process.
_ANSWERS_S = 0.5
_LOOK_S = 0.25


class Departure:
    """The one orderly leaving of a process, whatever asks for it first. Thread-safe."""

    def __init__(self, leave: Callable[[], None]) -> None:
        self._leave = leave
        # Taken out by the thread that comes first. No lock: a signal's handler may come in here
        # while the very thread that it interrupts is in here too.
        self._unasked = [True]

    def begin(self, end: Callable[[], None]) -> bool:
        """Leave in a thread, then call `end`; False if that has begun before.

        Who is interrupted in here may ask again: one thread leaves.
        """
        if not self._unasked:
            return False
        threading.Thread(target=self._run, args=(end,), name="ray_route-leave", daemon=True).start()
        return True

    def _run(self, end: Callable[[], None]) -> None:
        try:
            self._unasked.pop()
        except IndexError:
            return
        try:
            self._leave()
        finally:
            end()


def exit_to_be_made_again() -> None:
    """End this process so that Ray makes the pod again."""
    time.sleep(_ANSWERS_S)
    telemetry.flush()
    os._exit(1)


def watch_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Have this process end if its event loop does.

    `SystemExit` or `KeyboardInterrupt` out of a task of the user's own ends the loop, and with it
    all that the pod could answer, while its threads would renew its lease for ever.
    """

    def watch() -> None:
        while loop.is_running():
            time.sleep(_LOOK_S)
        logger.error("the event loop of this pod has ended: its process ends, too")
        os._exit(1)

    threading.Thread(target=watch, name="ray_route-loop", daemon=True).start()


@contextlib.contextmanager
def made_again(namespace: str, service: str, pod: int, actor: str) -> Iterator[None]:
    """Report a restarted pod whose constructor fails within, and have Ray make it again.

    The first time, what was raised goes to whoever deploys. At a restart nobody waits for it, and
    Ray would give the actor up: so it is logged and counted, and the process ends after a back-off
    of up to `_MAX_BACKOFF_S` seconds that doubles with each failure in a row.
    """
    try:
        yield
    except BaseException:  # the user's own code, which may even ask the process to end
        if not was_restarted():
            raise
        backoff_s = _backoff_s(_count_failure(actor))
        logger.exception(
            "pod %d of %s failed to start again; next attempt in %.1f s",
            pod,
            service,
            backoff_s,
            extra={"namespace": namespace, "service": service, "pod": pod},
        )
        meter(namespace).count(POD_START_FAILURES, service, str(pod))
        telemetry.flush()
        time.sleep(backoff_s)
        os._exit(1)
    with contextlib.suppress(OSError):
        _failures_of(actor).unlink(missing_ok=True)


def _backoff_s(failures: int) -> float:
    if not failures:
        return _BACKOFF_WITHOUT_FILE_S
    return backoff_s(failures - 1, 1.0, _MAX_BACKOFF_S) * random.uniform(0.5, 1.0)  # noqa: S311


def _count_failure(actor: str) -> int:
    """Count one more failed start of an actor on this machine; 0 if that can't be noted."""
    path = _failures_of(actor)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with path.open("ab") as noted:
            noted.write(b".")
            return noted.tell()
    except OSError:
        return 0


def _failures_of(actor: str) -> Path:
    context = ray.get_runtime_context()
    folder = Path(context.get_temp_dir()) / context.get_session_name() / "ray_route"
    return folder / f"starts-{hashlib.sha256(actor.encode()).hexdigest()[:16]}"
