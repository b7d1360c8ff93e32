"""Where a uid without a link goes: strategies are functions of what the router knows.

A strategy gets the available pods (never empty), the load of each (reported load plus what the
router has placed there since that report), the uid, and the caller's Ray node id. It returns
the index of one of those pods.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from itertools import count

from ray_route.errors import ConfigError
from ray_route.model import PodRecord

Strategy = Callable[[Sequence[PodRecord], Mapping[int, float], str, "str | None"], int]


def least_loaded(load_tolerance: float = 0.0) -> Strategy:
    """Take turns among the pods whose load is within `load_tolerance` of the least.

    The turn starts at random, so that routers of many namespaces don't agree on a favourite.
    """
    turn = count(random.randrange(1 << 16))  # noqa: S311 - no secret

    def place(
        pods: Sequence[PodRecord], load: Mapping[int, float], uid: str, node: str | None
    ) -> int:
        loads = [load[pod.pod] for pod in pods]
        limit = min(loads) + load_tolerance
        light = [index for index, its in enumerate(loads) if its <= limit]
        return pods[light[next(turn) % len(light)]].pod

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
    within = least_loaded(load_tolerance)

    def place(
        pods: Sequence[PodRecord], load: Mapping[int, float], uid: str, node: str | None
    ) -> int:
        near = [pod for pod in pods if pod.node == node]
        return within(near or pods, load, uid, node)

    return place


def strategy_named(name: str, load_tolerance: float) -> Strategy:
    """Make one of the built-in strategies, or raise `ConfigError`."""
    if name == "least_loaded":
        return least_loaded(load_tolerance)
    if name == "round_robin":
        return round_robin()
    if name == "prefer_node":
        return prefer_node(load_tolerance)
    raise ConfigError(
        option="placement",
        reason=f"{name!r} is unknown; take least_loaded, round_robin, prefer_node or a callable",
    )
