"""Letting a pod leave its service before SIGTERM ends its process."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import ray._private.worker as ray_worker

_RAISE = "raise_sys_exit_with_custom_error_message"


def before_sigterm_ends(leave: Callable[[], None]) -> None:
    """Run `leave` in a thread at the first SIGTERM; the process serves on until it returns.

    Then, and at a second SIGTERM, Ray ends the process as always. Python lets only the main
    thread set a handler, and Ray makes async actors in another: there what Ray's own handler
    calls is replaced, since Ray offers nothing for it (its `__ray_shutdown__` comes when the
    process can reach nobody any more).
    """
    begun = threading.Event()

    def begin() -> bool:
        """Start to leave; False if that has begun before."""
        if begun.is_set():
            return False
        begun.set()
        threading.Thread(target=_leave_then_end, args=(leave,), daemon=True).start()
        return True

    if threading.current_thread() is threading.main_thread():
        _replace_handler(begin)
    else:
        _replace_what_ray_calls(begin)


def _leave_then_end(leave: Callable[[], None]) -> None:
    try:
        leave()
    finally:
        os.kill(os.getpid(), signal.SIGTERM)


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
