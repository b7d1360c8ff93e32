"""Pods of a node that Ray is about to take away are drained while it is there.

The process of such a pod hears of nothing: Ray marks the node (KubeRay at SIGTERM to it, the
autoscaler before it preempts one), and ends what runs there at the node's deadline.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from ray_route.clock import now
from ray_route.model import PodRecord
from ray_route.router.drains import Drains
from ray_route.router.membership import Membership

logger = logging.getLogger(__name__)

_LOOK_S = 1.0
# A drain that stopped, as for want of another pod, is tried again after so long.
_AGAIN_S = 5.0
# Of the time that a node has left, for moving its pods' uids to others.
_SHARE = 0.9

Look = Callable[[], Mapping[str, float]]


class NodeDrains:
    """Looks by `look` for nodes that are to go, and begins drains. Belongs to one event loop."""

    def __init__(self, membership: Membership, drains: Drains, look: Look) -> None:
        self._membership = membership
        self._drains = drains
        self._look = look
        self._begun: dict[tuple[str, int, int], float] = {}

    async def watch(self) -> None:
        """Look again and again, for ever."""
        while True:
            try:
                self._drain(await asyncio.to_thread(self._look))
            except Exception as error:  # noqa: BLE001 - whatever Ray answers, or does not
                logger.debug("Ray does not tell which nodes are being drained: %r", error)
            await asyncio.sleep(_LOOK_S)

    def _drain(self, nodes: Mapping[str, float]) -> None:
        table = self._membership.table
        for service in table.services() if nodes else ():
            for pod in list(table.pods(service).values()):
                if pod.node in nodes and pod.routable:
                    self._drain_pod(service, pod, _SHARE * nodes[pod.node])

    def _drain_pod(self, service: str, pod: PodRecord, left_s: float) -> None:
        life = (service, pod.pod, pod.incarnation)
        if now() < self._begun.get(life, 0.0):
            return
        self._begun[life] = now() + _AGAIN_S
        is_new = not self._drains.is_running(service, pod.pod)
        self._drains.start(service, pod, pod.state, left_s, go_on=False, only_sooner=True)
        if is_new:
            facts = (pod.pod, service, pod.node, left_s)
            logger.warning("pod %d of %s is drained: Ray drains its node %s, in %.1f s", *facts)
