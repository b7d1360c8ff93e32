"""Requests that reach a replica past every request router, as HAProxy's do."""

from __future__ import annotations

import pickle
import uuid
from typing import Any

import ray
from ray.serve._private.common import RequestMetadata
from serveapp import App
from served import strays_here

from ray_route.serve.statements import Home, Way, state


def actor_name(app: App, replica: str) -> str:
    return f"SERVE_REPLICA::{app.name}#Chat#{replica}"


def actor(app: App, replica: str) -> Any:
    return ray.get_actor(actor_name(app, replica), namespace="serve")


def another(app: App, replica: str) -> str:
    return next(name for name in app.alive() if name != replica)


def metadata(app: App, session: str, method: str, said: tuple[Home, Way] | None = None) -> bytes:
    ids = {"request_id": uuid.uuid4().hex, "internal_request_id": uuid.uuid4().hex}
    made = RequestMetadata(**ids, call_method=method, session_id=session, app_name=app.name)
    if said is not None:
        state(made, *said)
    return pickle.dumps(made)


def sent(
    app: App,
    replica: str,
    session: str,
    *args: Any,
    method: str = "say",
    said: tuple[Home, Way] | None = None,
) -> Any:
    """Send a request straight to a replica; return the reference of its answer."""
    asked = metadata(app, session, method, said)
    return actor(app, replica).handle_request.remote(asked, *args)


def answered(app: App, replica: str, session: str, *args: Any, **how: Any) -> dict[str, Any]:
    return ray.get(sent(app, replica, session, *args, **how), timeout=30)


def home(app: App, session: str) -> Home:
    """Return a session's home as the directory has it now."""
    link = app.client.compute_linked_pod(session, app.service)
    replica = next(name for name, pod in app.alive().items() if pod == link.pod)
    return Home(link, actor_name(app, replica))


def strays(app: App, replica: str) -> dict[tuple[str, str], int]:
    return ray.get(actor(app, replica).__ray_call__.remote(strays_here, app.client.namespace))
