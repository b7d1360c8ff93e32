"""Where a uid without a link goes: strategies are functions of what the router knows.

A strategy gets the available pods (never empty), the load of each (reported load plus what the
router has placed there since that report), the uid, and the caller's Ray node id. It returns
the index of one of those pods.

The built-in strategies take about the same time for a uid whether there are four pods or a
thousand; `together` adds the loads up, which takes 5 µs with a thousand. One of your own does
too if it looks at few of the pods: the router's loads are `Loads`, whose `lightest` gives the least
loaded pod without a look at the others, and whose `service` says whose pods these are.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import count

from ray_route.errors import ConfigError
from ray_route.model import PodRecord

Strategy = Callable[[Sequence[PodRecord], Mapping[int, float], str, "str | None"], int]


class Loads(dict[int, float]):
    """The load of each available pod, by index, and the pods in order of load.

    The router's own: a strategy reads it. To write one load takes 1.2 µs with a thousand pods.

    Args:
        loads: load by index.
        nodes: the Ray node id of each of these pods, for `lightest` of one node.
        service: whose pods these are.

    """

    # Lists that are kept sorted: what is moved in one of a thousand is 8 KB of memory, which takes
    # 0.1 µs; trees and heaps in Python take longer, and do not count those within a tolerance.

    def __init__(
        self,
        loads: Mapping[int, float],
        nodes: Mapping[int, str] | None = None,
        service: str = "",
    ) -> None:
        super().__init__(loads)
        self.service = service
        self.stale: set[int] = set()
        """Pods whose load was written, or has changed at its source, since that was last copied."""
        self._nodes = nodes or {}
        self._orders: dict[str | None, list[tuple[float, int]]] = {None: self._ordered(None)}

    def lightest(
        self, turn: int = 0, tolerance: float = 0.0, node: str | None = None
    ) -> int | None:
        """Return the pod whose `turn` it is among those within `tolerance` of the least loaded.

        Of one node's pods, if `node` is given: None if it has none.
        """
        order = self._orders.get(node)
        if order is None:
            order = self._orders[node] = self._ordered(node)
        if not order:
            return None
        light = bisect_right(order, (order[0][0] + tolerance, math.inf))
        return order[turn % light][1]

    def _ordered(self, node: str | None) -> list[tuple[float, int]]:
        nodes = self._nodes
        there = (pod for pod in self if node is None or nodes.get(pod) == node)
        return sorted((self[pod], pod) for pod in there)

    def __setitem__(self, pod: int, load: float) -> None:
        """Write the load of one of the pods."""
        held, moved = (self[pod], pod), (load, pod)
        super().__setitem__(pod, load)
        self.stale.add(pod)
        # Without an order of any node there is that of all alone, and a write takes a third less.
        for node in (None, self._nodes.get(pod)) if len(self._orders) > 1 else self._orders:
            order = self._orders.get(node)
            if order is not None:
                del order[bisect_left(order, held)]
                insort(order, moved)


def _over(pods: Sequence[PodRecord], load: Mapping[int, float]) -> Loads:
    """Return the loads of exactly these pods: the router's own if they are all."""
    if isinstance(load, Loads) and len(load) == len(pods):
        return load
    return Loads({pod.pod: load[pod.pod] for pod in pods}, {pod.pod: pod.node for pod in pods})


def least_loaded(load_tolerance: float = 0.0) -> Strategy:
    """Take turns among the pods whose load is within `load_tolerance` of the least.

    The turn starts at random, so that routers of many namespaces don't agree on a favourite.
    """
    turn = count(random.randrange(1 << 16))  # noqa: S311 - no secret

    def place(
        pods: Sequence[PodRecord], load: Mapping[int, float], uid: str, node: str | None
    ) -> int:
        chosen = _over(pods, load).lightest(next(turn), load_tolerance)
        assert chosen is not None, "there is no pod"
        return chosen

    return place


def round_robin() -> Strategy:
    """Take turns among all available pods, whatever their load."""
    turn = count(random.randrange(1 << 16))  # noqa: S311 - no secret

    def place(
        pods: Sequence[PodRecord], load: Mapping[int, float], uid: str, node: str | None
    ) -> int:
        return pods[next(turn) % len(pods)].pod

    return place


