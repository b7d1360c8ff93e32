"""How a pod whose process is asked to end has its own uids moved away."""

from __future__ import annotations

from ray_route.clock import Deadline
from ray_route.model import DrainProgress
from ray_route.runtime.namespace import Namespace
from ray_route.runtime.waiting import Operation, Pause, run

_SOONER_S = 5.0
_POLL_S = 0.05


def drain_itself(namespace: Namespace, service: str, pod: int, deadline_s: float) -> DrainProgress:
    """Have a pod drained within so many seconds; return how far that came.

    Raises what asking the router raises.
    """
    deadline = Deadline.after(deadline_s)
    for_router = max(deadline_s - _SOONER_S, deadline_s / 2)  # it answers before we give up
    run(namespace.ask("drain", service, pod, for_router, go_on=False), deadline)
    while True:
        asked = namespace.ask("drain_progress", service, pod)
        progress: DrainProgress | None = run(asked, deadline)
        if progress is not None and progress.done:
            return progress
        run(_pause(f"the drain of pod {pod} of {service}"), deadline)


def _pause(what: str) -> Operation[None]:
    yield Pause(_POLL_S, what)
