"""A process that is frozen, or cut off, while it reads a stream: nobody else waits for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
from deploying import driver
from gated_streams import AsyncGate, Gate
from helpers import eventually

pytestmark = pytest.mark.slow

SOON_S = 60.0
KINDS: dict[str, tuple[type, dict[str, Any]]] = {
    "one object per user": (Gate, {"per_uid": True}),
    "one object per pod, on a loop": (AsyncGate, {}),
    "one object per pod, on a loop, with turns": (AsyncGate, {"turns": True}),
    "one object per pod, in threads": (Gate, {"ray_actor_options": {"max_concurrency": 8}}),
}
kinds = pytest.mark.parametrize("kind", KINDS)

# It stops itself before an item has come, and says later what has become of the stream.
READER = """
import os, pathlib, signal, time
client = ray_route.connect(namespace)
stream = client.service(service)[uid].options(stream=True).items.remote(folder, number)
while not (pathlib.Path(folder) / "begun").exists():
    time.sleep(0.02)
print("waits", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
read = 0
try:
    for item in stream:
        read += 1
except Exception as error:
    print(type(error).__name__, error)
print(read, flush=True)
"""


class Frozen:
    """A process that has asked for a stream, and is stopped."""

    def __init__(self, process: Popen[str], folder: Path) -> None:
        self.process = process
        self._folder = folder
        assert process.stdout is not None
        assert process.stdout.readline() == "waits\n"
        eventually(lambda: is_stopped(process.pid), "it is stopped")

    def give(self) -> None:
        """Let its stream go on."""
        (self._folder / "go").touch()

    def eventually_closed(self) -> None:
        eventually((self._folder / "closed").exists, "its generator has ended", SOON_S)

    def wake(self) -> list[str]:
        """Let it read on; return what it says."""
        os.kill(self.process.pid, signal.SIGCONT)
        out, err = self.process.communicate(timeout=SOON_S)
        assert out, err
        return out.splitlines()


def is_stopped(pid: int) -> bool:
    """True once no thread of a process runs."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    states = [(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks]
    return all(state in "TZ" for state in states)


Freeze = Callable[..., Frozen]


@pytest.fixture
def frozen(client: Any, tmp_path: Path) -> Iterator[Freeze]:
    made: list[Popen[str]] = []

    def freeze(service: str, uid: str, number: int) -> Frozen:
        names = {"service": service, "uid": uid, "folder": str(tmp_path), "number": number}
        made.append(driver(READER, client.namespace, **names))
        return Frozen(made[-1], tmp_path)

    yield freeze
    for process in made:
        process.kill()
        process.communicate()


@kinds
def test_a_stream_that_ends_while_its_reader_is_frozen_holds_up_nobody(
    client: Any, deploy: Any, frozen: Freeze, kind: str
) -> None:
    cls, options = KINDS[kind]
    service = deploy(cls, replicas=1, **options).service
    rooms = client.service(service, cls)
    assert rooms["bob"].say.remote("hi").result() == "hi"
    reader = frozen(service, "ann", 5)
    reader.give()
    reader.eventually_closed()
    for uid in ("bob", "ann", "eve"):
        assert rooms[uid].options(timeout_s=SOON_S).say.remote("hi").result() == "hi"
        assert list(rooms[uid].options(timeout_s=SOON_S).count.remote(40)) == list(range(40))
    assert reader.wake() == ["5"], "it has lost nothing"


@kinds
def test_a_stream_whose_reader_is_frozen_is_closed_and_its_uid_goes_on(
    client: Any, deploy: Any, frozen: Freeze, kind: str
) -> None:
    cls, options = KINDS[kind]
    service = deploy(cls, replicas=2, **options).service
    rooms = client.service(service, cls)
    rooms["ann"].hurry.remote().result()
    reader = frozen(service, "ann", 10_000)
    reader.give()
    reader.eventually_closed()
    assert rooms["ann"].options(timeout_s=SOON_S).say.remote("hi").result() == "hi"
    owner = client.compute_linked_pod("ann", service).pod
    assert client.move("ann", service, 1 - owner, timeout=SOON_S).pod == 1 - owner
    said, read = reader.wake()
    assert said.startswith("RouteTimeoutError"), said
    assert "its pod has closed the stream" in said
    assert 0 < int(read) < 10_000
