"""Letting a pod leave its service before SIGTERM ends its process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import ray._private.worker as ray_worker

from ray_route.pod.endings import Departure

_RAYS_OWN_END_S = 2.0
_RAISE = "raise_sys_exit_with_custom_error_message"


def before_sigterm_ends(departure: Departure) -> None:
    """Have the process leave at the first SIGTERM; it serves on until it has left.

    Then, and at a second SIGTERM, Ray ends the process as always. Python lets only the main
    thread set a handler, and Ray makes async actors in another: there what Ray's own handler
    calls is replaced, since Ray offers nothing for it (its `__ray_shutdown__` comes when the
    process can reach nobody any more). SIGINT reaches no actor: Ray blocks it in its workers.
    """

    def begin() -> bool:
        """Start to leave; False if that has begun before."""
        return departure.begin(_end)

    if threading.current_thread() is threading.main_thread():
        _replace_handler(begin)
    else:
        _replace_what_ray_calls(begin)


def _end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    # Ray takes its time where calls of an event loop have not ended: half a minute was seen.
    time.sleep(_RAYS_OWN_END_S)
    os._exit(1)


def _replace_handler(begin: Callable[[], bool]) -> None:
    rays: Any = signal.getsignal(signal.SIGTERM)

    def handle(signum: int, frame: Any) -> None:
        if not begin():
            rays(signum, frame)

    signal.signal(signal.SIGTERM, handle)


def _replace_what_ray_calls(begin: Callable[[], bool]) -> None:
    rays = getattr(ray_worker, _RAISE, None)
    if rays is None:  # another version of Ray: SIGTERM ends the pod as any other death does
        return

    def call(*args: Any, **kwargs: Any) -> None:
        if not begin():
            rays(*args, **kwargs)

    setattr(ray_worker, _RAISE, call)
