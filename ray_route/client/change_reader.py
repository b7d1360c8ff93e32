"""Reads the change stream in a client process: what keeps its near cache honest.

One thread and one connection per process and namespace, however many clients share them. The
near cache may serve a hit only while the router's beats have been heard within the staleness
bound, and so may Redis be read by this process itself.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from ray_route.client.trust import Trust
from ray_route.clock import now
from ray_route.config import RouteConfig
from ray_route.errors import DamagedKeyError
from ray_route.protocol.changes import Change, Position, UnreadableEntryError, read_entry
from ray_route.runtime.belief import Belief
from ray_route.state.link_cache import LinkCache
from ray_route.state.pod_table import PodTable
from ray_route.store.connect import Store
from ray_route.store.damage import tell
from ray_route.store.keys import Keys
from ray_route.store.lanes import Lane, lane_to
from ray_route.store.pods import PodCalls, parse_table, service_names
from ray_route.store.scripts import Call

logger = logging.getLogger(__name__)

_BLOCK_MS = 1000
_COUNT = 500
_RETRY_S = 0.1
_STOP_S = 0.01
_STOP_TRIES = 3


class Known(NamedTuple):
    """What a process knows, and the stream keeps true.

    `saw_all` takes in counters of shards.
    """

    table: PodTable
    near: LinkCache
    belief: Belief
    saw_all: Callable[[Iterable[tuple[int, int]]], None]


class ChangeReader:
    """Follows the stream from a known position; empties the cache when it has missed something."""

    def __init__(
        self,
        store: Store,
        keys: Keys,
        config: RouteConfig,
        known: Known,
        start: Position,
        heard_at: float,
    ) -> None:
        self._store = store
        self._keys = keys
        self._known = known
        self._near = known.near
        self._position = start
        self._trust = Trust(known.near, config.staleness_s, keys.shard, heard_at)
        self._drained_at: float | None = heard_at
        self._lane: Lane | None = None
        self._lost = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ray_route-changes", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def end_soon(self) -> None:
        """Have it stop; what can't be read from now on is nobody's concern."""
        self._stopping.set()

    def stop(self) -> None:
        """Stop following; returns within some 30 ms, whatever it is just waiting for."""
        self.end_soon()
        for _ in range(_STOP_TRIES):
            lane = self._lane
            if lane is not None:
                lane.break_off()  # again: it may have been about to send its next read
            if self._thread.is_alive():  # begun, and not ended
                self._thread.join(_STOP_S)
        self._store.close()

    def lag_s(self) -> float:
        """Seconds since a beat was last heard."""
        return self._trust.lag_s(now())

    def _run(self) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(BaseException):  # whatever it is: unread, it allows no hits
                self._follow_on()
        self._disconnect()

    def _follow_on(self) -> None:
        """Follow; after what prevents it, trust nothing, and wait a moment."""
        try:
            self._follow()
            self._lost = False
        except BaseException as error:  # noqa: BLE001 - what ends this thread allows no hits for ever
            self._disconnect()
            if not self._lost and not self._stopping.is_set():
                logger.warning("the change stream can't be read: %s", error)
            self._lost = True
            self._stopping.wait(_RETRY_S)

    def _disconnect(self) -> None:
        """Believe nothing any more: what comes next may be another server's."""
        self._near.flush()
        self._known.belief.end()
        self._drained_at = None
        lane, self._lane = self._lane, None
        if lane is not None:
            lane.close()

    def _follow(self) -> None:
        # What comes now was not there when all was read the last time: so old can it be, and older
        # than this request, if this process slept, or was slow, in between.
        asked_at, since = now(), self._drained_at
        entries = self._read()
        beats = [self._take_in_or_pass(entry, fields) for entry, fields in entries]
        heard = [beat for beat in beats if beat is not None]
        if heard and since is not None:
            self._trust.heard(since, heard[-1].unseen)
        if len(entries) < _COUNT:  # else there may be more
            self._drained_at = asked_at
        if now() >= self._near.trusted_until:
            self._find_position_again()

    def _read(self) -> list[tuple[str, dict[bytes, bytes]]]:
        if self._lane is None:
            self._lane = lane_to(self._store, self._keys.log)
        key = self._keys.log
        count, wait_ms = str(_COUNT), str(_BLOCK_MS)
        words = ("XREAD", "COUNT", count, "BLOCK", wait_ms, "STREAMS", key, self._position.entry)
        return _entries(self._lane.one(Call(key, words)))

    def _take_in_or_pass(self, entry: str, fields: dict[bytes, bytes]) -> Change | None:
        """Take an entry in; pass over one that no router has written.

        If one of a router's is lost by that, the next one's number tells.
        """
        try:
            return self._take_in(entry, *read_entry(fields))
        except UnreadableEntryError as error:
            self._position = self._position._replace(entry=entry)
            tell(DamagedKeyError(key=self._keys.log, reason=f"entry {entry}, {error}"))
            return None

    def _take_in(self, entry: str, router: int, number: int, change: Change) -> Change | None:
        """Take in an entry; return it if it is a beat of the router in force."""
        expected = (self._position.router, self._position.number + 1)
        if router < self._position.router:  # the last words of one that has been superseded
            self._position = self._position._replace(entry=entry)
            return None
        if (router, number) != expected:
            logger.info("changes were missed: expected %s, got %s", expected, number)
            self._start_over()
        self._apply(change)
        # Last: whatever ends this before has it read again.
        self._position = Position(entry, router, number)
        return change if change.kind == "beat" else None

    def _apply(self, change: Change) -> None:
        known = self._known
        if change.pod is not None:
            known.table.update(change.service, change.pod)
        for uid, epoch in (change.stale or {}).items():
            self._near.drop(change.service, uid, epoch)
        counters = change.counters or {}
        known.saw_all(counters.items())  # first: what is read from now on is judged by it
        if change.kind == "lost":
            shard_of = self._keys.shard
            self._near.drop_where(lambda uid: shard_of(uid) in counters)
        if change.servers is not None:
            known.belief.keep_only(change.servers.split(","))

    def _find_position_again(self) -> None:
        """Begin at the stream's end: after a loss of data ours may lie beyond it for ever."""
        self._start_over()
        key, self._drained_at = self._keys.log, now()
        reply = self._store.one(Call(key, ("XREVRANGE", key, "+", "-", "COUNT", "1")))
        last = reply[0][0].decode() if reply else "0-0"
        # Whose the next entry is decides that entry: what was heard last may be no router's.
        self._position = Position(last, 0, 0)

    def _start_over(self) -> None:
        """Trust nothing that was learnt from the stream: flush, and read the pod tables."""
        self._near.flush()
        self._known.belief.end()
        pods = PodCalls(self._keys)
        for service in self._services(pods):
            try:
                reply = self._store.one(pods.table(service))
            except DamagedKeyError as error:
                tell(error)
                continue
            for record in parse_table(reply, self._keys.pods(service)):
                self._known.table.update(service, record)

    def _services(self, pods: PodCalls) -> list[str]:
        """Read the names of the services; those known already while that key is damaged."""
        try:
            return service_names(self._store.one(pods.services()), self._keys.services)
        except DamagedKeyError as error:
            tell(error)
            return self._known.table.services()


def _entries(reply: Any) -> list[tuple[str, dict[bytes, bytes]]]:
    """Read Redis' own reply: streams of entries, each a list of names and values in turn."""
    return [
        (entry.decode(), dict(zip(words[::2], words[1::2], strict=True)))
        for _, entries in reply or ()
        for entry, words in entries
    ]
