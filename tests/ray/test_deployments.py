"""What `deploy` has made outlives its driver, and is anyone's to hold."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from deploying import drive
from helpers import eventually, unique_name

import ray_route


def served(client: Any, service: str, method: str, *args: Any) -> Callable[[], Any]:
    """Return a condition: a call for uid "u" is served; its result."""

    def attempt() -> Any:
        try:
            return client.call("u", service, method, *args, idempotent=True, timeout=5)
        except ray_route.RouteError:
            return None

    return attempt


@pytest.fixture
def left(client: Any) -> str:
    """A service of two pods with 300 KB of arguments, whose driver has left."""
    code = """
ray_route.deploy(services.Keeper, args=(b"x" * 300_000,), namespace=namespace, service=service,
                 replicas=2)
print("1")
"""
    service = unique_name()
    drive(code, client.namespace, service=service)
    return service


def test_a_pod_starts_again_with_its_arguments_when_its_driver_has_left(
    client: Any, left: str
) -> None:
    assert client.call("u", left, "size") == 300_000
    link = client.compute_linked_pod("u", left)
    os.kill(client.call("u", left, "pid"), signal.SIGKILL)
    eventually(
        lambda: client.pods(left)[link.pod].incarnation > link.incarnation, "it starts again", 30
    )
    client.move("u", left, link.pod)
    assert served(client, left, "size")() == 300_000
