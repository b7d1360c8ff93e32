"""The session of the running request, and how a nested call keeps it."""

from __future__ import annotations

from typing import Any

from ray.serve.context import _get_serve_request_context
from ray.serve.handle import DeploymentHandle


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
