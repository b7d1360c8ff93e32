"""A proxy that cuts one process alone off from the server, while all others go on."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

from proxy import TcpProxy


class PartingProxy(TcpProxy):
    """A proxy with one more fault, of a single client process. `heal()` ends it, too."""

    def __init__(self, target_port: int) -> None:
        self._parted: int | None = None
        self._ports: frozenset[int] = frozenset()
        """Of the connections of the process that is cut off."""
        self._is_refused = False
        self._whole = threading.Event()
        self._whole.set()
        super().__init__(target_port)

    def part(self, pid: int, *, refuse: bool) -> None:
        """Cut a process off: nothing flows on its connections, or they are reset and refused."""
        self._whole.clear()
        self._is_refused, self._parted = refuse, pid
        self._ports = _ports_of(pid)
        for connection in list(self._open) if refuse else ():
            if self._is_parted(connection):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def heal(self) -> None:
        self._parted, self._ports = None, frozenset()
        self._whole.set()
        super().heal()

    def close(self) -> None:
        self._is_refused = False
        super().close()
        self._whole.set()

    def _is_parted(self, client: socket.socket) -> bool:
        with contextlib.suppress(OSError):  # it has ended
            return client.getpeername()[1] in self._ports
        return False

    def _refuses(self, client: socket.socket) -> bool:
        if self._parted is not None:
            self._ports = _ports_of(self._parted)
        return super()._refuses(client) or (self._is_refused and self._is_parted(client))

    def _wait(self, client: socket.socket) -> None:
        while self._is_parted(client):
            self._whole.wait()
        super()._wait(client)


def _ports_of(pid: int) -> frozenset[int]:
    """Return the local ports of a process's TCP connections; none if it has ended."""
    try:
        held = {_target(file) for file in Path(f"/proc/{pid}/fd").iterdir()}
        lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    except OSError:
        return frozenset()
    rows = [line.split() for line in lines]
    return frozenset(
        int(row[1].rpartition(":")[2], 16) for row in rows if f"socket:[{row[9]}]" in held
    )


def _target(file: Path) -> str:
    with contextlib.suppress(OSError):  # closed meanwhile
        return str(file.readlink())
    return ""
