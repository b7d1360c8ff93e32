"""The session of the running request, whether it is at home, and how a nested call keeps it."""

from __future__ import annotations

from typing import Any

from ray.serve.context import _get_serve_request_context
from ray.serve.handle import DeploymentHandle

from ray_route.serve.arrival import arrived


def current_session() -> str | None:
    """Return the session id of the request that runs here; None if it has none."""
    # Private: Serve has a public function for the multiplexed model id alone.
    return _get_serve_request_context().session_id or None


def in_session(handle: DeploymentHandle[Any]) -> DeploymentHandle[Any]:
    """Return the handle with the session of the request that runs here, for a nested call.

    Serve does not pass the session id on by itself. Without one, the handle is returned as it is.
    """
    session = current_session()
    return handle if session is None else handle.options(session_id=session)


def is_home() -> bool | None:
    """Say whether the running request's session lives on this replica: no I/O.

    False where it was sent past its home, or spilled from it (`when_full="spill"`); None where
    that is not known: it has no session, its replica has not joined yet, or came to know of the
    session just now, by a request that no router of ours has sent.
    """
    arrival = arrived()
    return None if arrival is None else arrival.is_home
