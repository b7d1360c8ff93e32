"""What runs in a Serve replica's own process: its agent, from its first router to its end.

Routers start it there by `__ray_call__`, which any actor has, so the user's class is unmodified.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray

from ray_route.clock import Deadline
from ray_route.errors import RouteError
from ray_route.model import Link, RoutingState
from ray_route.pod.agent import PodAgent
from ray_route.serve.door import Door
from ray_route.serve.entrances import Entrances
from ray_route.serve.forwarding import Forwarder
from ray_route.serve.homes import Homes
from ray_route.serve.replica_options import ReplicaOptions
from ray_route.serve.serves_replica import ServesReplica
from ray_route.store.url import StoreUrl

logger = logging.getLogger(__name__)

_RETRY_S = 1.0
_POLL_S = 0.1
# A replica that is asked to stop keeps its sessions for this share of the time that it has; what
# is left is for the requests that run then, while its sessions are elsewhere.
_KEPT_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class ServiceAddress:
    """The service that a replica joins."""

    namespace: str
    service: str
    url: StoreUrl


class ReplicaAgent:
    """Keeps one replica in one service: joins, stays, and leaves when Serve stops it."""

    def __init__(self, replica: Any, address: ServiceAddress, options: ReplicaOptions) -> None:
        self._serves = ServesReplica(replica)
        actor = ray.get_runtime_context().get_actor_name() or ""
        self.agent = PodAgent(
            address.namespace, address.service, None, redis_url=address.url, actor=actor
        )
        homes = Homes(address.namespace, address.service, address.url, options.config)
        self._door = Door(self.agent, actor, homes, options)
        ids = {"namespace": homes.namespace, "service": homes.service}
        self._see_requests(Forwarder(ids, on_end=homes.died))
        self._joined = False
        self._early: dict[str, Link] = {}
        self._joining = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="ray_route-replica", daemon=True)
        self._thread.start()
        self._serves.have_wait(self._left)

    def _see_requests(self, forwarder: Forwarder) -> None:
        if missing := self._serves.missing:
            logger.error(
                "this Ray's replicas have no %s: strays are served, and is_home() is None; "
                "use a version of Ray that docs/serve.md names",
                ", ".join(missing),
            )
            return
        self._serves.guard(Entrances(self._door, self._serves, forwarder).wraps())
        self._serves.see(self._door.arriving)

    def configure(self, options: ReplicaOptions) -> None:
        """Take in what the deployment wants of this replica now."""
        self._door.configure(options)

    def use(self, links: Mapping[str, Link]) -> None:
        """Take in sessions that a router has routed here.

        Not where requests enter one by one: there each of them is a use, and what is told late may
        be of a session that has left.

        A router may know that this replica has joined before its own thread does.
        """
        if self._door.is_guarded:
            return
        with self._joining:
            if not self._joined:
                self._early.update(links)
                return
        self.agent.use(links)

    def _run(self) -> None:
        while not self._joined:
            try:
                self.agent.start()
                self._have_joined()
            except Exception as error:  # noqa: BLE001 - whatever it is may pass
                logger.warning("a replica can't join %s yet: %s", self.agent.service, error)
                time.sleep(_RETRY_S)
        while not self._serves.is_stopping:
            time.sleep(_POLL_S)
        self._leave()

    def _have_joined(self) -> None:
        with self._joining:
            self._joined = True
        self.agent.use(self._early)
        self._early.clear()

    def _leave(self) -> None:
        """Take no new sessions, and give the others up when nothing runs any more."""
        deadline = Deadline.after(_KEPT_SHARE * self._serves.grace_s)
        try:
            self.agent.set_routing_state(RoutingState.DENY_NEW, timeout=deadline.remaining())
            while self._serves.is_busy and deadline.remaining():
                time.sleep(_POLL_S)
        except (RouteError, ray.exceptions.RayError) as error:
            logger.warning("a replica of %s leaves at once: %s", self.agent.service, error)
        finally:
            with contextlib.suppress(RouteError):  # then the end of the process is noticed
                self.agent.stop()

    async def _left(self) -> None:
        if self._joined:
            await asyncio.to_thread(self._thread.join)


_agents: dict[tuple[str, str], ReplicaAgent] = {}
_lock = threading.Lock()


def enlist(replica: Any, address: ServiceAddress, options: ReplicaOptions) -> None:
    """Have this replica join a service, once, however many routers ask; returns at once."""
    key = (address.namespace, address.service)
    with _lock:
        if key not in _agents:
            _agents[key] = ReplicaAgent(replica, address, options)
        else:
            _agents[key].configure(options)


def use(_: Any, address: ServiceAddress, links: Mapping[str, Link]) -> None:
    """Tell this replica's agent which sessions a router has routed here."""
    agent = _agents.get((address.namespace, address.service))
    if agent is not None:
        agent.use(links)