def prefer_node(load_tolerance: float = 0.0) -> Strategy:
    """Place on the least loaded pod of the caller's node; on any if that node has none."""
    turn = count(random.randrange(1 << 16))  # noqa: S311 - no secret
    anywhere = least_loaded(load_tolerance)

    def place(
        pods: Sequence[PodRecord], load: Mapping[int, float], uid: str, node: str | None
    ) -> int:
        loads = _over(pods, load)
        near = loads.lightest(next(turn), load_tolerance, node) if node is not None else None
        return anywhere(pods, loads, uid, node) if near is None else near

    return place


GroupOf = Callable[[str], "str | None"]


def before_slash(uid: str) -> str | None:
    """Return the group of a uid like `group/rest`; None for one without a slash."""
    group, slash, _ = uid.partition("/")
    return group if slash else None


class _GroupPods:
    """Which pod each group's uids go to; of the groups, those that were asked for last."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pods: OrderedDict[tuple[str, str], int] = OrderedDict()

    def get(self, service: str, group: str) -> int | None:
        pod = self._pods.get((service, group))
        if pod is not None:
            self._pods.move_to_end((service, group))
        return pod

    def put(self, service: str, group: str, pod: int) -> None:
        self._pods[service, group] = pod
        if len(self._pods) > self._limit:
            self._pods.popitem(last=False)


def together(
    group_of: GroupOf = before_slash,
    *,
    over: float = 0.25,
    lead: float = 8.0,
    load_tolerance: float = 0.0,
    groups: int = 100_000,
) -> Strategy:
    """Place the uids of a group on one pod, as long as it has room: they share what it has cached.

    A group begins at the least loaded pod, as do uids of no group. Its pod has room while its load
    is at most `(1 + over)` times the mean of all available pods, plus `lead`. Then, and when its
    pod is gone, the group goes on at the least loaded one, together again; who was placed stays.

    The router remembers where groups are in memory: one that is made anew begins each group anew.

    Args:
        group_of: returns the group of a uid, or None; it must be picklable and quick.
        over: by which share of the mean load a pod may be above it.
        lead: by how much load more, so that groups stay whole while pods are almost empty.
        load_tolerance: as of `least_loaded`.
        groups: how many groups are remembered; the one that was not asked for longest goes first.

    Raises `ConfigError` for numbers that are negative or not finite.

    """
    for option, value in (("over", over), ("lead", lead)):
        if not 0 <= value < math.inf:
            raise ConfigError(option=option, reason=f"must be finite and not negative: {value!r}")
    if groups < 1:
        raise ConfigError(option="groups", reason=f"must be at least 1, not {groups!r}")
    homes, anywhere = _GroupPods(groups), least_loaded(load_tolerance)

    def place(
        pods: Sequence[PodRecord], load: Mapping[int, float], uid: str, node: str | None
    ) -> int:
        group = group_of(uid)
        if group is None:
            return anywhere(pods, load, uid, node)
        service = getattr(load, "service", "")
        home = homes.get(service, group)
        if home is None or home not in load or load[home] > (1 + over) * _mean(load) + lead:
            home = anywhere(pods, load, uid, node)
            homes.put(service, group, home)
        return home

    return place


def _mean(load: Mapping[int, float]) -> float:
    """Return the mean load; pods that are shown as full (infinite) count neither way."""
    total, number = sum(load.values()), len(load)
    if total == math.inf:
        known = [each for each in load.values() if each < math.inf]
        total, number = sum(known), len(known)
    return total / number if number else 0.0


def strategy_named(name: str, load_tolerance: float) -> Strategy:
    """Make one of the built-in strategies, or raise `ConfigError`."""
    if name == "least_loaded":
        return least_loaded(load_tolerance)
    if name == "round_robin":
        return round_robin()
    if name == "prefer_node":
        return prefer_node(load_tolerance)
    if name == "together":
        return together(load_tolerance=load_tolerance)
    raise ConfigError(
        option="placement",
        reason=f"{name!r} is unknown; take least_loaded, round_robin, prefer_node, together or a "
        "callable",
    )
