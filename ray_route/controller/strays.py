"""Ends pods that nobody wants: those that were made too late, by who was thought to have ended."""

from __future__ import annotations

from ray_route.client.base import DRAIN_S
from ray_route.controller.doing import Steps, StoppedError
from ray_route.controller.upkeep import Upkeep
from ray_route.runtime.waiting import Check
from ray_route.store.wanted import Wanted


class Strays:
    """The strays of one service; who calls holds its controller's turn.

    Only what a controller makes bears such a name, and all that it wants it knows. But what has
    just been ended may be seen once more: only what is there at two looks in a row is a stray.
    """

    def __init__(self, upkeep: Upkeep) -> None:
        self._upkeep = upkeep
        self._seen: frozenset[int] = frozenset()

    def steps(self, wanted: Wanted, check: Check) -> Steps:
        """Drain and end strays; `check` raises `StoppedError` once something else is to be done.

        An autoscaled service has use for those that are of its generation.
        """
        found = self._upkeep.named().keys() - set(wanted.indexes)
        if wanted.autoscale is not None:
            found = {index for index in found if index < wanted.first}
        again, self._seen = sorted(found & self._seen), frozenset(found)
        for index in again:
            try:
                yield from self._upkeep.end(index, DRAIN_S, check)
            except StoppedError:
                yield from self._upkeep.stop_drains([index])
                return
