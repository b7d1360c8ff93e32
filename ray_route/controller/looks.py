"""A controller's looks at its service, one after the other, for as long as there is the service."""

from __future__ import annotations

import logging
import os
import threading
from functools import partial
from typing import Any

import ray

from ray_route.clock import now
from ray_route.controller.keeping import Keeping
from ray_route.controller.requests import Requests
from ray_route.controller.turn import Turn
from ray_route.controller.upgrade_requests import UpgradeRequests
from ray_route.controller.wishes import DeposedError, Wishes

logger = logging.getLogger(__name__)

_EACH_S = 2.0
_ANSWER_S = 0.1
_TIDY_EACH_S = 60.0


class Looks:
    """The looks of one controller, each while no caller has the turn."""

    def __init__(
        self,
        wishes: Wishes,
        keeping: Keeping,
        turn: Turn,
        requests: Requests,
        upgrades: UpgradeRequests,
    ) -> None:
        self._wishes = wishes
        self._keeping = keeping
        self._turn = turn
        self._requests = requests
        self._upgrades = upgrades
        self._wake = threading.Event()
        self._tidy_at = 0.0
        self.problem = ""
        """What the last look has met."""

    def run(self) -> None:
        """Look again and again; end this actor once its service has ended."""
        while not self._keeping.done:
            self.look()
            self._wake.wait(0 if self._keeping.done else _EACH_S)
            self._wake.clear()
        self._wake.wait(_ANSWER_S)  # let the answers out
        own: Any = ray.get_runtime_context().current_actor  # its name may be another's by now
        ray.kill(own, no_restart=True)

    def wake(self) -> None:
        """Have the next look taken at once."""
        self._wake.set()

    def look(self) -> None:
        """Look once; end this process if a younger controller has taken over."""
        if not self._turn.lock.acquire(blocking=False):
            return  # a caller's wish is being done
        try:
            gives_way = partial(self._requests.give_way, self._upgrades.check)
            grace_s = self._requests.grace_s
            self._keeping.look(self._upgrades.check, gives_way, grace_s=grace_s)
            self._tidy()
            self.problem = ""
        except DeposedError:
            logger.warning("a younger controller has taken over: %s ends", self._wishes.name)
            os._exit(0)
        except Exception as error:  # noqa: BLE001 - whatever it was, the next look begins anew
            if str(error) != self.problem:
                told = ("%s: not as it is wanted: %s", self._wishes.name, error)
                self._keeping.figures.log(logger, logging.WARNING, *told)
            self.problem = str(error)
        finally:
            self._keeping.doing.say("")
            self._turn.lock.release()

    def _tidy(self) -> None:
        """End recipes of nothing, forget old marks; while this controller surely decides."""
        wanted = self._wishes.wanted
        if wanted is not None and not self._keeping.done and now() >= self._tidy_at:
            self._tidy_at = now() + _TIDY_EACH_S
            self._upgrades.end_unnamed(wanted)
            self._requests.forget_given_up(wanted)
