"""Connecting keeps its deadline, holds up nobody else, and may be interrupted anywhere."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from helpers import eventually, unique_name
from ray.util import list_named_actors
from services import Counter

import ray_route
from ray_route.client import sessions

SLOW_S = 8.0
FAILED = (ray_route.RouteTimeoutError, ray_route.StoreUnavailableError)


@pytest.fixture
def mute() -> Iterator[tuple[str, list[socket.socket]]]:
    """A server that takes connections and never answers: its URL, and who has come."""
    came: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def take() -> None:
            while True:
                try:
                    came.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=take, daemon=True).start()
        yield f"redis://127.0.0.1:{server.getsockname()[1]}/0", came
    for each in came:
        each.close()


def nobody_has(namespace: str) -> bool:
    return namespace not in {name for _, name, *_ in sessions._shared}


def test_one_threads_slow_connect_holds_up_no_other(
    client: Any, mute: tuple[str, list[socket.socket]]
) -> None:
    url, came = mute
    namespace = unique_name()

    def connect(timeout_s: float) -> float:
        begun = time.monotonic()
        with pytest.raises(FAILED):
            ray_route.connect(namespace, url, timeout=timeout_s)
        return time.monotonic() - begun

    slow = threading.Thread(target=connect, args=(SLOW_S,))
    slow.start()
    eventually(lambda: came, "the slow one waits for its store")
    assert connect(0.3) < SLOW_S / 2, "not even one that wants the same"
    ray_route.connect(client.namespace).close()
    assert slow.is_alive()
    slow.join()
    eventually(lambda: nobody_has(namespace), "what was given up is not kept", 30)


def test_an_interrupt_ends_a_connect_at_once_and_spoils_nothing(
    client: Any, mute: tuple[str, list[socket.socket]]
) -> None:
    url, came = mute
    namespace, begun = unique_name(), time.monotonic()

    def interrupt() -> None:
        eventually(lambda: came, "it waits for its store")
        os.kill(os.getpid(), signal.SIGINT)

    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    with pytest.raises(KeyboardInterrupt):
        ray_route.connect(namespace, url, timeout=60)
    interrupting.join()
    assert time.monotonic() - begun < 30
    ray_route.connect(client.namespace).close()


@pytest.fixture
def head() -> int:
    """The process id of the head (GCS) of the tests' Ray."""
    (found,) = [int(each.name) for each in Path("/proc").glob("[0-9]*") if is_head(each)]
    return found


def is_head(process: Path) -> bool:
    try:
        ours = f"PPid:\t{os.getpid()}\n" in (process / "status").read_text()
        return ours and b"gcs_server" in (process / "cmdline").read_bytes()
    except OSError:  # it has just ended
        return False


def test_a_head_that_hangs_holds_nobody_beyond_their_timeout(client: Any, head: int) -> None:
    namespace, service = unique_name(), unique_name()
    where = {"namespace": client.namespace, "redis_url": client._session.namespace.url}
    os.kill(head, signal.SIGSTOP)
    try:
        with pytest.raises(ray_route.RouteTimeoutError):
            ray_route.connect(namespace, timeout=1)
        with pytest.raises(ray_route.RouteTimeoutError, match="Ray to make pods"):
            ray_route.deploy(Counter, service=service, replicas=1, timeout=1, **where)
    finally:
        os.kill(head, signal.SIGCONT)
    eventually(lambda: nobody_has(namespace), "what was given up is not kept", 60)
    eventually(lambda: not pods_of(service), "nor are pods of which nobody knows", 60)


def pods_of(service: str) -> list[str]:
    named = [actor["name"] for actor in list_named_actors(all_namespaces=True)]
    return [name for name in named if f":{service}:" in name]


class Interrupt:
    """Raises `KeyboardInterrupt` at the n-th line of ours that this thread comes to."""

    OURS = ("sessions.py", "connect.py", "base.py", "sync_client.py", "waiting.py", "joining.py")

    def __init__(self, line: int) -> None:
        self.left = line

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        path = Path(frame.f_code.co_filename)
        if path.name not in self.OURS or "ray_route" not in path.parts:
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self


def use(namespace: str, uid: str) -> None:
    with ray_route.connect(namespace) as connected:
        assert connected.compute_linked_pod(uid, "svc").pod in (0, 1, 2)


def test_an_interrupt_at_any_line_spoils_nothing(client: Any, u: str) -> None:
    use(client.namespace, u)
    line = 0
    while True:
        line += 1
        sys.settrace(Interrupt(line))
        try:
            use(client.namespace, u)
            break
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        assert sessions._lock.acquire(timeout=5), line
        sessions._lock.release()
        use(client.namespace, u)
    assert line > 40, "it was interrupted all along the way"
    assert client.call(u, "svc", "add", u) == 1
