"""Evens out the loads of a service's pods: looks, plans, and moves uids at a bounded rate.

Nothing of it is kept but in memory: a run that ends half-way, whatever ends it, has moved whom it
has moved, and the next plans from what is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

from ray_route.client.session import Session
from ray_route.clock import Deadline, now
from ray_route.controller.balance import loads_after, loads_of, plan, weights
from ray_route.controller.figures import Figures
from ray_route.controller.upkeep import Upkeep
from ray_route.errors import RouteError
from ray_route.model import PodRecord, Rebalance, UidMove
from ray_route.protocol.commands import Weighed
from ray_route.runtime.waiting import run

# Uids that move together; between these, others may look.
_SLICE_S = 0.2
_MOST_AT_ONCE = 200
# A uid without a call is given up at once; for one that has some, an end of them is waited for.
_IDLE_S, _BUSY_S = 0.3, 5.0
_ANSWER_S = 90.0
# At its new pod, nothing is known yet of the load of a uid: it weighs what it did, for so long.
_REMEMBERED_S = 300.0
# Nor is it there, until its first call: it counts as if it were, for so long.
_ON_ITS_WAY_S = 3_600.0

Check = Callable[[], None]


class _StoppedError(Exception):
    """A run ends before its time."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What pods there are, and what is to be done about that."""

    lives: frozenset[tuple[int, int]]
    epochs: dict[str, int]
    result: Rebalance


@dataclass(frozen=True, slots=True)
class _Moved:
    """What is known of a uid that has changed its pod: its weight, when, and where it is now."""

    weight: float
    at: float
    target: int


class Rebalancer:
    """Rebalances one service; whoever calls `run` holds the controller's turn.

    `say` is told what is done, in words, and `figures` how many have moved.
    """

    def __init__(
        self, upkeep: Upkeep, service: str, say: Callable[[str], None], figures: Figures
    ) -> None:
        self._upkeep = upkeep
        self._figures = figures
        self._service = service
        self._say = say
        self._moved: dict[str, _Moved] = {}

    def planned(self, tolerance: float, deadline: Deadline) -> Rebalance:
        """Return what a run would do; nothing is changed."""
        with self._upkeep.client(deadline) as (session, _):
            return self._look(session, tolerance, deadline).result

    def run(
        self, tolerance: float, max_moves_per_s: float, deadline: Deadline, check: Check
    ) -> Rebalance:
        """Move uids until loads are even, or the deadline; `check` raises what ends it before.

        Raises `PodUnavailableError` if a pod does not tell what it holds. It stops once one of the
        pods is not there any more, or takes no new uids.
        """
        with self._upkeep.client(deadline) as (session, _):
            found = self._look(session, tolerance, deadline)
            result, made = found.result, 0
            try:
                for some in _slices(found.result.moves, max_moves_per_s):
                    begun = now()
                    check()
                    self._check(session, found, deadline)
                    self._say(f"move uids to even loads out, {made} of {len(result.moves)} by now")
                    result = self._shift(session, found, some, result)
                    made += len(some)
                    time.sleep(max(0.0, begun + len(some) / max_moves_per_s - now()))
            except _StoppedError as stopped:
                left = len(result.moves) - made
                result = replace(result, problem=f"{stopped}; {left} uids were left")
            return result

    def _look(self, session: Session, tolerance: float, deadline: Deadline) -> _Found:
        asked = session.namespace.ask("weigh", self._service)
        weighed: dict[tuple[int, int], Weighed] = run(asked, deadline)
        by_pod = {pod: it for (pod, _), it in weighed.items()}
        pods = {
            pod: self._remembered(uids, by_pod[pod].loads.keys())
            for pod, uids in weights(by_pod).items()
        }
        busy = {uid for it in by_pod.values() for uid in it.busy}
        fixed = {uid for it in by_pod.values() for uid in it.persistent}
        fixed |= self._with_those_on_their_way(pods)
        moves = tuple(plan(pods, busy, fixed, tolerance))
        epochs = {uid: epoch for it in by_pod.values() for uid, epoch in it.epochs.items()}
        result = Rebalance(loads_of(pods), loads_after(pods, moves), moves)
        return _Found(frozenset(weighed), epochs, result)

    def _remembered(self, uids: dict[str, float], told: Collection[str]) -> dict[str, float]:
        """Return weights; of uids that have moved lately no less than before, unless it is told."""
        since = now() - _REMEMBERED_S
        lately = {uid for uid, it in self._moved.items() if it.at > since}
        some = (lately & uids.keys()) - set(told)
        return uids | {uid: max(uids[uid], self._moved[uid].weight) for uid in some}

    def _with_those_on_their_way(self, pods: dict[int, dict[str, float]]) -> set[str]:
        """Have uids that have moved, and had no call since, weigh at their new pods; return them.

        Else what was evened out would look uneven again until they are called.
        """
        since = now() - _ON_ITS_WAY_S
        self._moved = {uid: it for uid, it in self._moved.items() if it.at > since}
        held = {uid for uids in pods.values() for uid in uids}
        awaited = {uid for uid in self._moved.keys() - held if self._moved[uid].target in pods}
        for uid in awaited:
            pods[self._moved[uid].target][uid] = self._moved[uid].weight
        return awaited

    def _check(self, session: Session, found: _Found, deadline: Deadline) -> None:
        """Raise `_StoppedError` unless all pods are as they were, and there is time left."""
        if not deadline.remaining():
            raise _StoppedError(f"the time is over, {deadline.timeout_s:g} s")
        records: list[PodRecord] = run(session.namespace.ask("records", self._service), deadline)
        there = {(it.pod, it.incarnation) for it in records if it.available}
        if gone := sorted(pod for pod, _ in found.lives - there):
            raise _StoppedError(f"pods {gone} have died, or take no new uids any more")

    def _shift(
        self, session: Session, found: _Found, some: list[UidMove], result: Rebalance
    ) -> Rebalance:
        moves = {it.uid: (found.epochs[it.uid], it.target) for it in some}
        patience_s = _BUSY_S if any(it.busy for it in some) else _IDLE_S
        asked = session.namespace.ask("shift", self._service, moves, patience_s)
        try:
            told: dict[str, str] = run(asked, Deadline.after(_ANSWER_S))
        except RouteError as error:
            raise _StoppedError(str(error)) from error
        moved = [it for it in some if not told[it.uid]]
        self._moved |= {it.uid: _Moved(it.weight, now(), it.target) for it in moved}
        self._figures.moved(len(moved))
        kept = {uid: why for uid, why in told.items() if why}
        return replace(result, moved=result.moved + len(moved), kept=result.kept | kept)


def _slices(moves: tuple[UidMove, ...], per_s: float) -> Iterator[list[UidMove]]:
    """Yield moves that are made together: those of a moment, or one."""
    size = max(1, min(_MOST_AT_ONCE, int(per_s * _SLICE_S)))
    for busy in (False, True):
        some = [move for move in moves if move.busy == busy]
        for first in range(0, len(some), size):
            yield some[first : first + size]
