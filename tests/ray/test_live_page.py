"""`ray-route ui` as it is run, against a real namespace."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import ray
from commands import Command
from helpers import end_router, eventually, namespaces_with_routers, unique_name
from pages import get

import ray_route

pytestmark = pytest.mark.slow


@contextmanager
def page(command: Command, namespace: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run the command; give its URL."""
    at = ray.get_runtime_context().gcs_address
    running = command.start("ui", "-n", namespace, "--json", RAY_ADDRESS=at)
    assert running.stdout is not None
    try:
        yield json.loads(running.stdout.readline())["url"], running
    finally:
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=60)
    assert (running.returncode, "Traceback" in errors) == (0, False), errors


def test_the_page_tells_what_top_tells_and_how_uids_move(
    command: Command, client: ray_route.RouteClient, svc: ray_route.Deployment
) -> None:
    uid = unique_name()
    first = client.compute_linked_pod(uid, "svc").pod
    with page(command, client.namespace) as (url, _):
        answer = get(f"{url}state?service=svc")
        assert answer.status == 200, answer.text
        state = answer.document
        at = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        words = ("top", "svc", "--json", "--count", "1", "-n", client.namespace)
        top = json.loads(command.run(*words, **at).out)
        assert set(top) <= set(state)
        assert [list(pod) for pod in state["pods"]["svc"]] == [
            list(pod) for pod in top["pods"]["svc"]
        ]
        life = state["pods"]["svc"][0]["incarnation"]
        assert 0 < state["time_us"] - life < 3_600e6, "a life's age is told by its incarnation"
        assert "svc" in state["services"]
        mine = decisions(state, uid)
        assert [(one["what"], one["source"], one["pod"]) for one in mine] == [
            ("placed", None, first)
        ]

        target = (first + 1) % 3
        client.move(uid, "svc", target)
        cursor = state["decided"]
        again = get(f"{url}state?router={cursor['router']}&count={cursor['count']}").document
        (moved,) = decisions(again, uid)
        assert (moved["source"], moved["pod"]) == (first, target)

        found = get(f"{url}explain?uid={uid}").document
        about = found["services"]["svc"]
        assert about["link"]["pod"] == target
        assert about["pod"]["actor"]
        assert len(about["decisions"]) == 2
        assert get(f"{url}explain?uid={unique_name()}").document["services"] == {}
        assert get(f"{url}state?service=nowhere").status == 404
        assert get(f"{url}explain?uid=").status == 400


def decisions(state: dict[str, Any], uid: str) -> list[dict[str, Any]]:
    return [one for one in state["decided"]["decisions"] if one["uid"] == uid]


def test_a_namespace_without_a_router_is_shown_and_gets_none(
    command: Command, client: ray_route.RouteClient
) -> None:
    name = unique_name()
    agent = ray_route.PodAgent(name, "svc", 0).start()
    with ray_route.connect(name) as other:
        link = other.compute_linked_pod("ann", "svc")
    agent.stop()
    end_router(name)
    eventually(lambda: name not in namespaces_with_routers(), "no router")
    with page(command, name) as (url, _):
        state = get(f"{url}state").document
        assert state["decided"] is None
        assert [pod["life"] for pod in state["pods"]["svc"]] == ["resigned"]
        about = get(f"{url}explain?uid=ann").document
        assert about["services"]["svc"]["link"]["epoch"] == link.epoch
        assert "no router runs" in about["notice"]
    assert name not in namespaces_with_routers()


def test_a_port_that_is_taken_is_one_line(
    command: Command, client: ray_route.RouteClient, svc: ray_route.Deployment
) -> None:
    with page(command, client.namespace) as (url, _):
        port = url.split(":")[2].split("/")[0]
        at = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        done = command.run("ui", "-n", client.namespace, "--port", port, **at)
    assert done.status == 2
    assert f"--port {port} can't be listened on" in done.err
