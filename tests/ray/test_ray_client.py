"""What works for a program that joins by Ray Client, from outside of the cluster."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from helpers import eventually, unique_name

from ray_route.store.embedded import EmbeddedServer, free_port

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


def environment() -> dict[str, str]:
    """Return that of this process, in which Ray has noted how to be believed by the one here."""
    path = os.pathsep.join([str(HERE.parent), str(HERE)])
    return {**os.environ, "PYTHONPATH": path}


@pytest.fixture(scope="module")
def address(ray_session: None) -> Iterator[str]:
    """The address of a server of Ray Client, for the Ray of all tests."""
    port, gcs = free_port(), ray.get_runtime_context().gcs_address
    module = ["-m", "ray.util.client.server", "--mode", "legacy", "--address", gcs]
    server = subprocess.Popen(
        [sys.executable, *module, "--host", "127.0.0.1", "--port", str(port)],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        eventually(lambda: listens(port), "the server of Ray Client", 60)
        yield f"ray://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


def listens(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def test_all_but_streams_and_the_embedded_server(address: str) -> None:
    with EmbeddedServer() as server:
        done = subprocess.run(
            [sys.executable, str(HERE / "by_ray_client.py"), address, unique_name(), server.url],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    no_url, error, stream = said.pop("no url"), said.pop("error"), said.pop("stream")
    nowhere = said.pop("nowhere")
    assert "ConfigError: redis_url" in no_url
    assert "give a redis_url or set RAY_ROUTE_REDIS_URL" in no_url
    assert error.endswith("KeyError: 'my fault'")
    assert "InvalidInputError: method='count' can't be streamed by Ray Client" in stream
    assert nowhere.startswith("RouteTimeoutError")
    assert "no node has GPU 3" in nowhere
    assert said == {
        "call": ["hi"],
        "handle": ["hi", "ho"],
        "order": list(range(20)),
        "map": {"ann": 3, "bob": 3},
        "many": [3, 3],
        "pass on": [[3], {}],
        "ref": 3,
        "large": 1_000_000,
        "done": True,
        "cancel": None,
        "untaken": True,
        "actor": 3,
        "batch": 0,
        "move": 1,
        "after": 3,
        "awaited": [[1], 3],
        "explain": "ann",
        "remove": True,
        "sweep": 0,
        "scale": 3,
        "known": True,
        "large batch": 5_000,
        "pods": [0, 1, 2],
        "status": 3,
        "cordon": [2],
        "uncordon": [],
        "rebalance": "",
        "attach": 3,
        "agent": [0, "away"],
        "upgrade": None,
        "upgraded": "!",
        "drain": None,
    }
