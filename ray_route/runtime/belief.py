"""Which servers this process believes, and its connections to them.

Redis answers with what it has: a replica that lagged when it became the primary says "ok" and has
less than was acknowledged. So links are read only by connections whose server a router has vouched
for (see `protocol.welcome.Vouched`), and belief ends with the connection.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future

from ray_route.errors import ClosedError, RouteError
from ray_route.protocol.welcome import Vouched
from ray_route.runtime.renewals import Renewals
from ray_route.store.connect import Store
from ray_route.store.lanes import Lane, lanes_to_all, unsettled
from ray_route.store.sync_masters import Homes

_TRIES = 5
# Whose connection is broken off under his hands lets go of it at once.
_LAST_S = 0.1


class Belief:
    """The lanes to servers that a router has vouched for. Thread-safe.

    Any thread may read, by a lane that it has taken, and any may end belief. `vouch` asks the
    router, blocking, and is called in a thread of its own. Nothing here raises: who needs belief
    waits for what `renewed` returns.
    """

    def __init__(self, store: Store, vouch: Callable[[], Vouched]) -> None:
        self._store = store
        self._vouch = vouch
        self._lock = threading.Lock()
        self._lanes: dict[str, Lane] = {}
        self._homes = store.homes()
        self._term = 0
        self._renewals = Renewals(self._try_to_renew)
        self._closed = False
        self._pid = os.getpid()

    # For whoever reads.

    def server_of(self, key: str) -> str | None:
        """Name the server that held a key when it was vouched for; None if none did.

        Not who holds it now: of what has moved there since, no router has compared anything. Who
        has it no more says so, and is asked no more.
        """
        return self._homes.of(key)

    def take(self, server: str | None, wait_s: float) -> Lane | None:
        """Return the lane to a server, for the caller alone until `give_back`.

        None if the server is not to be believed now, which is seen to, or if others do not give the
        lane back in time; if there was some, the lane is given up.
        """
        if self._pid != os.getpid():  # a fork would read its parent's replies
            return None
        lane = self._lanes.get(server) if server is not None else None
        if lane is None:
            self.renewed()
            return None
        if not lane.take(wait_s):
            if wait_s:
                self._give_up(lane)
            return None
        if lane.has_unread:  # after two interrupts at once: its next reply is another's answer
            self.drop(lane)
        if not lane.is_believed:
            lane.close()
            return None
        return lane

    def _give_up(self, lane: Lane) -> None:
        """Close a lane that does not come back: who has it was interrupted; or he is only slow."""
        self.drop(lane)
        lane.break_off()  # whoever waits for a reply by it hears that
        lane.take(_LAST_S)
        lane.close()

    def give_back(self, lane: Lane) -> None:
        """Let others have a lane; close it if its server is not believed any more."""
        lane.give_back()
        if not lane.is_believed:
            _close_unless_taken(lane)

    def drop(self, lane: Lane) -> None:
        """End belief in one server: its connection failed, or it refused."""
        self._keep(lambda held: held is not lane)

    def doubt(self, server: str | None) -> None:
        """End belief in a server, by name: it says what can't be so any more."""
        doubted = None if server is None else self._lanes.get(server)
        self._keep(lambda held: held is not doubted)

    # For whoever hears that servers may be others by now.

    def believes(self, server: str | None) -> bool:
        """True if a server is believed now."""
        return server in self._lanes

    def is_ready(self) -> bool:
        """True if any server is believed."""
        return bool(self._lanes)

    def end(self) -> None:
        """Believe nothing, nor what a router is just being asked."""
        with self._lock:
            self._term += 1
        self._keep(lambda _: False)

    def keep_only(self, servers: Collection[str]) -> None:
        """End belief in all servers but these, also in what a router said of others before."""
        with self._lock:
            self._term += 1
        self._keep(lambda lane: lane.server in servers)

    def _keep(self, keeps: Callable[[Lane], bool]) -> None:
        with self._lock:
            lanes = self._lanes
            self._lanes = {name: lane for name, lane in lanes.items() if keeps(lane)}
            for lane in [lane for lane in lanes.values() if not keeps(lane)]:
                lane.is_believed = False
                _close_unless_taken(lane)

    def close(self) -> None:
        """End belief for good."""
        self._closed = True
        self.end()

    # Renewal.

    def renewed(self) -> Future[None]:
        """Have every primary vouched for, in the background; the future raises what prevents it.

        If one is away, the others are believed all the same (see `believes`). One at a time, for
        all who ask; after a failure with growing pauses. Shortly after it the same failure is told
        at once, since each attempt at a store that is away takes seconds.
        """
        if self._closed:
            return _failed(ClosedError(what=f"the connection to {self._store.url.address}"))
        return self._renewals.begun_or_told()

    def _try_to_renew(self) -> None:
        for _ in range(_TRIES):
            if self._closed or self._renew_once():
                return
        raise unsettled(self._store)

    def _renew_once(self) -> bool:
        """Open what lanes are missing and have them vouched for; say whether all were.

        Raises why a server can't be reached, when all is done for the others.
        """
        term = self._term
        opened, problem = lanes_to_all(self._store, but=list(self._lanes))
        homes = self._store.homes()  # before: what moves meanwhile is asked of who had it
        if problem is not None and not opened:
            raise problem
        try:
            servers = self._vouch().identities
        except BaseException:
            self._forget(opened)
            raise
        were_all = self._adopt(opened, servers, homes, term)
        if were_all and problem is not None:  # else those that answer come first
            raise problem
        return were_all

    def _adopt(
        self, opened: dict[str, Lane], servers: Collection[str], homes: Homes, term: int
    ) -> bool:
        with self._lock:
            if term == self._term and not self._closed:
                self._homes = homes
                good = {name: lane for name, lane in opened.items() if lane.server in servers}
                for lane in good.values():
                    lane.is_believed = True
                self._lanes = {**self._lanes, **good}
                opened = {name: lane for name, lane in opened.items() if name not in good}
        self._forget(opened)
        self._keep(lambda lane: lane.server in servers)
        return not opened

    def _forget(self, lanes: dict[str, Lane]) -> None:
        for lane in lanes.values():
            lane.close()


def _failed(error: RouteError) -> Future[None]:
    failed: Future[None] = Future()
    failed.set_exception(error)
    return failed


def _close_unless_taken(lane: Lane) -> None:
    """Close a lane that nobody reads by; whoever has taken it closes it when he gives it back."""
    if lane.take(0):
        lane.close()
