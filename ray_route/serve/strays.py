"""Requests that reach a replica which is not their session's home: counted, and told once."""

from __future__ import annotations

import logging
from enum import Enum

from ray_route.runtime.metrics import SERVE_STRAYS, meter

logger = logging.getLogger(__name__)


class Cause(str, Enum):
    """Why a request is where its session does not live."""

    BYPASSED = "bypassed"
    """It came by HAProxy or direct ingress, past every request router."""
    UNROUTED = "unrouted"
    """It came by a handle or proxy that routes by something else."""
    MOVED = "moved"
    """Its session was moved while it was on its way."""
    SPILLED = "spilled"
    """Its home had no room, and `when_full` is "spill"."""
    BODY = "body"
    """Its session is named in its body, which only replicas read."""
    OVERLOOKED = "overlooked"
    """Its body, in which its session may be named, is over the limit, and was not read."""


_TO_DO = {
    Cause.BYPASSED: (
        "HAProxy and direct ingress do not ask the request router of the deployment that they lead "
        "to. Set RAY_SERVE_ENABLE_HA_PROXY=1 (or 0) in the whole cluster and in the process that "
        "calls serve.run alike, let an ingress deployment call this one, or choose "
        'on_stray="forward"'
    ),
    Cause.UNROUTED: (
        "a process routes by an older or another request router: restart the processes that use a "
        'handle of this deployment, or choose on_stray="forward"'
    ),
    Cause.MOVED: (
        'choose on_stray="refuse" or "forward" if two replicas must never serve a session at once'
    ),
}
"""What to do about it; of a cause that is not here, nothing is told."""


class Strays:
    """Counts the strays of one replica, and tells one of each cause. Thread-safe."""

    def __init__(self, namespace: str, service: str, actor: str) -> None:
        self._service = service
        self._actor = actor
        self._meter = meter(namespace)
        self._told: set[Cause] = set()

    def note(self, cause: Cause, outcome: str, uid: str, home: str) -> None:
        """Take in a stray, and whether it was served, refused or forwarded."""
        self._meter.count(SERVE_STRAYS, self._service, cause.value, outcome)
        if cause in self._told or cause not in _TO_DO:
            return
        self._told.add(cause)
        logger.warning(
            "%s of %s was sent session %r, whose home is %s; the request is %s (%s; told once). %s",
            self._actor,
            self._service,
            uid,
            home,
            outcome,
            cause.value,
            _TO_DO[cause],
        )

    def overlooked(self, limit: int) -> None:
        """Take in a request whose body was not searched for a session."""
        self._meter.count(SERVE_STRAYS, self._service, Cause.OVERLOOKED.value, "served")
        if Cause.OVERLOOKED not in self._told:
            self._told.add(Cause.OVERLOOKED)
            logger.warning(
                "%s of %s was sent a body of more than %d bytes, which was not searched for a "
                "session: it is served here (told once). Raise body_limit_bytes, or name the "
                "session in a header, too",
                self._actor,
                self._service,
                limit,
            )
