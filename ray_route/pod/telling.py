"""Tells the router what became of uids that were given up or fetched, and asks whose they are.

Lives as long as its agent, through all incarnations. Each of the two has a thread of its own: what
a router lets one wait for keeps neither the other waiting, nor any release.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import ray

from ray_route.clock import now
from ray_route.errors import RouteError
from ray_route.pod.bell import Bell
from ray_route.pod.holdings import Holdings
from ray_route.pod.release import Releases
from ray_route.protocol.commands import Address, Settlement

logger = logging.getLogger(__name__)

_LOOK_S = 0.2
# A uid that was given up, and whose link still names this pod then, is nobody's move: the router
# is asked to give it back, or to remove its link.
_SETTLE_S = 1.0


Ask = Callable[..., Any]
"""Calls a method of the router, by its name; returns what it does."""


class Telling:
    """Tells and asks, for one agent, by `ask`."""

    def __init__(
        self, ask: Ask, held: Holdings, releases: Releases, address: Callable[[], Address]
    ) -> None:
        self._ask = ask
        self._held = held
        self._releases = releases
        self._address = address
        self._settle_at = now()
        self._ended = threading.Event()
        for how in ((self._tell, held.news), (self._settle, held.removals)):
            name = "ray_route-tell"
            threading.Thread(target=self._keep_on, args=how, name=name, daemon=True).start()

    def end(self) -> None:
        """Stop; what is just asked goes on."""
        self._ended.set()

    def _keep_on(self, work: Callable[[], None], bell: Bell) -> None:
        known = 0
        while not self._ended.is_set():
            try:
                work()
            except Exception:  # without this thread whoever waits for it would wait in vain
                service, pod, _ = self._address()
                logger.exception("pod %d of %s can't tell what it has released", pod, service)
                self._ended.wait(_LOOK_S)
            known = bell.wait(known, _LOOK_S)

    def _tell(self) -> None:
        """Tell outcomes, again until the router has them: whoever moves a uid waits for its own."""
        outcomes = self._releases.outcomes()
        if not outcomes:
            return
        try:
            self._ask("take_outcomes", self._address(), outcomes)
        except (RouteError, ray.exceptions.RayError) as error:
            logger.debug("outcomes have not reached the router yet: %r", error)
            self._releases.not_told(outcomes)
            self._ended.wait(_LOOK_S)

    def _settle(self) -> None:
        at = now()
        if at >= self._settle_at:
            self._settle_all(self._held.unsettled(at - _SETTLE_S))

    def _settle_all(self, given: dict[str, tuple[int, bool]]) -> None:
        if self._held.leaving:  # what has no state is settled by the end of this life
            with self._held.lock:
                has_state = self._held.nobodys.has_state
                given = {uid: it for uid, it in given.items() if has_state(uid)}
        if not given:
            return
        try:
            settled: dict[str, Settlement] = self._ask("settle", self._address(), given)
        except (RouteError, ray.exceptions.RayError) as error:
            logger.debug("uids given up can't be settled: %r", error)
            settled = {}
        self._releases.settled(settled)
        if settled.keys() < given.keys():  # those of somebody's move, or of damaged links
            self._settle_at = now() + _SETTLE_S
