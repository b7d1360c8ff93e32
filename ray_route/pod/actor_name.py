"""Whether a pod's actor name leads to its process: callers reach a pod by that name alone.

A node that was cut off for long may hold a process that Ray has given up, and has made again
elsewhere. What such a process claimed would be served to nobody.
"""

from __future__ import annotations

from typing import Any

import ray

from ray_route.errors import PodUnavailableError
from ray_route.protocol.names import RAY_NAMESPACE
from ray_route.runtime.unseen import answer_of

_ASK_S = 5.0


def this_worker() -> str:
    """Name this process as Ray does: another life of the same actor has another name."""
    worker: str = ray.get_runtime_context().get_worker_id()
    return worker


def leads_here(actor: str) -> bool:
    """True if that name leads to this very process, which must be an actor that `deploy` made.

    Asks Ray's control plane, and by the name whoever it leads to. Raises `PodUnavailableError` if
    that can't be known for now.
    """
    try:
        reached: Any = ray.get_actor(actor, namespace=RAY_NAMESPACE)
    except ValueError:  # nobody has it
        return False
    try:
        asked = reached._ray_route_worker.remote()  # noqa: SLF001 - of our own class
        return bool(answer_of(asked, _ASK_S) == this_worker())
    except AttributeError:  # it is no pod
        return False
    except (ray.exceptions.RayError, TimeoutError) as error:
        raise PodUnavailableError(
            reason=f"Ray does not tell whether actor {actor} is this process: {error!r}",
            may_have_run=False,
        ) from error
