"""Namespaces that are warm before anybody asks for them: a router's process takes its time."""

from __future__ import annotations

import logging
import queue
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray.util import list_named_actors

from ray_route.client.connect import connect
from ray_route.client.sync_client import RouteClient
from ray_route.clock import Deadline
from ray_route.protocol.names import RAY_NAMESPACE, router_name

_IN_STOCK = 2
_MADE_S = 120.0
_GONE_S = 30.0
_LOOK_S = 0.2

logger = logging.getLogger(__name__)


class Spares:
    """Keeps a few namespaces open, each with its router and a client, under names of their own."""

    def __init__(self, redis_url: str | None = None, in_stock: int = _IN_STOCK) -> None:
        self._url = redis_url
        self._stock: queue.SimpleQueue[RouteClient | Exception] = queue.SimpleQueue()
        self._wanted = threading.Semaphore(in_stock)
        self._closed = threading.Event()
        self._enders = ThreadPoolExecutor(1, thread_name_prefix="ray_route-spares")
        self._maker = threading.Thread(target=self._make, name="ray_route-spares", daemon=True)
        self._maker.start()

    def __len__(self) -> int:
        return self._stock.qsize()

    def take(self) -> RouteClient:
        """Return a client of a namespace that nobody has had; raise what kept it from opening."""
        self._wanted.release()
        made = self._stock.get(timeout=_MADE_S)
        if isinstance(made, Exception):
            raise made
        return made

    def give_back(self, client: RouteClient) -> None:
        """End all that a namespace has in Ray, in the background; its name is not used again."""
        self._enders.submit(_end_logged, client)

    def close(self) -> None:
        """End all that is left, and return when it has gone."""
        self._closed.set()
        self._wanted.release()
        self._maker.join()
        while len(self):
            made = self._stock.get()
            if isinstance(made, RouteClient):
                self.give_back(made)
        self._enders.shutdown()

    def _make(self) -> None:
        while self._wanted.acquire() and not self._closed.is_set():
            try:
                self._stock.put(connect(f"test-{uuid.uuid4().hex[:12]}", self._url))
            except Exception as error:  # noqa: BLE001 - whoever takes it hears of it
                self._stock.put(error)


def _end_logged(client: RouteClient) -> None:
    try:
        end(client)
    except Exception:  # nobody waits for it
        logger.exception("namespace %s could not be ended", client.namespace)


def end(client: RouteClient) -> None:
    """Close a client, and end all actors of its namespace for good; return when none is left.

    The router comes last: a pod, a controller or a client that misses it makes another.
    """
    router, deadline = router_name(client.namespace), Deadline.after(_GONE_S)
    while others := _named(client.namespace) - {router}:
        _kill(others, deadline)
    client.close()
    while _named(client.namespace):
        _kill(_named(client.namespace), deadline)


def _named(namespace: str) -> set[str]:
    every: list[dict[str, Any]] = list_named_actors(all_namespaces=True)
    ours = {actor["name"] for actor in every if actor["namespace"] == RAY_NAMESPACE}
    return {name for name in ours if name.split(":")[1:2] == [namespace]}


def _kill(names: set[str], deadline: Deadline) -> None:
    for name in sorted(names, key=lambda name: not name.endswith(":controller")):  # it makes pods
        try:
            ray.kill(ray.get_actor(name, namespace=RAY_NAMESPACE), no_restart=True)
        except ValueError:  # it has gone
            continue
    deadline.check(f"{', '.join(sorted(names))} to end")
    time.sleep(_LOOK_S)
