"""What Ray says of this process: in which Ray it is now, and whether it was made again."""

from __future__ import annotations

import warnings

import ray
from ray._private.worker import global_worker
from ray.util.annotations import RayDeprecationWarning
from ray.util.client import ray as ray_client


def joined_ray() -> object | None:
    """Return what stands for this process's present stay in a Ray; None while it is in none.

    Another object after each `ray.init`, to be compared with `is`: what was opened in an earlier
    stay reaches nobody. Its worker id and its address may be the same in the next.
    """
    # Asks nothing of Ray: while that shuts down, it ends the process of a thread that does.
    if global_worker.connected:
        return global_worker.node
    if ray_client.is_connected():
        client: object = ray_client.get_context().client_worker
        return client
    return None


def was_restarted() -> bool:
    """True in an actor whose process is not its first."""
    with warnings.catch_warnings():  # Ray's own way to say it uses what Ray deprecates
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return bool(ray.get_runtime_context().was_current_actor_reconstructed)
