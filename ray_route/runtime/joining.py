"""Joins or starts the Ray of this process, once, however many threads want it."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import ray

from ray_route.clock import Deadline
from ray_route.errors import ConfigError, RayUnavailableError
from ray_route.runtime.futures import Outcome
from ray_route.runtime.joined_ray import is_forked, joined_ray
from ray_route.runtime.waiting import Check, Stage, no_check, result_of
from ray_route.runtime.which_ray import NEW, is_own, no_ray, which_ray

_OTHERS = "another thread that joins a Ray"

_lock = threading.Lock()
_under_way: Future[None] | None = None


@dataclass(frozen=True, slots=True)
class Wish:
    """Which Ray is wanted: the one at `named`, if given; whether a new one will do; and how.

    `options` go to `ray.init`. `before_start` is called before a new one is started; what it raises
    keeps it from that.
    """

    named: str | None = None
    may_start: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    before_start: Callable[[], None] = no_check


def ensure_ray(
    deadline: Deadline, stage: Stage, wish: Wish | None = None, check: Check = no_check
) -> None:
    """Have this process joined in a Ray: see `which_ray` for the rule.

    Threads that ask at the same time share one attempt, and each waits until its own deadline;
    the attempt goes on until Ray itself gives up. `stage` hears what is waited for; what `check`
    raises ends the wait. Raises `RayUnavailableError`, `ConfigError`, `RouteTimeoutError`.
    """
    if is_forked():  # Ray would take it for its parent
        reason = "this process was forked from one that is in a Ray: start it by spawn, or by Ray"
        raise RayUnavailableError(address=None, reason=reason)
    while joined_ray() is None:
        attempt, is_ours = _attempt(deadline, stage, wish or Wish())
        try:
            result_of(attempt, stage if is_ours else _OTHERS, deadline, check)
        except (RayUnavailableError, ConfigError):
            if is_ours:  # theirs may be about another Ray
                raise


def _attempt(deadline: Deadline, stage: Stage, wish: Wish) -> tuple[Future[None], bool]:
    """Return the attempt that is under way; if there is none, begin one of ours."""
    global _under_way  # noqa: PLW0603 - a process is in one Ray
    with _lock:
        if _under_way is not None and not _under_way.done():
            return _under_way, False
        _under_way = attempt = Outcome[None]()
    args = (attempt, deadline, stage, wish)
    threading.Thread(target=_join_and_stay, args=args, name="ray_route-ray", daemon=True).start()
    return attempt, True


def _join_and_stay(attempt: Future[None], deadline: Deadline, stage: Stage, wish: Wish) -> None:
    """Join or start a Ray, in a thread that lives as long as the process.

    The kernel ends the processes of a Ray with the very thread that has started them.
    """
    try:
        address = _join(deadline, stage, wish)
    except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it
        attempt.set_exception(error)
        return
    attempt.set_result(None)
    if address == NEW:
        threading.Event().wait()


def _join(deadline: Deadline, stage: Stage, wish: Wish) -> str:
    stage.what = f"the Ray at {wish.named}" if wish.named else "the Ray of this machine"
    address = which_ray(wish.named, deadline)
    if address == NEW and not wish.may_start:
        raise no_ray(wish.named)
    stage.what = "a Ray to start" if address == NEW else f"the Ray at {address}"
    if address == NEW:
        wish.before_start()
    _believe(address)
    try:
        with _without(_NO_HANDLER):
            ray.init(address, **wish.options)
    except Exception as error:  # Ray's own timeout of a start is a plain one
        if joined_ray() is None:  # else the program itself was quicker
            raise _refused(address, error) from error
    return address


def _refused(address: str, error: Exception) -> RayUnavailableError:
    if address == NEW:
        return RayUnavailableError(address=None, reason=f"a new one did not start: {error}")
    reason = str(error)
    if "RAY_AUTH_MODE" not in os.environ:
        reason += " (one with token authentication wants RAY_AUTH_MODE=token)"
    return RayUnavailableError(address=address, reason=reason)


def _believe(address: str) -> None:
    """Show this user's own Ray this user's token, as Ray itself does where it finds one alone."""
    if not is_own(address):
        return
    with contextlib.suppress(ImportError), _without(_TOKENS):
        from ray._private.authentication.authentication_token_setup import (  # noqa: PLC0415
            maybe_enable_token_auth_if_token_available,
        )

        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


_NO_HANDLER = ("ray._private.worker", "SIGTERM handler is not set")
_TOKENS = (
    "ray._private.authentication.authentication_token_setup",
    "Token authentication is enabled",
)


@contextlib.contextmanager
def _without(said: tuple[str, str]) -> Iterator[None]:
    """Keep one line of Ray's log from those whom it does not concern."""
    name, start = said

    def other(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(start)

    logging.getLogger(name).addFilter(other)
    try:
        yield
    finally:
        logging.getLogger(name).removeFilter(other)


def exit_at_sigterm() -> None:
    """Have SIGTERM end this program in order, as after `ray.init` in its main thread.

    Ray sets that itself there alone, and we call it in another. A program's own handler stays.
    """
    main = threading.current_thread() is threading.main_thread()
    if main and joined_ray() is None and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
