"""Ends pods: in order, or those that were made in vain."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

import ray

from ray_route.clock import Deadline
from ray_route.errors import RouteTimeoutError
from ray_route.pod.unbegun import end_unbegun
from ray_route.protocol.names import RAY_NAMESPACE
from ray_route.runtime.given_up import await_given_up, begin
from ray_route.runtime.unseen import answer_of, arrived, seen
from ray_route.runtime.waiting import Stage, within

T = TypeVar("T")

logger = logging.getLogger(__name__)

GRACE_S = 20.0
"""How long a pod may take to release its uids when it is to end, in seconds."""
STOP_S = 5.0
"""How long each step of Ray's may take then."""
_LATE_S = 0.5
_POLL_S = 0.02
# So often those that have not answered are looked at: whether they are there at all.
_LOOK_S = 0.5

Actors = dict[int, Any]
"""Handles by the index of the pod."""
Handles = dict[str, Any]
"""Handles by the name of the actor."""


def stop(
    actors: list[str],
    grace_s: float = GRACE_S,
    *,
    incarnation: int | None = None,
    spared: Callable[[], bool] = lambda: False,
) -> bool:
    """End the pods that are found by these names; see `stop_found`."""
    return stop_found(found(actors), grace_s, incarnation=incarnation, spared=spared)


def found(actors: Iterable[str]) -> Handles:
    """Return the actors of those names that Ray has, or is just restarting."""
    return {actor: handle for actor in actors if (handle := _actor(actor)) is not None}


def stop_found(
    handles: Handles,
    grace_s: float = GRACE_S,
    *,
    incarnation: int | None = None,
    spared: Callable[[], bool] = lambda: False,
) -> bool:
    """End pods in order, side by side, or what Ray is just restarting of them.

    Each after it has released what it holds; those that have not begun at once. False if they were
    spared at last, or if one says that it lives another life than that of `incarnation`: it has
    stopped nothing then.
    """
    # First: one that waits for room would begin in what the others leave.
    begun = [pod for pod in handles.values() if not end_unbegun(pod)]
    stops = [seen(pod._ray_route_stop.remote(grace_s, incarnation)) for pod in begun]
    stopped = _answers(begun, stops, grace_s + STOP_S)
    if False in stopped.values():
        return False
    # Queued calls are refused and follow their uids; killed ones would be in doubt. Of those that
    # have not answered by now nobody waits for another answer.
    _answers(list(stopped), [seen(pod._ray_route_flush.remote()) for pod in stopped], STOP_S)
    if begun and spared():
        return False
    for pod in begun:
        ray.kill(pod, no_restart=True)
    deadline = Deadline.after(STOP_S)
    for actor in handles:
        wait_gone(actor, deadline)
    return True


def _actor(name: str) -> Any:
    try:
        return ray.get_actor(name, namespace=RAY_NAMESPACE)
    except ValueError:
        return None


def _answers(pods: list[Any], asked: list[Any], longest_s: float) -> dict[Any, Any]:
    """Wait for the answers of pods, or for their ends, and return the answers by pod.

    One that dies meanwhile may have nowhere to begin again: it is ended.
    """
    deadline = Deadline.after(longest_s)
    of, late = dict(zip(asked, pods, strict=True)), asked
    while late and deadline.remaining():
        slice_s = min(_LOOK_S, deadline.remaining())
        _, late = arrived(late, slice_s)
        for answer in late:
            end_unbegun(of[answer])
    heard = {}
    for answer, pod in of.items():
        with contextlib.suppress(ray.exceptions.RayError):
            heard[pod] = answer_of(answer, 0.0)
    return heard


def wait_gone(actor: str, deadline: Deadline) -> None:
    """Wait until Ray has given the name of a killed actor free."""
    while _actor(actor) is not None and deadline.remaining():
        time.sleep(_POLL_S)


def ended_at_failure(make: Callable[[Actors], T]) -> T:
    """Return what `make` does, which notes the actors that it makes; end them if that fails.

    In a thread of its own, which neither an interrupt nor a Ray that hangs cuts short: that is
    waited for, since the program may end then, but for no time that the caller has not. No context
    manager: an interrupt on the way out of its `with` would be missed.
    """
    made: Actors = {}
    try:
        return make(made)
    except BaseException as error:
        try:
            _end_within(made, _LATE_S if isinstance(error, RouteTimeoutError) else 2 * STOP_S)
        except BaseException:  # one more interrupt, which may have come before that had begun
            begin(Future(), partial(_end_all, made))
            raise
        raise


def _end_within(made: Actors, patience_s: float) -> None:
    try:
        within(Deadline.after(patience_s), Stage("Ray to end pods"), partial(_end_all, made))
    except RouteTimeoutError:
        logger.warning("pods %s are ended as soon as Ray answers", sorted(made))


def _end_all(made: Actors) -> None:
    """End what is made by a thread that may be at it still: a program that ends now ends that."""
    await_given_up(STOP_S)
    kill(made)


def kill(actors: Actors) -> None:
    """End actors at once, and for good."""
    for handle in list(actors.values()):
        ray.kill(handle, no_restart=True)
