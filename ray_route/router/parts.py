"""What a router is made of, and who tells whom."""

from __future__ import annotations

import asyncio

import ray

from ray_route.config import RouteConfig
from ray_route.model import Life, PodRecord
from ray_route.protocol.changes import Change
from ray_route.protocol.names import RAY_NAMESPACE
from ray_route.router.beats import Beats
from ray_route.router.change_writer import ChangeWriter
from ray_route.router.directory import Directory
from ray_route.router.drains import Drains
from ray_route.router.failure_detector import FailureDetector
from ray_route.router.lifecycle import Lifecycle
from ray_route.router.link_table import LinkTable
from ray_route.router.mailbox import Mailboxes
from ray_route.router.membership import Membership
from ray_route.router.moves import Moves
from ray_route.router.node_drains import NodeDrains
from ray_route.router.placing_gate import PlacingGate
from ray_route.router.recovery import Recovery
from ray_route.router.resumption import Resumption
from ray_route.router.shards import Shards
from ray_route.router.shifts import Shifts
from ray_route.runtime import telemetry
from ray_route.runtime.draining_nodes import draining_nodes
from ray_route.runtime.metrics import ROUTER_CACHE_LINKS
from ray_route.store.connect import AsyncStore
from ray_route.store.keys import Keys
from ray_route.store.links import LinkCalls
from ray_route.store.url import StoreUrl


async def _has_actor(name: str) -> bool:
    """True if Ray has an actor of that name, be it one that it is just restarting."""
    try:
        await asyncio.to_thread(ray.get_actor, name, namespace=RAY_NAMESPACE)
    except ValueError:
        return False
    return True


class Parts:
    """The parts of one router, put together; `life.begin()` sets them going."""

    def __init__(self, namespace: str, url: StoreUrl, config: RouteConfig) -> None:
        store = AsyncStore(url)
        keys = Keys(namespace, config.shards)
        self.shards = Shards(store, keys, LinkCalls(keys, config))
        self.changes = ChangeWriter(store, keys)
        self.mailboxes = Mailboxes()
        self.membership = Membership(store, keys, self._pod_changed, self.shards)
        self.links = LinkTable(config, keys, self.membership, self.shards)
        self.directory = Directory(config, self.links, store, self.membership)
        self.moves = Moves(
            self.membership,
            self.links,
            self.directory,
            self.mailboxes,
            self._links_stale,
            config.ttl_s,
        )
        self.drains = Drains(
            self.membership, self.directory, self.mailboxes, self.moves, _has_actor
        )
        self.shifts = Shifts(self.membership, self.mailboxes, self.moves)
        gate = PlacingGate(namespace, config, self.membership)
        self.shards.may_place = gate.passed
        node: str = ray.get_runtime_context().get_node_id()
        self.failures = FailureDetector(self.membership, gate, config, node)
        self.recovery = Recovery(
            config,
            store,
            self.membership,
            self.shards,
            self.links,
            self.mailboxes,
            self.failures.begin_anew,
        )
        self.shards.recover, self.shards.look = self.recovery.recover, self.recovery.compared
        self.recovery.comparison.tell_lost = self.changes.lost
        self.recovery.comparison.tell_servers = self.mailboxes.wake_all
        gate.readmit = self.recovery.readmit
        self.resumption = Resumption(
            config, self.membership, self.shards, self.recovery, self.failures.begin_anew_with
        )
        cache = self.links.cache
        self.membership.meter.gauge(ROUTER_CACHE_LINKS, lambda: [((), cache.held)])
        telemetry.start()
        self.life = Lifecycle(
            self.shards,
            self.links,
            self.membership,
            self.failures,
            self.recovery,
            self.changes,
            self.mailboxes,
            (
                Beats(config.heartbeat_s, self.recovery, self.shards, self.changes).run,
                NodeDrains(self.membership, self.drains, draining_nodes).watch,
            ),
        )

    # What some of them tell others.

    def _pod_changed(self, service: str, record: PodRecord) -> None:
        self.changes.write(Change("pod", service, pod=record))
        alive = record.life is Life.ALIVE
        ended = record.incarnation - 1 if alive else record.incarnation
        self.mailboxes.end(service, record.pod, ended)

    def _links_stale(self, service: str, epochs: dict[str, int]) -> None:
        for uid, epoch in epochs.items():
            self.links.cache.drop(service, uid, epoch)
        if epochs:
            self.changes.write(Change("link", service, stale=epochs))
