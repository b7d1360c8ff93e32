"""Tells the router what became of uids that were given up or fetched, and asks whose they are.

Lives as long as its agent, through all incarnations. Each of the two has a thread of its own: what
a router lets one wait for keeps neither the other waiting, nor any release.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, TypeVar

import ray

from ray_route.clock import now
from ray_route.errors import RouteError
from ray_route.pod.bell import Bell
from ray_route.pod.holdings import Holdings
from ray_route.pod.release import Releases
from ray_route.pod.surroundings import Surroundings
from ray_route.pod.unsettled import unsettled
from ray_route.protocol.commands import Address, Given, Settlement

logger = logging.getLogger(__name__)

_LOOK_S = 0.2
# A uid that was given up, and whose link still names this pod then, is nobody's move: the router
# is asked to give it back, or to remove its link.
_SETTLE_S = 1.0
# The router answers for so many within a second or two, be each link removed by itself.
_AT_A_TIME = 1_000

T = TypeVar("T")

Ask = Callable[..., Any]
"""Calls a method of the router, by its name; returns what it does."""


class Telling:
    """Tells and asks, for one agent, by `ask`."""

    def __init__(
        self,
        namespace: Surroundings,
        ask: Ask,
        held: Holdings,
        releases: Releases,
        address: Callable[[], Address],
    ) -> None:
        self._namespace = namespace
        self._ask = ask
        self._held = held
        self._releases = releases
        self._address = address
        self._settle_at = now()
        self._ended = threading.Event()
        for how in ((self._tell, held.outcomes.news), (self._settle, held.removals)):
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
        outcomes = self._held.outcomes.take()
        if not outcomes:
            return
        is_told = False
        try:
            self._ask("take_outcomes", self._address(), outcomes)
            is_told = True
        except (RouteError, ray.exceptions.RayError) as error:
            logger.debug("outcomes have not reached the router yet: %r", error)
        finally:
            if not is_told:  # whatever was raised
                self._held.outcomes.not_told(outcomes)
                self._ended.wait(_LOOK_S)

    def _settle(self) -> None:
        """Ask whose uids are; some at a time, so that however many there are it comes to an end."""
        at = now()
        if at < self._settle_at:
            return
        given = unsettled(self._held, at - _SETTLE_S)
        if self._held.leaving:  # what has no state is settled by the end of this life
            with self._held.lock:
                has_state = self._held.nobodys.has_state
                given = {uid: it for uid, it in given.items() if has_state(uid)}
        are_settled = [self._settle_some(some) for some in pieces(given, _AT_A_TIME)]
        if not all(are_settled):  # those of somebody's move, or of damaged links
            self._settle_at = now() + _SETTLE_S

    def _settle_some(self, given: dict[str, Given]) -> bool:
        """Ask about some; False if there is one of which the router can't tell yet."""
        if self._ended.is_set():
            return False
        asked_at = self._held.clock()
        settled = self._settlements(given)
        shard_of = self._namespace.keys.shard
        # Whatever becomes of that, no server is believed from here on that lacks it.
        self._namespace.saw_all((shard_of(uid), max(it)) for uid, it in settled.items())
        return self._releases.settled(settled, given, asked_at) and settled.keys() >= given.keys()

    def _settlements(self, given: dict[str, Given]) -> dict[str, Settlement]:
        """Return what the router says of some; nothing of those of which it can't tell."""
        settled: dict[str, Settlement] = {}
        try:
            settled = self._ask("settle", self._address(), given)
        except (RouteError, ray.exceptions.RayError) as error:
            logger.debug("uids given up can't be settled: %r", error)
        except Exception:  # the others are asked about all the same
            service, pod, _ = self._address()
            logger.exception("%d uids of pod %d of %s can't be settled", len(given), pod, service)
        return settled


def pieces(all_of_them: dict[str, T], at_a_time: int) -> Iterator[dict[str, T]]:
    """Yield some of them at a time: no router is asked for 100,000 at once."""
    items = iter(all_of_them.items())
    while some := dict(islice(items, at_a_time)):
        yield some
