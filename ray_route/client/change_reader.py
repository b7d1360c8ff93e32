"""Reads the change stream in a client process: what keeps its near cache honest.

One thread and one connection per process and namespace, however many clients share them. The
near cache may serve a hit only while the stream has been heard from within the staleness bound.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from typing import Any

from ray_route.clock import now
from ray_route.config import RouteConfig
from ray_route.protocol.changes import Change, Position
from ray_route.state.link_cache import LinkCache
from ray_route.state.pod_table import PodTable
from ray_route.store.connect import Store
from ray_route.store.keys import Keys
from ray_route.store.pods import PodCalls, parse_table
from ray_route.store.scripts import Call

logger = logging.getLogger(__name__)

_BLOCK_MS = 1000
_COUNT = 500
_RETRY_S = 0.1


class ChangeReader:
    """Follows the stream from a known position; empties the cache when it has missed something."""

    def __init__(
        self,
        store: Store,
        keys: Keys,
        config: RouteConfig,
        table: PodTable,
        near: LinkCache,
        start: Position,
        heard_at: float,
    ) -> None:
        self._store = store
        self._keys = keys
        self._config = config
        self._table = table
        self._near = near
        self._position = start
        self._heard(heard_at)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ray_route-changes", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def end_soon(self) -> None:
        """Have it stop; what can't be read from now on is nobody's concern."""
        self._stopping.set()

    def stop(self) -> None:
        """Stop following; returns within about a second."""
        self.end_soon()
        self._thread.join(timeout=3 * _BLOCK_MS / 1000)
        self._store.close()

    def _heard(self, at: float) -> None:
        """Let the near cache be believed for a while."""
        self._near.trusted_until = at + self._config.staleness_s

    def lag_s(self) -> float:
        """Seconds since the stream was last heard from."""
        return now() - (self._near.trusted_until - self._config.staleness_s)

    def _run(self) -> None:
        lost = False
        while not self._stopping.is_set():
            try:
                self._follow()
                lost = False
            except Exception as error:  # noqa: BLE001 - unread, it allows no hits
                if not lost and not self._stopping.is_set():
                    logger.warning("the change stream can't be read: %s", error)
                lost = True
                self._near.flush()
                self._stopping.wait(_RETRY_S)

    def _follow(self) -> None:
        # What is read reflects the stream when the request was sent, or later: a process that
        # was frozen in between must not take an old reply for news.
        asked_at = now()
        key = self._keys.log
        words = ("XREAD", "COUNT", _COUNT, "BLOCK", _BLOCK_MS, "STREAMS", key, self._position.entry)
        entries = _entries(self._store.one(Call(key, words)))
        taken = [self._take_in(entry, fields) for entry, fields in entries]
        if any(taken) and len(entries) < _COUNT:  # else there may be more, and older than now
            self._heard(asked_at)
        if now() >= self._near.trusted_until:
            self._find_position_again()

    def _take_in(self, entry: str, fields: dict[str, str]) -> bool:
        router, number = int(fields["router"]), int(fields["number"])
        expected = (self._position.router, self._position.number + 1)
        if router < self._position.router:  # the last words of one that has been superseded
            self._position = replace(self._position, entry=entry)
            return False
        if (router, number) != expected:
            logger.info("changes were missed: expected %s, got %s", expected, number)
            self._start_over()
        self._position = Position(entry, router, number)
        change = Change.decode(fields["kind"], fields["service"], fields["payload"])
        if change.pod is not None:
            self._table.update(change.service, change.pod)
        for uid, epoch in (change.stale or {}).items():
            self._near.drop(change.service, uid, epoch)
        return True

    def _find_position_again(self) -> None:
        """Begin at the stream's end: after a loss of data ours may lie beyond it for ever."""
        self._start_over()
        key = self._keys.log
        reply = self._store.one(Call(key, ("XREVRANGE", key, "+", "-", "COUNT", 1)))
        last = reply[0][0].decode() if reply else "0-0"
        self._position = replace(self._position, entry=last)

    def _start_over(self) -> None:
        """Trust nothing that was learnt from the stream: flush, and read the pod tables."""
        self._near.flush()
        pods = PodCalls(self._keys)
        for name in self._store.one(pods.services()):
            service = name.decode()
            for record in parse_table(self._store.one(pods.table(service))):
                self._table.update(service, record)


def _entries(reply: Any) -> list[tuple[str, dict[str, str]]]:
    if not reply:
        return []
    streams = reply.values() if isinstance(reply, dict) else [stream[1] for stream in reply]
    return [
        (entry.decode(), {name.decode(): value.decode() for name, value in fields.items()})
        for stream in streams
        for entry, fields in stream
    ]
