"""The cut of one process alone reaches that one, and no other; it ends."""

from __future__ import annotations

import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from parting import PartingProxy

ASKS = """
import socket, sys
port = int(sys.argv[1])
link = socket.create_connection(("127.0.0.1", port))
for line in sys.stdin:
    patience_s = float(line)
    try:
        link.settimeout(patience_s)
        link.sendall(b"a")
        print("answered" if link.recv(1) else "reset", flush=True)
    except TimeoutError:
        print("silence", flush=True)
    except OSError:
        print("reset", flush=True)
    if line == "0.3\\n":  # anew
        link = socket.create_connection(("127.0.0.1", port))
"""
SHORT_S, LONG_S = "0.3", "60"


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while chunk := self.request.recv(100):
            self.request.sendall(chunk)


@contextmanager
def asking(port: int) -> Iterator[Any]:
    """Start a process that asks by a connection, and opens another where it has no answer soon."""
    program = subprocess.Popen(
        [sys.executable, "-c", ASKS, str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield program
    finally:
        program.kill()
        program.communicate()


def told(program: Any, patience_s: str) -> str:
    program.stdin.write(f"{patience_s}\n")
    program.stdin.flush()
    said: str = program.stdout.readline().strip()
    return said


@pytest.mark.parametrize(("refuse", "what"), [(False, "silence"), (True, "reset")])
def test_one_process_is_cut_off_on_old_connections_and_on_new_ones(refuse: bool, what: str) -> None:
    with (
        socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server,
        PartingProxy(server.server_address[1]) as proxy,
        asking(proxy.port) as one,
        asking(proxy.port) as other,
    ):
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert [told(one, LONG_S), told(other, LONG_S)] == ["answered"] * 2
        proxy.part(one.pid, refuse=refuse)
        assert [told(one, SHORT_S), told(one, SHORT_S)] == [what] * 2
        assert told(other, LONG_S) == "answered"
        proxy.heal()
        told(one, SHORT_S)  # of the cut: what was sent in it, or a reset
        assert [told(one, LONG_S), told(other, LONG_S)] == ["answered"] * 2
        server.shutdown()
