"""Links of a service without Ray: in place of Redis, and of the router that places uids."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from typing import Any, NamedTuple

from ray_route.config import RouteConfig
from ray_route.errors import NoAvailablePodError
from ray_route.model import Link
from ray_route.protocol.commands import Fate, Given, Settlement
from ray_route.testing.local_mailbox import Mailbox

# They grow for ever: what one service has written is never newer than the next one.
_epochs = count(1)

# Nothing runs out by itself within any test.
CONFIG = RouteConfig(ttl_s=1e6, shards=1)


class Place(NamedTuple):
    """One life of a pod, as the directory has it."""

    incarnation: int
    mailbox: Mailbox


class LocalDirectory:
    """Links, in memory, and the pods that there are. Thread-safe."""

    def __init__(self, namespace: str, service: str) -> None:
        self.ids: dict[str, Any] = {"namespace": namespace, "service": service}
        self.places: dict[int, Place] = {}
        self._lock = threading.Lock()
        self._links: dict[str, Link] = {}
        self._moving: set[str] = set()

    # Where uids are, or may be.

    def link_of(self, uid: str) -> Link:
        """Return the link of a uid; place it, if it has none or its pod has ended."""
        with self._lock:
            link = self._links.get(uid)
            if link is None or not self.is_alive(link):
                link = self._write(uid, self._lightest(set()))
            return link

    def peek(self, uid: str) -> Link | None:
        """Return the link that there is."""
        return self._links.get(uid)

    def links(self) -> dict[str, Link]:
        """Return all there are."""
        with self._lock:
            return dict(self._links)

    def is_alive(self, link: Link) -> bool:
        """Say whether the life of a pod that a link names goes on."""
        place = self.places.get(link.pod)
        return place is not None and place.incarnation == link.incarnation

    def another(self, pod: int) -> int:
        """Return the pod with the fewest uids but this one; this, if there is no other."""
        with self._lock:
            return self._lightest({pod})

    def _lightest(self, but: set[int]) -> int:
        loads = Counter(link.pod for link in self._links.values() if self.is_alive(link))
        pods = sorted(self.places.keys() - but) or sorted(self.places)
        if not pods:
            known: dict[int, str] = {}
            raise NoAvailablePodError(known=known, **self.ids)
        return min(pods, key=lambda pod: loads[pod])

    # Changes.

    def link_to(self, uid: str, pod: int, *, persistent: bool | None = None) -> Link:
        """Link a uid to a pod, under a new epoch; of the kind that it was, unless one is given."""
        with self._lock:
            return self._write(uid, pod, persistent=persistent)

    def _write(self, uid: str, pod: int, *, persistent: bool | None = None) -> Link:
        old = self._links.get(uid)
        kind = persistent if persistent is not None else bool(old and old.persistent)
        incarnation, replaced = self.places[pod].incarnation, old.epoch if old else 0
        link = Link(pod, incarnation, next(_epochs), kind, CONFIG.lease_s, replaced)
        self._links[uid] = link
        return link

    def take_away(self, uid: str) -> Link | None:
        """Link a uid to another pod, if there is one, without a word to its owner.

        Returns the link that this replaced, if there was one.
        """
        with self._lock:
            link = self._links.get(uid)
            if link is not None:
                self._write(uid, self._lightest({link.pod}))
            return link

    def set_kind(self, uid: str, link: Link, *, persistent: bool) -> Link:
        """Make a link persistent or not, if it is the uid's still; return it as it is then."""
        with self._lock:
            if self._links.get(uid) == link:
                link = self._links[uid] = replace(link, persistent=persistent)
            return link

    def remove(self, uid: str, link: Link) -> None:
        """Remove a link, if it is the uid's still."""
        with self._lock:
            if self._links.get(uid) == link:
                del self._links[uid]

    @contextmanager
    def in_move(self, uid: str) -> Iterator[None]:
        """Have a uid's link stay, meanwhile, though its pod says that it has given the uid up."""
        with self._lock:
            self._moving.add(uid)
        try:
            yield
        finally:
            self._moving.discard(uid)

    def settle(self, given: Mapping[str, Given]) -> dict[str, Settlement]:
        """Remove the links of uids that a pod has given up by itself."""
        with self._lock:
            return dict(self._settled(given))

    def _settled(self, given: Mapping[str, Given]) -> Iterator[tuple[str, Settlement]]:
        for uid, (epoch, fate) in given.items():
            link = self._links.get(uid)
            if link is None or link.epoch != epoch:
                yield uid, (epoch, 0)
            elif uid in self._moving or fate is Fate.STAYS:
                continue
            elif fate is Fate.MAY_GO or (fate is Fate.UNUSED and link.persistent):
                yield uid, (epoch, self._write(uid, link.pod).epoch)
            else:
                del self._links[uid]
                yield uid, (epoch, 0)
