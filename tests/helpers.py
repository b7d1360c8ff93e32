"""What tests of several folders do alike."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import ray
from ray.util import list_named_actors

from ray_route.protocol.names import RAY_NAMESPACE

POLL_S = 0.02
# Far longer than anything takes: only what fails waits for so long, and a busy machine is none.
WITHIN_S = 60.0


def eventually(condition: Callable[[], Any], what: str, within_s: float = WITHIN_S) -> Any:
    """Poll until `condition` is true; return what it returned, or fail with `what`.

    At most half of the time: to look must not take the machine from what is waited for.
    """
    end = time.monotonic() + within_s
    while True:
        value, pause_s = _look(condition, what, within_s, end)
        if value:
            return value
        time.sleep(pause_s)


async def soon(condition: Callable[[], Any], what: str, within_s: float = WITHIN_S) -> Any:
    """Poll as `eventually` does, and let other tasks of the loop run meanwhile."""
    end = time.monotonic() + within_s
    while True:
        value, pause_s = _look(condition, what, within_s, end)
        if value:
            return value
        await asyncio.sleep(pause_s)


def _look(
    condition: Callable[[], Any], what: str, within_s: float, end: float
) -> tuple[Any, float]:
    """Return what a condition says, and the seconds until it may be asked again."""
    asked_at = time.monotonic()
    value = condition()
    now = time.monotonic()
    if not value and now >= end:
        pytest.fail(f"not within {within_s} s: {what}")
    return value, max(POLL_S, now - asked_at)


def router_handle(namespace: str) -> Any:
    return ray.get_actor(f"ray_route:{namespace}:router", namespace=RAY_NAMESPACE)


def end_router(namespace: str) -> None:
    ray.kill(router_handle(namespace), no_restart=True)


def namespaces_with_routers() -> set[str]:
    named = list_named_actors(all_namespaces=True)
    ours = [actor["name"].split(":") for actor in named if actor["namespace"] == RAY_NAMESPACE]
    return {parts[1] for parts in ours if parts[-1] == "router"}


@contextmanager
def own_namespace() -> Iterator[str]:
    """Give a namespace; its router ends after all that would make another one."""
    name = unique_name()
    yield name
    end_router(name)


def unique_name() -> str:
    return f"t{uuid.uuid4().hex[:12]}"


class ManualClock:
    """Time that moves only when a test says so."""

    def __init__(self) -> None:
        self.time = 1_000.0

    def __call__(self) -> float:
        return self.time

    def tick(self, seconds: float) -> None:
        self.time += seconds
