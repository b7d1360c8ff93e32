"""The embedded server of a Ray session: one detached actor holds it for everyone."""

from __future__ import annotations

import os
import secrets
import threading
from pathlib import Path
from typing import Any

import ray

from ray_route.clock import Deadline
from ray_route.errors import ConfigError, StoreUnavailableError
from ray_route.protocol.names import EMBEDDED_SERVER, RAY_NAMESPACE
from ray_route.runtime.given_up import making
from ray_route.runtime.joined_ray import joined_by_client
from ray_route.runtime.local_rays import MARK
from ray_route.runtime.unseen import answer_of
from ray_route.store.embedded import EmbeddedServer, free_port


class EmbeddedServerActor:
    """Runs the server, and ends with it: Ray then restarts both, and the file is read back."""

    def __init__(self, folder: str, port: int, password: str) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True, mode=0o700)
        self._server = EmbeddedServer(folder=Path(folder), port=port, password=password).start()
        threading.Thread(target=self._end_with_server, daemon=True).start()

    def _end_with_server(self) -> None:
        self._server.wait()
        os._exit(1)

    def url(self) -> str:
        """Return the URL, which holds the password."""
        return self._server.url


def embedded_url(deadline: Deadline) -> str:
    """Return the URL of this Ray session's embedded server, starting it at first use.

    Raises `ConfigError` where its loopback can't be reached: on a cluster of several machines, and
    by Ray Client, whose program need not be on any of them.
    """
    if joined_by_client():
        raise ConfigError(
            option="redis_url",
            reason="the embedded server is for programs on its own machine, and this one has "
            "joined by Ray Client (ray://…); give a redis_url or set RAY_ROUTE_REDIS_URL",
        )
    machines = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if len(machines) > 1:
        raise ConfigError(
            option="redis_url",
            reason=f"the embedded server is for one machine, this cluster has {len(machines)}; "
            "give a redis_url or set RAY_ROUTE_REDIS_URL",
        )
    context = ray.get_runtime_context()
    folder = Path(context.get_temp_dir()) / context.get_session_name() / MARK
    server: Any = ray.remote(EmbeddedServerActor).options(
        name=EMBEDDED_SERVER,
        namespace=RAY_NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        scheduling_strategy="DEFAULT",  # not in its maker's placement group, to end with that
    )
    with making():
        host = server.remote(str(folder), free_port(), secrets.token_urlsafe(24))
    try:
        url: str = answer_of(host.url.remote(), deadline.remaining())
    except ray.exceptions.RayError as error:
        raise StoreUnavailableError(address="embedded", reason=repr(error)) from error
    return url
