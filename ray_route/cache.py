"""A bounded cache of links that never says more than the directory did.

The rules that keep stale answers out, for the router's cache and for near caches alike:
an entry ends with its lease; a put never lowers an epoch; a drop takes an entry only up to the
epoch that was meant; an answer that was asked for before an invalidation is not kept.
"""

from __future__ import annotations

from threading import Lock

from cachetools import TLRUCache, TTLCache

from ray_route.clock import Clock, now
from ray_route.model import Link

Key = tuple[str, str]
_Entry = tuple[Link, float]

# An answer older than this is never kept, so an invalidation need not be remembered for longer.
_ANSWER_S = 60.0


def _end_of_lease(_key: Key, entry: _Entry, _now: float) -> float:
    return entry[1]


class LinkCache:
    """Links by (service, uid), each for as long as its lease. Thread-safe.

    `clock` returns seconds and is injected by tests.
    """

    def __init__(self, maxsize: int, clock: Clock = now) -> None:
        self._clock = clock
        self._lock = Lock()
        self._entries: TLRUCache[Key, _Entry] = TLRUCache(maxsize, ttu=_end_of_lease, timer=clock)
        self._invalidated: TTLCache[Key, float] = TTLCache(maxsize, ttl=_ANSWER_S, timer=clock)
        self._flushed_at = -1.0

    def __len__(self) -> int:
        with self._lock:
            self._entries.expire()
            return len(self._entries)

    def get(self, service: str, uid: str, min_epoch: int = 0) -> Link | None:
        """Return the cached link with what is left of its lease; None below `min_epoch`."""
        with self._lock:
            entry = self._entries.get((service, uid))
        if entry is None:
            return None
        link, deadline = entry
        lease_s = deadline - self._clock()
        if lease_s <= 0 or link.epoch < min_epoch:
            return None
        return Link(link.pod, link.incarnation, link.epoch, link.persistent, lease_s)

    def put(self, service: str, uid: str, link: Link, asked_at: float) -> bool:
        """Keep `link`, whose lease counts from `asked_at`; say whether it was kept."""
        key = (service, uid)
        deadline = asked_at + link.lease_s
        with self._lock:
            if self._is_stale(key, asked_at) or deadline <= self._clock():
                return False
            held = self._entries.get(key)
            if held is not None and held[0].epoch > link.epoch:
                return False
            self._entries[key] = (link, deadline)
            return True

    def _is_stale(self, key: Key, asked_at: float) -> bool:
        if asked_at <= self._flushed_at or self._clock() - asked_at >= _ANSWER_S:
            return True
        invalidated_at = self._invalidated.get(key)
        return invalidated_at is not None and asked_at <= invalidated_at

    def drop(self, service: str, uid: str, up_to_epoch: int | None = None) -> Link | None:
        """Forget the link if its epoch is at most `up_to_epoch`, and any answer under way."""
        key = (service, uid)
        with self._lock:
            self._remember(key)
            held = self._entries.get(key)
            if held is None or (up_to_epoch is not None and held[0].epoch > up_to_epoch):
                return None
            self._entries.pop(key, None)
        return held[0]

    def _remember(self, key: Key) -> None:
        self._invalidated.expire()
        if len(self._invalidated) >= self._invalidated.maxsize:
            # No room to remember it by name: refuse every answer that is under way now.
            self._invalidated.clear()
            self._flushed_at = self._clock()
        self._invalidated[key] = self._clock()

    def flush(self) -> None:
        """Forget everything, and every answer under way."""
        with self._lock:
            self._entries.clear()
            self._invalidated.clear()
            self._flushed_at = self._clock()
