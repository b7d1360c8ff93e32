"""What Ray says of this process: in which Ray it is now, and whether it was made again."""

from __future__ import annotations

import os
import warnings

import ray
from ray._private.worker import global_worker
from ray.util.annotations import RayDeprecationWarning
from ray.util.client import ray as ray_client

_parents: object | None = None
"""What Ray's own threads, which no fork takes along, were to serve."""


def _forked() -> None:
    global _parents  # noqa: PLW0603 - a process is a child or none
    _parents = joined_ray()


os.register_at_fork(after_in_child=_forked)


def joined_ray() -> object | None:
    """Return what stands for this process's present stay in a Ray; None while it is in none.

    Another object after each `ray.init`, to be compared with `is`: what was opened in an earlier
    stay reaches nobody. Its worker id and its address may be the same in the next. A forked child
    is not in its parent's Ray: whatever it asked of that would never be answered.
    """
    joined = _joined_ray()
    return None if joined is _parents else joined


def is_forked() -> bool:
    """True in a child that was forked from a process in a Ray, until it is in one of its own."""
    return _parents is not None and _joined_ray() is _parents


def _joined_ray() -> object | None:
    # Asks nothing of Ray: while that shuts down, it ends the process of a thread that does.
    if global_worker.connected:
        node: object = global_worker.node
        return node
    if ray_client.is_connected():
        client: object = ray_client.get_context().client_worker
        return client
    return None


def joined_by_client() -> bool:
    """True if this process is in its Ray by way of a server, as `ray://` has it."""
    return not global_worker.connected and bool(ray_client.is_connected())


def was_restarted() -> bool:
    """True in an actor whose process is not its first."""
    with warnings.catch_warnings():  # Ray's own way to say it uses what Ray deprecates
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return bool(ray.get_runtime_context().was_current_actor_reconstructed)
