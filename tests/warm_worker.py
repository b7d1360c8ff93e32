"""Starts Ray's workers as forks of a process that has already imported what they import.

A raylet runs this in the place of Ray's `default_worker.py`, with the same arguments. The worker is
a process like any other, with the environment, the files and the process group that it would have;
only its imports are done. They are most of what a start costs, and the suite starts hundreds. The
first start makes the process that is forked, which ends with its raylet. A worker with a runtime
environment starts as ever, since that may change what it imports.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any

RAYS_OWN = "ray._private.workers.default_worker"
# What workers import at their start, what Ray looks for to pickle, what most of them run.
IMPORTED = (
    *("numpy", "pyarrow.json", "pydantic", "pydantic.v1.fields", "starlette.datastructures"),
    *("ray.util.serialization_addons", "ray._common.pydantic_compat", "uvloop", RAYS_OWN),
    *("ray_route.router.actor", "ray_route.runtime.embedded_actor", "services"),
    *("ray_route.pod.pod_actor", "ray_route.client.sync_client", "ray_route.controller.actor"),
    *("ray.serve._private.controller", "ray.serve._private.proxy", "ray_route.serve.replica_agent"),
)
WITHOUT_A_RUNTIME_ENVIRONMENT = "--runtime-env-hash=0"
FORKS = "--forks"
# A fork has the thread alone that made it, so there must be no other.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
START_S = 60
MOST_BYTES, MOST_FILES = 1 << 18, 250


def main() -> None:
    arguments = sys.argv[1:]
    if FORKS in arguments:
        serve_forks()
    elif WITHOUT_A_RUNTIME_ENVIRONMENT not in arguments or not ask_for_fork(arguments):
        spec = find_spec(RAYS_OWN)
        assert spec is not None
        os.execv(sys.executable, [sys.executable, str(spec.origin), *arguments])


def address() -> str:
    """Return the abstract address of the raylet's forking process: it leaves no file behind."""
    return f"\0ray_route-warm-{os.environ['RAY_RAYLET_PID']}"


# In the process that the raylet has started.


def ask_for_fork(arguments: list[str]) -> bool:
    """Have a fork take this process' place; False if there is nobody to ask."""
    asked = {"arguments": arguments, "environment": dict(os.environ), "folder": str(Path.cwd())}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
        if not connected(asking, arguments):
            return False
        files = [file for file in open_files() if file != asking.fileno()]
        message = json.dumps({**asked, "files": files}).encode()
        with contextlib.suppress(OSError):  # it has failed, and said why
            socket.send_fds(asking, [message], files)
            return asking.recv(1) == b"y"
    return False


def open_files() -> list[int]:
    named = list(Path("/proc/self/fd").iterdir())
    return sorted(int(each.name) for each in named if each.is_symlink())  # not the look's own


def connected(asking: socket.socket, arguments: list[str]) -> bool:
    """Connect to the forking process, and start it if there is none."""
    end, started = time.monotonic() + START_S, False
    while time.monotonic() < end:
        with contextlib.suppress(ConnectionRefusedError):
            asking.connect(address())
            return True
        if not started:
            start_forking(arguments)
            started = True
        time.sleep(0.02)
    return False


def start_forking(arguments: list[str]) -> None:
    """Start it with arguments as long as a worker's: their place holds the name that Ray shows."""
    subprocess.Popen(
        [sys.executable, __file__, FORKS, *arguments],
        env={**os.environ, **ONE_THREAD},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


# In the process that forks.


def serve_forks() -> None:
    """Fork for whoever asks, as long as the raylet lives."""
    raylet = int(os.environ["RAY_RAYLET_PID"])
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        try:
            listening.bind(address())
        except OSError:
            return  # another was started at the same time
        listening.listen(64)
        code = imported()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that nobody has to collect the dead
        while Path(f"/proc/{raylet}").exists():
            if not select.select([listening], [], [], 1.0)[0]:
                continue
            asking, _ = listening.accept()
            if asked := forked(asking):
                break
        else:
            return
    run_worker(*asked, code)


def imported() -> CodeType:
    """Import what workers do; return the code that makes a process a worker."""
    with drawing_no_ids():
        for name in IMPORTED:
            with contextlib.suppress(ImportError):
                import_module(name)
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a thread that no fork would have"
    gc.collect()
    gc.freeze()
    spec = find_spec(RAYS_OWN)
    assert spec is not None
    code = spec.loader.get_code(RAYS_OWN)  # type: ignore[union-attr]
    assert isinstance(code, CodeType)
    return code


@contextlib.contextmanager
def drawing_no_ids() -> Iterator[None]:
    """Let Ray draw no id meanwhile: its generator would draw the same ones in every fork.

    Imports make actor classes, which have ids.
    """
    actors: Any = import_module("ray.actor")
    own = actors.ActorClassID
    actors.ActorClassID = SimpleNamespace(from_random=lambda: own(os.urandom(own.size())))
    try:
        yield
    finally:
        actors.ActorClassID = own


def forked(asking: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Answer one request; in the fork return it and its files, in the process that forks None."""
    with asking:
        message, files, _, _ = socket.recv_fds(asking, MOST_BYTES, MOST_FILES)
        if os.fork():
            asking.send(b"y")
            for file in files:
                os.close(file)
            return None
    return json.loads(message), files


def take_files(files: list[int], places: list[int]) -> None:
    """Give open files the numbers that they had where they come from."""
    above = max(*files, *places) + 1
    kept = []
    for number, file in enumerate(files):
        kept.append(above + number)
        os.dup2(file, kept[-1])
        os.close(file)
    for file, place in zip(kept, places, strict=True):
        os.dup2(file, place)
        os.close(file)


def run_worker(wanted: dict[str, Any], files: list[int], code: CodeType) -> None:
    """Be the process that was asked for."""
    take_files(files, wanted["files"])
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)
    os.chdir(wanted["folder"])
    os.environ.clear()
    os.environ.update(wanted["environment"])
    sys.argv[1:] = wanted["arguments"]
    exec(code, {"__name__": "__main__", "__file__": code.co_filename})


if __name__ == "__main__":
    main()
