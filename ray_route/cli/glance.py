"""How busy a namespace's pods are at a moment: what `top` and the live page show."""

from __future__ import annotations

import time
from dataclasses import dataclass
from heapq import nlargest

from ray_route.cli.cluster import NamespaceView
from ray_route.model import HotUid, Pod


@dataclass(frozen=True, slots=True)
class Glance:
    """The pods of each service, and of one service the hottest uids.

    `at` is this machine's clock in seconds, `time_us` Redis `TIME`: a life began about when its
    incarnation says, in that time.
    """

    at: float
    time_us: int
    pods: dict[str, list[Pod]]
    hottest: list[HotUid]


def glance(namespace: NamespaceView, service: str | None, uids: int) -> Glance:
    """Look at the pods of one service, or of all; of one, at so many of its hottest uids."""
    pods = pods_of(namespace, service)
    hottest = _hottest(namespace, service, uids)
    return Glance(time.time(), namespace.time_us(), pods, hottest)


def pods_of(namespace: NamespaceView, service: str | None) -> dict[str, list[Pod]]:
    """Return the pods of one service, or of all."""
    names = namespace.services() if service is None else [namespace.service(service)]
    return {name: namespace.pods(name) for name in names}


def _hottest(namespace: NamespaceView, service: str | None, most: int) -> list[HotUid]:
    if service is None or not most:
        return []
    found = namespace.hottest(service, most)
    return nlargest(most, found, key=lambda one: (one.load or 0.0, one.call_share))
