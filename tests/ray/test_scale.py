"""Many of everything: what comes must go, and nothing grows with what was.

Short forms; `make long` runs the long ones.
"""

from __future__ import annotations

import gc
import threading
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from helpers import end_router, eventually, unique_name

import ray_route
from ray_route.client.session import Session
from ray_route.client.sessions import begun
from ray_route.clock import Deadline, now
from ray_route.runtime.namespace import Namespace

pytestmark = [pytest.mark.slow, pytest.mark.own_namespace]


def memory_mb() -> float:
    (line,) = [
        line for line in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in line
    ]
    return int(line.split()[1]) / 1000


def taken() -> tuple[int, int]:
    """Return how many files are open and how many threads run."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()


def given_back(before: tuple[int, int], spare: int = 5) -> bool:
    """True if no more is taken than before, but for what Ray itself keeps."""
    return all(now <= then + spare for now, then in zip(taken(), before, strict=True))


@pytest.fixture(scope="module")
def home(client: ray_route.RouteClient, svc: ray_route.Deployment) -> str:
    """A namespace with pods."""
    return client.namespace


def many(short: int, long: int) -> pytest.MarkDecorator:
    slow = [pytest.mark.long, pytest.mark.timeout(3600)]
    return pytest.mark.parametrize("count", [short, pytest.param(long, marks=slow)])


def session(name: str, client: Any) -> Session:
    """Open a session as another process has one: nothing of it is shared with this one's."""
    url = client._session.namespace.url
    return begun(Namespace(name, url, {}, Deadline.after(60)))


@many(50, 10_000)
def test_connects_and_closes_leave_nothing_behind(home: str, client: Any, count: int) -> None:
    def once() -> None:
        with closing(session(home, client)) as opened:
            assert opened.namespace.welcome.tables.keys() == {"svc"}

    for _ in range(5):
        once()
    before, mb = taken(), memory_mb()
    for _ in range(count):
        once()
    grown_kb = (memory_mb() - mb) * 1000 / count
    print(f"{count} connects: {before} files and threads before, {taken()} after,", end=" ")
    print(f"{grown_kb:.1f} KB each")
    eventually(lambda: given_back(before), f"files and threads as before: {before}")
    assert count < 1000 or grown_kb < 10


@many(60, 300)
def test_many_sessions_hear_of_a_move_and_end(home: str, client: Any, count: int) -> None:
    uid = unique_name()
    before = taken()
    link = client.compute_linked_pod(uid, "svc")
    with ExitStack() as stack:
        opened = [stack.enter_context(closing(session(home, client))) for _ in range(count)]
        assert taken()[1] >= count  # each has a thread that reads the change stream

        def knows(one: Any) -> bool:
            one.keep("svc", {uid: link}, now())
            return bool(one.near.get("svc", uid) == link)

        # Not at once on a busy machine, where the first may not have heard a beat for a while.
        eventually(lambda: all(map(knows, opened)), "each keeps the link", 60)
        client.move(uid, "svc", (link.pod + 1) % 3)
        eventually(
            lambda: all(one.near.get("svc", uid) is None for one in opened),
            "all have heard of the move",
            60,
        )
    eventually(lambda: given_back(before), f"files and threads as before: {before}")


@many(4, 50)
def test_many_namespaces_side_by_side(client: Any, count: int) -> None:
    names = [f"{unique_name()}-{number}" for number in range(count)]
    before = taken()
    with ExitStack() as stack:
        clients = []
        for name in names:
            stack.callback(end_router, name)
            clients.append(stack.enter_context(ray_route.connect(name, timeout=120)))
        for name, one in zip(names, clients, strict=True):
            assert one.namespace == name
            assert one.get_linked_pod("nobody", "svc") is None
    eventually(lambda: given_back(before), f"files and threads as before: {before}")
