"""The stop button of a notebook, in a real kernel: it leaves all sound."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from helpers import end_router, eventually, unique_name
from kernels import Kernel, kernel
from ray.util import list_named_actors

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]

SET_UP = """
import os, time
import ray, ray_route
ray.init({gcs!r}, log_to_driver=False)
namespace = {namespace!r}

class Room:
    def __init__(self, uid):
        self.said = []
    def say(self, text):
        self.said.append(text)
        return list(self.said)
    def wait(self, file):
        while not os.path.exists(file):
            time.sleep(0.02)

class Slow:
    def __init__(self, file):
        Room.wait(self, file)
    def here(self):
        return "here"

client = ray_route.connect(namespace)
where = dict(namespace=namespace, replicas=2, timeout=90)
deployment = ray_route.deploy(Room, service="rooms", per_uid=True, **where)
rooms = client.service("rooms", Room).options(timeout_s=60)
"""


@pytest.fixture(scope="module")
def namespace() -> str:
    return unique_name()


@pytest.fixture(scope="module")
def notebook(ray_session: None, namespace: str) -> Iterator[Kernel]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    gcs = ray.get_runtime_context().gcs_address
    with kernel(environment) as notebook:
        notebook.run(SET_UP.format(gcs=gcs, namespace=namespace))
        yield notebook
        notebook.run("deployment.shutdown(); client.close(); ray.shutdown()")
    end_router(namespace)


def test_values_are_shown_as_tables(notebook: Kernel) -> None:
    for cell in (
        "client",
        "deployment",
        "deployment.status()",
        "client.pods('rooms')",
        "deployment.pods()",
        "client.compute_linked_pod('ann', 'rooms')",
        "client.explain('ann', 'rooms')",
    ):
        shown = notebook.run(cell)
        assert "text/html" in shown, cell
        assert "<table>" in shown


def test_a_loop_of_calls(notebook: Kernel) -> None:
    loop = """
n = 0
while True:
    said = rooms["ann"].say.remote(n).result()
    n += 1
    print("call", n, "over", flush=True)
"""
    for at in ("call 1 over", "call 20 over", "call 50 over"):
        notebook.stopped(loop, at)
        check = """
sent = [rooms["ann"].say.remote(("after", k)) for k in range(20)]
said = sent[-1].result()
assert said[-20:] == [("after", k) for k in range(20)], said[-25:]
print("sound")
"""
        assert "sound" in notebook.run(check)


def test_a_loop_of_look_ups_and_of_many_calls(notebook: Kernel) -> None:
    loop = """
k = 0
while True:
    k += 1
    client.compute_linked_pod(f"user-{k}", "rooms")
    rooms.map("say", {f"user-{k}": ("hi",), "bob": (k,)})
    print("round", k, "over", flush=True)
"""
    notebook.stopped(loop, "round 5 over")
    check = """
outcomes = rooms.map("say", {f"user-{j}": ("ho",) for j in range(1, k)})
assert all(said == ["hi", "ho"] for said in outcomes.values()), outcomes
print("sound")
"""
    assert "sound" in notebook.run(check)


def test_a_deploy(notebook: Kernel, namespace: str, tmp_path: Path) -> None:
    cell = f"""
print("begun", flush=True)
ray_route.deploy(Slow, service="slow", args=({str(tmp_path / "go")!r},), **where)
"""
    notebook.stopped(cell, "begun")  # as it can't end by itself, so far
    eventually(lambda: not actors_of(namespace, "slow"), "what it made has ended", 60)
    (tmp_path / "go").touch()
    again = f"""
slow = ray_route.deploy(Slow, service="slow", args=({str(tmp_path / "go")!r},), **where)
print(client.call("ann", "slow", "here"))
slow.shutdown()
"""
    assert "here" in notebook.run(again)


def actors_of(namespace: str, service: str) -> list[str]:
    names = [actor["name"] for actor in list_named_actors(all_namespaces=True)]
    return [name for name in names if name.startswith(f"ray_route:{namespace}:{service}:")]


def test_a_drain(notebook: Kernel, tmp_path: Path) -> None:
    cell = f"""
rooms["carl"].say.remote("hi").result()
pod = client.compute_linked_pod("carl", "rooms").pod
held = rooms["carl"].wait.remote({str(tmp_path / "go")!r})
for progress in deployment.drain(pod, deadline_s=90):
    print("left", progress.left, flush=True)
"""
    notebook.stopped(cell, "left 1")  # which can't end while that call runs
    (tmp_path / "go").touch()
    check = """
held.result()
last = list(deployment.drain(pod))[-1]
assert last.done and last.problem is None, last
assert client.compute_linked_pod("carl", "rooms").pod != pod
print(rooms["carl"].say.remote("ho").result())
"""
    assert "['hi', 'ho']" in notebook.run(check)
