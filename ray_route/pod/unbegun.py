"""Ends pods that have not begun yet at once: they hold nothing, and there is nobody to be asked.

Ray ends an actor whatever it does. One that waited for room when it was looked at may begin, claim
its index and have users before its end arrives. So who ends it notes that first, in Ray's head, and
then looks again: a pod that has not begun by then finds the note before it may claim.

The note goes once the head calls the actor dead, or if it had begun. It is a note of who ends the
pod: another may have looked before the pod began, and is about to end it. Should whoever ends a pod
die in between, the pod ends itself when it begins.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

import ray

from ray_route.clock import Deadline
from ray_route.errors import PodUnavailableError
from ray_route.pod.actor_name import leads_here
from ray_route.runtime import head_notes
from ray_route.runtime.scheduling import ALIVE, DEAD, WAITING, state_of

# How long Ray's head may take to call an actor dead that was killed.
_DEAD_S = 5.0
_POLL_S = 0.02


def end_unbegun(pod: Any) -> bool:
    """End an actor for good if no process of it has begun; False if one has, or nobody knows."""
    if not is_unbegun(pod):
        return False
    note = f"{_notes_of(pod)}{uuid.uuid4().hex}"
    head_notes.put(note, b"ends")
    if not is_unbegun(pod):
        head_notes.delete(note)
        return False
    if _end_for_good(pod):
        head_notes.delete(note)
    return True


def is_unbegun(actor: Any) -> bool:
    """True if no process of an actor has begun; False if one has, or nobody knows."""
    try:
        return state_of(actor) in WAITING
    except ray.exceptions.RayError:
        return False


def may_claim(actor: str) -> bool:
    """True if this pod's process may claim its index: `actor` leads here, and nobody ends it.

    A pod that was to end before it began ends here, for good. Raises `PodUnavailableError` if it
    can't be known for now.
    """
    # In this order. Who is led here has begun, so a note that is put from now on changes nothing:
    # whoever puts it sees that. And a note that is gone by now leaves a dead actor behind.
    return leads_here(actor) and not _is_ended()


def _is_ended() -> bool:
    own: Any = ray.get_runtime_context().current_actor
    try:
        if not head_notes.names(_notes_of(own)):
            return state_of(own) != ALIVE
        _end_for_good(own)
    except ray.exceptions.RayError as error:
        raise PodUnavailableError(
            reason=f"Ray does not tell whether this pod is to end: {error!r}", may_have_run=False
        ) from error
    return True


def _end_for_good(pod: Any) -> bool:
    """Kill an actor, and wait until Ray's head knows that; False if that takes too long."""
    ray.kill(pod, no_restart=True)
    deadline = Deadline.after(_DEAD_S)
    while state_of(pod) != DEAD:
        if not deadline.remaining():
            return False
        time.sleep(_POLL_S)
    return True


def _notes_of(pod: Any) -> str:
    """Return how the names of all notes begin that a pod ends."""
    return f"{pod._actor_id.hex()}:ends:"  # noqa: SLF001 - it has no public one
