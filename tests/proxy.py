"""A real TCP proxy between a client and a server: cut, stalled, slowed or wrapped in TLS."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable


class TcpProxy:
    """Forwards connections to a local port. Faults act on open and on new connections.

    `stall()` stops forwarding but keeps connections open, `cut()` resets them and refuses new
    ones, `delay_s` holds every chunk back, `heal()` ends all faults. `lose()` loses one answer,
    `after()` waits for one.
    """

    def __init__(self, target_port: int, tls: ssl.SSLContext | None = None) -> None:
        self.delay_s = 0.0
        self._target_port = target_port
        self._tls = tls
        self._flowing = threading.Event()
        self._flowing.set()
        self._cut = False
        self._losing: tuple[bytes, Callable[[], None]] | None = None
        self._passing: tuple[bytes, Callable[[], None]] | None = None
        self._to_pass = 0
        self._lost: set[socket.socket] = set()
        self._passed: set[socket.socket] = set()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def stall(self) -> None:
        self._flowing.clear()

    def cut(self) -> None:
        self._cut = True
        for connection in list(self._open):
            _shut(connection)

    def lose(self, question: bytes, then: Callable[[], None] = lambda: None) -> None:
        """Of the next chunk with some bytes the answer never comes: its connection ends instead.

        The server has carried it out by then, and `then` is called before anybody notices.
        """
        self._losing = (question, then)

    def after(self, times: int, question: bytes, then: Callable[[], None]) -> None:
        """Call `then` once the answer to that many chunks with some bytes has been passed on."""
        self._passing = (question, then)
        self._to_pass = times

    def half_close(self) -> None:
        """Send the end of the stream on open connections, and go on reading from them."""
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_WR)

    def retarget(self, port: int) -> None:
        """Reset open connections; new ones go to another server."""
        self._target_port = port
        for connection in list(self._open):
            _shut(connection)

    def heal(self) -> None:
        self._cut, self.delay_s = False, 0.0
        self._flowing.set()

    def close(self) -> None:
        self._listener.close()
        self.cut()
        self._flowing.set()

    def __enter__(self) -> TcpProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        try:
            if self._refuses(client):
                client.close()
                return
            if self._tls is not None:
                client = self._tls.wrap_socket(client, server_side=True)
            server = socket.create_connection(("127.0.0.1", self._target_port))
        except OSError:
            client.close()
            return
        self._open |= {client, server}
        back = threading.Thread(target=self._forward, args=(server, client, client), daemon=True)
        back.start()
        self._forward(client, server, client)
        back.join()
        # Closed only when nobody uses them: OpenSSL would go on with the number of a closed
        # file, which may be another's by then.
        self._open -= {client, server}
        client.close()
        server.close()

    def _refuses(self, _: socket.socket) -> bool:
        """True if a client that has just connected is to be turned away."""
        return self._cut

    def _wait(self, _: socket.socket) -> None:
        """Wait until something may flow to and from a client."""
        self._flowing.wait()

    def _forward(self, source: socket.socket, sink: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(65536):
                self._wait(client)
                if self._losing and self._losing[0] in chunk:
                    self._lost.add(client)
                elif self._losing and client in self._lost:  # it is the answer
                    (_, then), self._losing = self._losing, None
                    then()
                    break
                if self.delay_s:
                    time.sleep(self.delay_s)
                is_answer = client in self._passed
                if self._passing and self._passing[0] in chunk:
                    self._to_pass -= 1
                    if not self._to_pass:
                        self._passed.add(client)
                sink.sendall(chunk)
                if self._passing and is_answer:
                    (_, then), self._passing = self._passing, None
                    self._passed.clear()
                    then()
        _shut(source)
        _shut(sink)


def _shut(connection: socket.socket) -> None:
    """End a connection for all threads that use it, without closing its file."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
