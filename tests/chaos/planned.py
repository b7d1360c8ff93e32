"""Planned events beside faults: upgrades, rebalancings, drivers that scale, controllers' ends."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any

import ray
from history import Fault, History, lives_between
from storm import _MISSED, TIMEOUT_S, Storm
from world import SERVICE

import ray_route
from ray_route.protocol.names import RAY_NAMESPACE, controller_name

PLANNED = ["upgrade", "rebalance", "controller", "drivers"]
# For each pod of an upgrade: users' calls and hooks last for some seconds at most.
DRAIN_S = 30.0


class Planned(Storm):
    """A storm over a service whose owners change it meanwhile."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.done: list[str] = []
        """Which planned events have come to their end."""
        self._upgrader: threading.Thread | None = None
        self._upgrades: list[tuple[float, float]] = []
        """When each began and was over."""

    def run(self, seconds: float, clients: int, faults: list[str]) -> History:
        """Do as a storm does, and wait for the upgrade that is under way."""
        history = super().run(seconds, clients, faults)
        if self._upgrader is not None:
            self._upgrader.join(TIMEOUT_S * 3)
            assert not self._upgrader.is_alive(), self.deployment.status()
        return history

    def _indexes(self) -> list[int]:
        """Return those that have ever served: an upgrade's pods are wanted before they are made."""
        known = self.client.pods(SERVICE)
        wanted = [pod for pod in self.deployment.status(TIMEOUT_S).wanted if pod in known]
        return wanted or sorted(known)

    @property
    def _is_upgrading(self) -> bool:
        return self._upgrader is not None and self._upgrader.is_alive()

    def _upgrade(self) -> None:
        """Begin an upgrade; other faults strike meanwhile."""
        if not self._is_upgrading:
            self._upgrader = threading.Thread(target=self._upgrade_now)
            self._upgrader.start()

    def _upgrade_now(self) -> None:
        began = time.monotonic()
        self._note_lives(began)
        how = {"max_surge": 2, "deadline_s": DRAIN_S, "timeout": TIMEOUT_S}
        try:
            self.deployment.upgrade(self.world.cls, **how)
            self.done.append("upgrade")
        except (ray_route.UpgradeError, *_MISSED) as error:  # a fault has met its pods
            self.done.append(f"upgrade not done: {error}")
        except (ray_route.RouteError, ray.exceptions.RayError) as error:
            self.failures.append(f"the upgrade itself: {error!r} {error}")
        self._note_lives(began)  # those, too, that it has made and ended
        self._upgrades.append((began, time.monotonic()))

    def _note_lives(self, began: float) -> None:
        """Note that the users of all pods that there are may have moved, since it began."""
        with suppress(*_MISSED):
            for it in self.client.pods(SERVICE).values():
                self.history.faults.append(Fault("upgrade", began, it.incarnation))

    def note_lives_amid(self, history: History) -> None:
        """Note so, too, of lives that began and ended while an upgrade lasted: no table has them.

        What their pods wrote down has; so this is for a history that is whole.
        """
        known = {it.incarnation for it in history.faults if it.kind == "upgrade"}
        for began, over in self._upgrades:
            for life in lives_between(history, began, over) - known:
                history.faults.append(Fault("upgrade", began, life))

    def _rebalance(self) -> None:
        if self._is_upgrading:
            return  # it would wait for that
        at = time.monotonic()
        done = self.deployment.rebalance(max_moves_per_s=100, tolerance=0.05, deadline_s=10)
        uids = frozenset(move.uid for move in done.moves)
        self.history.faults.append(Fault("rebalance", at, -1, time.monotonic(), uids))
        self.done.append("rebalance")

    def _drivers(self) -> None:
        """Have two drivers scale at once, to different numbers, and then one to what there was."""
        if self._is_upgrading:
            return
        fault = self._note("scale", self._life(self._indexes()[-1]))
        with ThreadPoolExecutor(2) as drivers:
            list(drivers.map(self._scale_by_another, (3, 4)))
        self.deployment.scale(4)
        self._note("scale", self._life(self._indexes()[-1]))
        self._over(fault)
        self.done.append("drivers")

    def _scale_by_another(self, replicas: int) -> None:
        namespace, url = self.client.namespace, self.world.url
        with suppress(*_MISSED):
            other = ray_route.get_deployment(namespace, SERVICE, redis_url=url)
            try:
                other.scale(replicas)
            finally:
                other.close()

    def _scale(self) -> None:
        if not self._is_upgrading:
            super()._scale()

    def _drain(self) -> None:
        if not self._is_upgrading:
            super()._drain()

    def _controller(self) -> None:
        name = controller_name(self.client.namespace, SERVICE)
        ray.kill(ray.get_actor(name, namespace=RAY_NAMESPACE), no_restart=False)
        fault = self._note("controller")
        place = self.history.faults.index(fault)  # it strikes no pod
        self.history.faults[place] = replace(fault, incarnation=-1)
        self.done.append("controller")
