"""Connections that are held, each tied to the identity of the server at its other end.

A pool's connections come back as others without a word. Where it matters who answers, a lane is
taken: it never reconnects, and who needs another opens one.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import Any

import hiredis

from ray_route.errors import RouteError, StoreUnavailableError
from ray_route.store.clients import DRIVER_ERRORS, translated
from ray_route.store.connect import Store
from ray_route.store.scripts import Call

_BUFFER = 65_536
_IDENTITY = (("INFO", "server"), ("INFO", "replication"))


class Lane:
    """One connection to one server, for whoever has taken it.

    `server` names it as `AsyncStore.servers` does: its process, and its time as a primary;
    `is_believed` is for whoever holds it. Raises `RouteError` where it can't be reached or said who
    it is.
    """

    is_believed = False

    def __init__(self, store: Store, pool: Any) -> None:
        self._url = store.url
        self._pool = pool
        self._sent: Sequence[Call] = ()
        # Whoever is interrupted just after he has taken it leaves it to be given up: a lock would
        # be held for ever.
        self._free: SimpleQueue[None] = SimpleQueue()
        self._free.put(None)
        self._closing = threading.Lock()
        self._is_closed = False
        try:
            self._connection = pool.get_connection()
        except DRIVER_ERRORS as error:
            raise translated(self._url, error) from error
        # Where the pool's connection has signed in, its socket is used as it is: redis-py's way of
        # sending and reading takes 15 µs more.
        self._socket: socket.socket = self._connection._sock  # noqa: SLF001
        self._reader = hiredis.Reader()
        try:
            self.server = self._identity()
        except BaseException:
            self.close()
            raise

    def _identity(self) -> str:
        self._send([("INFO", "server"), ("INFO", "replication")])
        server, replication = (self._checked(self._reply()) for _ in _IDENTITY)
        return f"{_field(server, b'run_id')}:{_field(replication, b'master_replid')}"

    def take(self, wait_s: float) -> bool:
        """Have it for oneself until it is given back; say whether that was so in time."""
        try:
            self._free.get(wait_s > 0, wait_s or None)
        except Empty:
            return False
        return True

    def give_back(self) -> None:
        """Let others take it."""
        self._free.put(None)

    def run(self, calls: Sequence[Call]) -> list[Any]:
        """Send calls together; return each one's reply, or the server's refusal.

        Raises `StoreUnavailableError` if the connection fails: then it is of no use any more.
        """
        self.send(calls)
        return self.receive()

    def send(self, calls: Sequence[Call]) -> None:
        """Send calls, whose replies `receive` waits for."""
        self._sent = calls  # before: whatever interrupts it leaves replies that are to come
        self._send([call.words for call in calls])

    def receive(self) -> list[Any]:
        """Return the replies to what was sent; scripts that the server lacks are sent whole."""
        calls = self._sent
        replies = [self._reply() for _ in calls]
        unknown = [i for i, reply in enumerate(replies) if _says(reply, "NOSCRIPT")]
        if unknown:
            self._send([calls[i].with_source() for i in unknown])
            for i in unknown:
                replies[i] = self._reply()
        self._sent = ()
        return replies

    @property
    def has_unread(self) -> bool:
        """True if replies are still to come to what was sent."""
        return bool(self._sent)

    def one(self, call: Call) -> Any:
        """Send one call; return its reply or raise its error."""
        return self._checked(self.run([call])[0])

    def _checked(self, reply: Any) -> Any:
        if isinstance(reply, Exception):
            raise self.translated(reply) from reply
        return reply

    def translated(self, refusal: BaseException) -> RouteError:
        """Say what a server's refusal means to the caller."""
        return translated(self._url, refusal)

    def _send(self, messages: Sequence[tuple[Any, ...]]) -> None:
        packed = b"".join(map(hiredis.pack_command, messages))
        try:
            self._socket.sendall(packed)
        except OSError as error:
            raise translated(self._url, error) from error

    def _reply(self) -> Any:
        """Read one reply; a server's refusal is returned as `hiredis.ReplyError`."""
        reply = self._reader.gets()
        while reply is False:
            self._reader.feed(self._received())
            reply = self._reader.gets()
        return reply

    def _received(self) -> bytes:
        try:
            some = self._socket.recv(_BUFFER)
        except OSError as error:
            raise translated(self._url, error) from error
        if not some:
            raise translated(self._url, ConnectionError("the server has closed the connection"))
        return some

    def break_off(self) -> None:
        """Have whoever waits for a reply fail at once; from any thread."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection; its place in the pool is free again. Once: it is another's then."""
        with self._closing:
            if self._is_closed:
                return
            self._is_closed = True
        with contextlib.suppress(*DRIVER_ERRORS):
            self._connection.disconnect()
        self._pool.release(self._connection)


def _field(info: bytes, name: bytes) -> str:
    found = re.search(rb"^%b:(\w+)" % name, info, re.MULTILINE)
    return found[1].decode() if found else ""


def has_moved(refusal: Exception) -> bool:
    """True if a server says that it is not the primary of what it was asked for."""
    # An error within a script is the server's own on some, and wrapped on others.
    return _says(refusal, "MOVED", "CLUSTERDOWN") or "READONLY" in str(refusal)


def is_moving(refusal: Exception) -> bool:
    """True if what was asked for is just on its way from one primary to another."""
    return _says(refusal, "ASK", "TRYAGAIN")


def _says(reply: Any, *codes: str) -> bool:
    return isinstance(reply, Exception) and str(reply).partition(" ")[0] in codes


def lane_to(store: Store, key: str) -> Lane:
    """Open a lane to the server that holds a key now; raise `RouteError`."""
    store.primaries()
    return Lane(store, store.pool(key))


def lanes_to_all(
    store: Store, but: Sequence[str] = ()
) -> tuple[dict[str, Lane], RouteError | None]:
    """Open a lane to every primary, by name, but those named; return also why one is missing.

    Raises `RouteError` if nobody says who the primaries are.
    """
    lanes: dict[str, Lane] = {}
    problem = None
    try:
        for name, pool in store.primaries():
            if name in but:
                continue
            try:
                lanes[name] = Lane(store, pool)
            except RouteError as error:  # of one alone
                problem = error
    except BaseException:
        for lane in lanes.values():
            lane.close()
        raise
    return lanes, problem


def unsettled(store: Store) -> StoreUnavailableError:
    """Make the error of servers that change faster than anybody can vouch for them."""
    return StoreUnavailableError(
        address=store.url.address, reason="its servers are others than a router has just seen"
    )
