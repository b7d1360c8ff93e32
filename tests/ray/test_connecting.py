"""Connecting keeps its deadline, holds up nobody else, and may be interrupted anywhere."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import ray
from commands import Command
from helpers import end_router, eventually, unique_name
from ray.util import list_named_actors
from services import Counter

import ray_route
import ray_route.deployment as deployment_module
from ray_route.cli import cluster
from ray_route.cli.app import main
from ray_route.client import sessions
from ray_route.pod import starting, stopping

pytestmark = pytest.mark.slow

SLOW_S = 8.0
SIDE_BY_SIDE = 4
FAILED = (ray_route.RouteTimeoutError, ray_route.StoreUnavailableError)


@contextlib.contextmanager
def listening(says: bytes = b"") -> Iterator[tuple[int, list[socket.socket]]]:
    """Provide a server that says so much at most: its port, and who has come."""
    came: list[socket.socket] = []
    with socket.create_server(("", 0)) as server:  # Ray takes another name for this host

        def take() -> None:
            while True:
                try:
                    came.append(server.accept()[0])
                    came[-1].sendall(says)
                except OSError:
                    return

        threading.Thread(target=take, daemon=True).start()
        yield server.getsockname()[1], came
    for each in came:
        each.close()


@pytest.fixture
def mute() -> Iterator[tuple[str, list[socket.socket]]]:
    """A server that takes connections and never answers: its URL, and who has come."""
    with listening() as (port, came):
        yield f"redis://127.0.0.1:{port}/0", came


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
    eventually(lambda: nobody_has(namespace), "what was given up is not kept")


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
    assert time.monotonic() - begun < 50
    ray_route.connect(client.namespace).close()


def test_an_interrupt_ends_a_command_at_once_though_its_store_is_mute(
    client: Any, command: Command, mute: tuple[str, list[socket.socket]]
) -> None:
    url, came = mute
    at = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "RAY_ROUTE_REDIS_URL": url}
    words = ("bench", "--pods", "1", "--duration", "1")
    process = command.start(*words, **at)
    eventually(lambda: came, "it waits for its store", 60)
    process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    _, err = process.communicate(timeout=60)
    took = time.monotonic() - begun
    print(f"it took {took:.1f} s")
    assert process.returncode == 130, err
    assert "Interrupted." in err
    assert took < 30


@pytest.mark.parametrize("words", [("pods",), ("bench", "--pods", "1", "--duration", "1")])
def test_an_interrupt_ends_a_command_at_once_though_the_ray_that_it_joins_is_mute(
    command: Command, words: tuple[str, ...]
) -> None:
    settings = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # all that it says is that it speaks gRPC
    with listening(settings) as (port, came):
        process = command.start(*words, RAY_ADDRESS=f"127.0.0.1:{port}")
        eventually(lambda: len(came) > 1, "it was asked, and is joined now", 60)
        process.send_signal(signal.SIGINT)
        begun = time.monotonic()
        _, err = process.communicate(timeout=60)
        took = time.monotonic() - begun
    print(f"it took {took:.1f} s")
    assert process.returncode == 130, err
    assert "Interrupted." in err
    assert took < 30  # 1 s or less, and 60 s if it waits


@pytest.fixture
def head() -> int:
    """The process id of the head (GCS) of the tests' Ray."""
    (found,) = filter(is_head_of_ours, Path("/proc").glob("[0-9]*"))
    return int(found.name)


def is_head_of_ours(process: Path) -> bool:
    with contextlib.suppress(OSError):  # it has just ended
        is_ours = f"PPid:\t{os.getpid()}\n" in (process / "status").read_text()
        return is_ours and b"gcs_server" in (process / "cmdline").read_bytes()
    return False


def test_a_head_that_hangs_holds_nobody_beyond_their_timeout(client: Any, head: int) -> None:
    namespace, service = unique_name(), unique_name()
    where = {"namespace": client.namespace, "redis_url": client._session.namespace.url}
    os.kill(head, signal.SIGSTOP)
    try:
        with pytest.raises(ray_route.RouteTimeoutError):
            ray_route.connect(namespace, timeout=1)
        with pytest.raises(ray_route.RouteTimeoutError, match="Ray to find the controller"):
            ray_route.deploy(Counter, service=service, replicas=1, timeout=1, **where)
    finally:
        os.kill(head, signal.SIGCONT)
    eventually(lambda: nobody_has(namespace), "what was given up is not kept", 60)
    eventually(lambda: not pods_of(service), "nor are pods of which nobody knows", 60)


def pods_of(service: str) -> list[str]:
    named = [actor["name"] for actor in list_named_actors(all_namespaces=True)]
    return [name for name in named if f":{service}:" in name]


