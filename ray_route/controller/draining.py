"""Drains of a service's pods, as its controller asks the router for them, and has them stopped."""

from __future__ import annotations

import time
from collections.abc import Callable

from ray_route.client.session import Session
from ray_route.client.sync_client import RouteClient
from ray_route.clock import Deadline
from ray_route.errors import PodUnavailableError
from ray_route.model import DrainProgress
from ray_route.runtime.waiting import run

_ASK_S = 30.0
_POLL_S = 0.05


def drain(
    client: RouteClient,
    service: str,
    pod: int,
    deadline_s: float,
    note: Callable[[DrainProgress], None],
) -> None:
    """Drain a pod; `note` is told how far that has come, and raises what ends the waiting.

    Raises `PodUnavailableError` if it can't be drained within `deadline_s` seconds.
    """
    for progress in client.drain(service, pod, deadline_s):
        note(progress)
        if progress.problem:
            raise PodUnavailableError(
                reason=f"it could not be drained: {progress.problem}",
                may_have_run=False,
                namespace=client.namespace,
                service=service,
                pod=pod,
            ) from next(iter((*progress.stuck, *progress.damaged)), None)


def is_draining(session: Session, service: str, pod: int) -> bool:
    """True while the router drains a pod, whoever has asked for that."""
    ask = session.namespace.ask("drain_progress", service, pod)
    progress: DrainProgress | None = run(ask, Deadline.after(_ASK_S))
    return progress is not None and not progress.done


def stop_drain(session: Session, service: str, pod: int) -> None:
    """End the drain of a pod that is under way, and wait for that.

    Who asked for it may have died: the router's drain goes on without him. The pod serves what it
    has left, or is SHUTDOWN if that came too late.
    """
    if not is_draining(session, service, pod):
        return
    deadline = Deadline.after(_ASK_S)
    # A later drain's deadline is what counts, and this one's has passed.
    run(session.namespace.ask("drain", service, pod, 0.0, go_on=False), deadline)
    while is_draining(session, service, pod):
        deadline.check(f"the drain of pod {pod} of {service!r} to stop")
        time.sleep(_POLL_S)
