"""Which uids change their pod to even out loads: pure functions, without I/O.

A pod is relieved once its load is above the mean by more than the tolerance, and then down to half
of that: so what was evened out just now is left alone. Each step makes the heavier of two pods
lighter than it was, and the other not as heavy as that, so there is an end.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Collection, Mapping
from heapq import heapify, heappop, heappush
from math import fsum

from ray_route.model import UidMove
from ray_route.protocol.commands import Weighed

Weights = Mapping[int, Mapping[str, float]]
"""The weights of the uids of each pod."""

# Of the load, at the most so much goes by call time, the rest by the number of uids.
_MOST_BY_TIME = 0.5
_EPSILON = 1e-9


def weights(weighed: Mapping[int, Weighed]) -> dict[int, dict[str, float]]:
    """Return what each uid weighs, in units of one uid.

    That is what its pod's code reports. All others together weigh as many as they are, of which
    calls make up a part: the share of their time that pods spend in calls, half at the most.
    """
    plain = sum(len(it.epochs) - len(it.loads) for it in weighed.values())
    in_calls = sum(it.shares.get(u, 0.0) for it in weighed.values() for u in _plain(it))
    by_time = min(_MOST_BY_TIME, in_calls / len(weighed)) if weighed else 0.0
    per_share = by_time * plain / in_calls if in_calls else 0.0
    return {
        pod: {u: 1 - by_time + per_share * it.shares.get(u, 0.0) for u in _plain(it)} | it.loads
        for pod, it in weighed.items()
    }


def _plain(weighed: Weighed) -> Collection[str]:
    return weighed.epochs.keys() - weighed.loads.keys()


def plan(
    pods: Weights, busy: Collection[str], fixed: Collection[str], tolerance: float
) -> list[UidMove]:
    """Return which uids are to move: each once, those without a call first.

    `busy` ones move only where nothing else helps, `fixed` ones never. After these moves, or
    others that lead to the same, there is nothing to do.
    """
    if len(pods) < 2:
        return []
    return _Plan(pods, frozenset(busy), frozenset(fixed), tolerance).made()


def loads_of(pods: Weights) -> dict[int, float]:
    """Return the load of each pod."""
    return {pod: fsum(uids.values()) for pod, uids in pods.items()}


def loads_after(pods: Weights, moves: Collection[UidMove]) -> dict[int, float]:
    """Return the load of each pod when some uids have moved."""
    loads = loads_of(pods)
    for move in moves:
        loads[move.source] -= move.weight
        loads[move.target] += move.weight
    return loads


_Stock = dict[int, "list[tuple[float, str]]"]


class _Plan:
    """A plan in the making: where everybody is by now."""

    def __init__(
        self, pods: Weights, busy: frozenset[str], fixed: frozenset[str], tolerance: float
    ) -> None:
        self._loads = loads_of(pods)
        mean = sum(self._loads.values()) / len(pods)
        self._mean, self._least = mean, _EPSILON * mean
        self._high, self._low = mean * (1 + tolerance), mean * (1 + tolerance / 2)
        self._idle, self._busy = _stock(pods, busy | fixed), _stock(pods, fixed, only=busy)
        self._by_load = [(load, pod) for pod, load in self._loads.items()]
        heapify(self._by_load)
        self._came_from: dict[str, int] = {}
        self._is_at: dict[str, tuple[int, float, bool]] = {}

    def made(self) -> list[UidMove]:
        """Return the moves that are left of all steps."""
        while any(self._pass(stock) for stock in (self._idle, self._busy)):
            pass
        moves = [
            UidMove(uid, self._came_from[uid], pod, weight, busy)
            for uid, (pod, weight, busy) in self._is_at.items()
            if pod != self._came_from[uid]
        ]
        return sorted(moves, key=lambda move: move.busy)

    def _pass(self, stock: _Stock) -> bool:
        """Relieve each pod that is too full of some of its uids; say whether that did anything."""
        full = [pod for pod, load in self._loads.items() if load > self._high + self._least]
        full.sort(key=lambda pod: -self._loads[pod])
        return any([self._relieve(pod, stock) for pod in full])  # noqa: C419 - every one

    def _relieve(self, source: int, stock: _Stock) -> bool:
        did = False
        while self._loads[source] > self._low:
            target = self._lightest()
            index = self._fitting(stock[source], self._loads[source], self._loads[target])
            if index is None:
                break
            self._step(stock, index, source, target)
            did = True
        return did

    def _fitting(self, uids: list[tuple[float, str]], load: float, least: float) -> int | None:
        """Choose the heaviest uid of which neither pod gets too much, else the lightest."""
        wanted = min(load - self._mean, (load - least) / 2) + self._least
        index = bisect_right(uids, (wanted, _LAST)) - 1
        index = max(index, 0)
        if index < len(uids) and least + uids[index][0] < load - self._least:
            return index
        return None

    def _step(self, stock: _Stock, index: int, source: int, target: int) -> None:
        weight, uid = stock[source].pop(index)
        insort(stock[target], (weight, uid))
        for pod, more in ((source, -weight), (target, weight)):
            self._loads[pod] += more
            heappush(self._by_load, (self._loads[pod], pod))
        self._came_from.setdefault(uid, source)
        self._is_at[uid] = (target, weight, stock is self._busy)

    def _lightest(self) -> int:
        while self._loads[self._by_load[0][1]] != self._by_load[0][0]:
            heappop(self._by_load)
        return self._by_load[0][1]


_LAST = chr(0x10FFFF)


def _stock(pods: Weights, without: frozenset[str], only: frozenset[str] | None = None) -> _Stock:
    """Return the uids of each pod that weigh anything, the lightest first."""
    return {
        pod: sorted(
            (weight, uid)
            for uid, weight in uids.items()
            if weight > 0 and uid not in without and (only is None or uid in only)
        )
        for pod, uids in pods.items()
    }
