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
from ray_route.store.url import StoreUrl

logger = logging.getLogger(__name__)

_RETRY_S = 1.0
_POLL_S = 0.1
# A replica that is asked to stop keeps its sessions for this share of the time that it has; what
# is left is for the requests that run then, while its sessions are elsewhere.
_KEPT_SHARE = 0.5
_SERVES_OWN_DEFAULT_S = 20.0


@dataclass(frozen=True, slots=True)
class ServiceAddress:
    """The service that a replica joins."""

    namespace: str
    service: str
    url: StoreUrl


class ReplicaAgent:
    """Keeps one replica in one service: joins, stays, and leaves when Serve stops it."""

    def __init__(self, replica: Any, address: ServiceAddress) -> None:
        self._replica = replica
        name = ray.get_runtime_context().get_actor_name()
        self.agent = PodAgent(
            address.namespace, address.service, None, redis_url=address.url, actor=name or ""
        )
        self._joined = False
        self._thread = threading.Thread(target=self._run, name="ray_route-replica", daemon=True)
        self._thread.start()
        self._have_serve_wait()

    def use(self, links: Mapping[str, Link]) -> None:
        """Take in sessions that a router has routed here."""
        if self._joined:
            self.agent.use(links)

    def _run(self) -> None:
        while not self._joined:
            try:
                self.agent.start()
                self._joined = True
            except Exception as error:  # noqa: BLE001 - whatever it is may pass
                logger.warning("a replica can't join %s yet: %s", self.agent.service, error)
                time.sleep(_RETRY_S)
        while not self._is_stopping():
            time.sleep(_POLL_S)
        self._leave()

    def _leave(self) -> None:
        """Take no new sessions, and give the others up when nothing runs any more."""
        deadline = Deadline.after(_KEPT_SHARE * self._grace_s())
        try:
            self.agent.set_routing_state(RoutingState.DENY_NEW, timeout=deadline.remaining())
            while self._replica.get_num_ongoing_requests() and deadline.remaining():
                time.sleep(_POLL_S)
        except (RouteError, ray.exceptions.RayError) as error:
            logger.warning("a replica of %s leaves at once: %s", self.agent.service, error)
        finally:
            with contextlib.suppress(RouteError):  # then the end of the process is noticed
                self.agent.stop()

    # Serve tells a replica's own process of its stop by these private attributes alone. Without
    # them the replica leaves when its process ends, which the router notices.

    def _have_serve_wait(self) -> None:
        """Have Serve end the process not before the replica has left its service.

        It kills an idle one after `graceful_shutdown_wait_loop_s`, however busy the machine is; one
        that was about to leave would then count as dead.
        """
        serves = self._replica._replica_impl  # noqa: SLF001
        shut_down = getattr(serves, "perform_graceful_shutdown", None)
        if shut_down is None:
            return

        async def shut_down_and_leave() -> None:
            await shut_down()
            if self._joined:
                await asyncio.to_thread(self._thread.join)

        serves.perform_graceful_shutdown = shut_down_and_leave

    def _is_stopping(self) -> bool:
        return bool(getattr(self._replica._replica_impl, "_shutting_down", False))  # noqa: SLF001

    def _grace_s(self) -> float:
        config = getattr(self._replica._replica_impl, "_deployment_config", None)  # noqa: SLF001
        return float(getattr(config, "graceful_shutdown_timeout_s", _SERVES_OWN_DEFAULT_S))


_agents: dict[tuple[str, str], ReplicaAgent] = {}
_lock = threading.Lock()


def enlist(replica: Any, address: ServiceAddress) -> None:
    """Have this replica join a service, once, however many routers ask; returns at once."""
    key = (address.namespace, address.service)
    with _lock:
        if key not in _agents:
            _agents[key] = ReplicaAgent(replica, address)


def use(_: Any, address: ServiceAddress, links: Mapping[str, Link]) -> None:
    """Tell this replica's agent which sessions a router has routed here."""
    agent = _agents.get((address.namespace, address.service))
    if agent is not None:
        agent.use(links)