def test_a_head_that_hangs_holds_no_command_and_no_shutdown_beyond_its_time(
    client: Any, deploy: Any, head: int, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = deploy(Counter, replicas=2)
    for module in (deployment_module, stopping):
        monkeypatch.setattr(module, "STOP_S", 0.3)
    monkeypatch.setattr(cluster, "_RAY_S", 0.5)
    os.kill(head, signal.SIGSTOP)
    eventually(lambda: is_stopped(head), "the head is stopped")
    try:
        for words in (["status"], ["explain", "ann", deployment.service]):
            with pytest.raises(SystemExit) as ended:
                main([*words, "-n", client.namespace])
            told = capsys.readouterr().err
            # Unless this process has a handle of what it needs: Ray asks no head for that then.
            late = "timed out after 0.5 s, waiting for Ray to find" in told
            assert (ended.value.code == 2) == late, told
        with pytest.raises(ray_route.RouteTimeoutError, match="Ray to end ray_route:"):
            deployment.shutdown(grace_s=1.0)
    finally:
        os.kill(head, signal.SIGCONT)
    monkeypatch.undo()
    deployment.shutdown()
    eventually(lambda: not pods_of(deployment.service), "all have ended", 60)


def is_stopped(pid: int) -> bool:
    """True once no thread of a process runs: the signal alone says little of when that is."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    states = [(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks]
    return all(state in "TZ" for state in states)


class Interrupt:
    """Raises `KeyboardInterrupt` at the n-th line of ours that this thread comes to."""

    OURS = ("sessions.py", "connect.py", "base.py", "sync_client.py", "waiting.py", "joining.py")

    def __init__(
        self, line: int, ours: tuple[str, ...] = OURS, functions: tuple[str, ...] = ()
    ) -> None:
        self.left = line
        self.ours = ours
        self.functions = functions

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        path = Path(frame.f_code.co_filename)
        if path.name not in self.ours or "ray_route" not in path.parts:
            return None
        if self.functions and frame.f_code.co_name not in self.functions:
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


@pytest.mark.parametrize("stride", [23, pytest.param(1, marks=pytest.mark.long)])
def test_a_deploy_that_is_interrupted_anywhere_leaves_no_pod(
    client: Any, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every stride a line further; a wait for pods is a few lines, however long it takes."""
    monkeypatch.setattr(starting, "_RETRY_S", 5.0)
    lines = [count(first * stride, SIDE_BY_SIDE * stride) for first in range(1, SIDE_BY_SIDE + 1)]
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:  # each thread is traced by itself
        last = list(pool.map(lambda some: interrupt_deploys(client, some), lines))
    print(f"{min(last)} lines")
    assert min(last) > 60, "it was interrupted all along the way"


def interrupt_deploys(client: ray_route.RouteClient, lines: Iterator[int]) -> int:
    """Interrupt one deploy after the other, until one ends before its line; return that line."""
    service, deployed = unique_name(), None
    where = {"namespace": client.namespace, "redis_url": client._session.namespace.url}
    while deployed is None:
        line = next(lines)
        sys.settrace(Interrupt(line, ("deploying.py", "starting.py", "waiting.py")))
        with contextlib.suppress(KeyboardInterrupt):
            try:
                deployed = ray_route.deploy(Counter, service=service, replicas=1, **where)
            finally:
                sys.settrace(None)
        if deployed is None:
            eventually(lambda: not pods_of(service), f"no pod is left, line {line}", 60)
    deployed.shutdown()
    return line


def test_a_session_that_anything_ends_while_it_is_made_leaves_nothing(client: Any) -> None:
    """What is raised at any line of its own thread: as without memory, or at a process' end."""
    namespace = unique_name()
    ray_route.connect(namespace).close()
    before, line, made = threads(), 0, False
    while not made:
        line += 3
        making = Interrupt(line, ("session.py",), ("__init__", "begin"))
        threading.settrace(making)
        try:
            with ray_route.connect(namespace):
                made = True
        except KeyboardInterrupt:
            pass
        finally:
            threading.settrace(None)  # type: ignore[arg-type]
        eventually(lambda: nobody_has(namespace), f"it is nobody's, line {line}")
        eventually(lambda: threads() <= before, f"its threads have ended, line {line}")
    assert line > 30, "it was ended all along the way"
    end_router(namespace)


def threads() -> int:
    """Return how many threads of sessions run."""
    kinds = ("changes", "reads", "within", "belief", "close")
    names = [f"ray_route-{kind}" for kind in kinds]
    return sum(thread.name in names for thread in threading.enumerate())
