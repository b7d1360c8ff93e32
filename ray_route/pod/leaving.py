"""What a call becomes whose own pod refuses it, or that has its process end."""

from __future__ import annotations

import logging

from ray_route.errors import FencedError, PodUnavailableError
from ray_route.pod.agent import PodAgent
from ray_route.pod.endings import Departure, exit_to_be_made_again
from ray_route.protocol.calls import Refused

_SHOWN_CHARACTERS = 500

logger = logging.getLogger(__name__)

_departure: Departure | None = None


def leave_by(departure: Departure) -> None:
    """Have this process leave in this way when user code asks it to end."""
    global _departure  # noqa: PLW0603 - a process is one pod
    _departure = departure


def own_refusal(agent: PodAgent, error: FencedError) -> Refused:
    """Answer with the refusal of this very call; any other is the user's, whatever it says."""
    if not agent.gate.has_refused(error):
        raise error
    return Refused(error)


def leaving(
    agent: PodAgent, uid: str, what: str, error: BaseException, *, may_have_run: bool
) -> PodUnavailableError:
    """Begin to end this process, since the user's code asked for it; return what a caller gets.

    Ray must not see what was raised: it would never make the pod again. Nor is the call repeated
    elsewhere, `idempotent` or not: it would end one pod after the other.
    """
    shown = repr(error)[:_SHOWN_CHARACTERS]  # a refusal is never so large that Ray stores it apart
    reason = f"{what}({uid!r}) raised {shown}, so its process ends; Ray makes it again"
    logger.error("pod %d of %s leaves: %s", agent.pod, agent.service, reason, exc_info=error)
    if _departure is not None:
        _departure.begin(exit_to_be_made_again)
    return PodUnavailableError(
        reason=reason,
        may_have_run=may_have_run,
        namespace=agent.namespace,
        service=agent.service,
        pod=agent.pod,
        uid=uid,
    )
