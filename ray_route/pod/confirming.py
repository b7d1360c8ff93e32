"""Confirming: what Redis says of a pod's uids; those that are new here are acquired.

Once for all who ask for a uid meanwhile; and for all uids that calls of an event loop ask for at
once by one read.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as LateError
from functools import partial
from typing import NamedTuple

from ray_route.clock import Deadline, now
from ray_route.errors import FencedError, RouterUnavailableError, RouteTimeoutError
from ray_route.model import Link
from ray_route.pod.admission import Admission, Told
from ray_route.pod.holdings import Holdings
from ray_route.pod.hooks import Hooks
from ray_route.pod.surroundings import Surroundings
from ray_route.runtime.link_reads import Part, Readings
from ray_route.runtime.loop_posts import ended
from ray_route.runtime.waiting import run

READ_S = 30.0
# A call that a pod turns away can go on; one that waits here for a router can't.
_ROUTER_S = 2.0
POLL_S = 0.02
_READERS = 32
# Others wait for a read that is under way: so many uids are 5 ms of a server's time.
_TOGETHER = 500

Refuse = Callable[[str, int, str], FencedError]
"""Makes the refusal of a call that has not run, of a uid, an epoch and a reason."""


class _Asked(NamedTuple):
    """A uid that is to be confirmed under an epoch, and what all who wait for that wait for."""

    uid: str
    epoch: int
    flight: Future[None]


class _Asking(NamedTuple):
    """What held when links were asked for: answers count for that alone."""

    term: int
    incarnation: int
    at: float


class Confirming:
    """Asks Redis about uids, and takes in what it says. Thread-safe.

    Each raises `FencedError` if this pod does not own the uid, `StoreUnavailableError` if that
    can't be confirmed, and what `on_acquire` raises.
    """

    def __init__(
        self,
        namespace: Surroundings,
        service: str,
        held: Holdings,
        admission: Admission,
        hooks: Hooks,
        refuse: Refuse,
    ) -> None:
        self._namespace = namespace
        self._service = service
        self._held = held
        self._admission = admission
        self._hooks = hooks
        self._refuse = refuse
        self._lock = threading.Lock()
        self._flights: dict[tuple[str, int], Future[None]] = {}
        self._asked: list[_Asked] = []
        # Not the event loop's default threads: the user's hooks may need those to return.
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="ray_route-read")

    # Ways in.

    def here(self, uid: str, epoch: int, deadline: Deadline) -> None:
        """Confirm a uid, or wait for whoever does; return at the deadline."""
        flight = self._flight(uid, epoch, self._fly_soon)
        try:
            flight.result(deadline.remaining())
        except LateError:  # Python 3.10 has a builtin that is another
            if flight.done():
                flight.result()  # on_acquire's own, or it has just come

    async def soon(self, uid: str, epoch: int, deadline: Deadline) -> None:
        """Do the same without blocking the event loop, together with what its calls ask for now."""
        flight = self._flight(uid, epoch, self._read_soon)
        if await ended(flight, deadline.remaining()):
            flight.result()

    def acquire(self, uid: str, epoch: int) -> None:
        """Acquire a uid that has arrived with its state, before anybody calls it.

        Its link is read first. Whoever calls meanwhile waits for that.
        """
        mine: list[_Asked] = []
        flight = self._flight(uid, epoch, mine.append)
        if not mine:
            self._admission.unread(uid)  # should that one fail, it is asked for again
            return
        self._fly(*mine)
        if flight.done():
            flight.result()

    def _flight(self, uid: str, epoch: int, begin: Callable[[_Asked], object]) -> Future[None]:
        """Return what to wait for; `begin` has it confirmed where no interrupt of a call reaches.

        Interrupted in here, one is begun for which nobody waits.
        """
        with self._lock:
            flight = self._flights.get((uid, epoch))
            if flight is None:
                flight = Future()
                flight.set_running_or_notify_cancel()  # nobody who waits for it can cancel it
                begin(_Asked(uid, epoch, flight))
                self._flights[uid, epoch] = flight
            return flight

    def confirm(self, uid: str, epoch: int) -> Told:
        """Read a uid's link, and take in what it says; acquires nothing."""
        asking = self._asking()
        try:
            link = self._read(uid, epoch)
        except BaseException:
            self._admission.unread(uid)
            raise
        if link is None or not self._names_this(link, epoch, asking):
            self._admission.denied(uid, epoch, asking.term)
            raise self._refuse(uid, epoch, "the directory does not confirm it")
        return self._admission.confirmed(uid, epoch, link, asking.at, asking.term)

    def _asking(self) -> _Asking:
        return _Asking(self._held.term, self._held.lease.incarnation, now())

    def _names_this(self, link: Link, epoch: int, asking: _Asking) -> bool:
        mine = (self._held.pod, asking.incarnation, epoch)
        return (link.pod, link.incarnation, link.epoch) == mine

    # One by one.

    def _fly_soon(self, asked: _Asked) -> None:
        self._readers.submit(self._fly, asked)

    def _fly(self, asked: _Asked) -> None:
        """Read the link; run `on_acquire` if the uid is new here; let all who wait go on."""
        try:
            told = self.confirm(asked.uid, asked.epoch)
            if told is Told.WAIT:  # for an export of its state, or another who acquires it
                time.sleep(POLL_S)
        except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it
            self._arrived(asked, error)
        else:
            self._go_on(asked, told)

    def _go_on(self, asked: _Asked, told: Told) -> None:
        if told is not Told.ACQUIRE:
            self._arrived(asked, None)
            return
        try:
            state = self._admission.state_of(asked.uid)
            self._hooks.start("on_acquire", asked.uid, partial(self._acquired, asked), state)
        except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it
            self._arrived(asked, error)

    def _acquired(self, asked: _Asked, error: BaseException | None, _: object) -> None:
        if error is None:
            self._admission.acquired(asked.uid, asked.epoch)
        else:
            self._admission.not_acquired(asked.uid, asked.epoch)
        self._arrived(asked, error)

    def _arrived(self, asked: _Asked, error: BaseException | None) -> None:
        with self._lock:
            if self._flights.get((asked.uid, asked.epoch)) is asked.flight:
                del self._flights[asked.uid, asked.epoch]
        if error is None:
            asked.flight.set_result(None)
        else:
            asked.flight.set_exception(error)

    def _read(self, uid: str, epoch: int) -> Link | None:
        """Read a link; one whose lease is over is refreshed first, for it is in use.

        One that is missing, too: where Redis' clock has stepped the router writes it back then.
        Raises `FencedError` where no router says what holds: nothing is given up for that.
        """
        namespace, deadline = self._namespace, Deadline.after(READ_S)
        shard = namespace.keys.shard(uid)

        def read() -> Link | None:
            return run(namespace.read(shard, [(self._service, uid)]), deadline)[0]

        link = read()
        if link is None or link.lease_s <= 0:
            self._have_refreshed(uid, epoch if link is None else link.epoch)
            link = read()
        if link is not None and link.epoch < epoch:
            # Epochs don't go back: the server was replaced, unless a router vouches for it now.
            namespace.reads.doubt(shard)
            link = read()
        return link

    def _have_refreshed(self, uid: str, epoch: int) -> None:
        asking = self._namespace.ask("report_use", self._service, {uid: epoch})
        try:
            run(asking, Deadline.after(_ROUTER_S))
        except (RouteTimeoutError, RouterUnavailableError) as error:
            reason = f"its link has run out, and no router has said more within {_ROUTER_S:g} s"
            raise self._refuse(uid, epoch, reason) from error

    # Many by one read. What that does not settle well goes the way of one that comes alone.

    def _read_soon(self, asked: _Asked) -> None:
        asyncio.get_running_loop().call_soon(self._read_asked)
        self._asked.append(asked)

    def _read_asked(self) -> None:
        """Read what has been asked since; it may be nothing: each who asks has this called."""
        with self._lock:
            some, self._asked = self._asked[:_TOGETHER], self._asked[_TOGETHER:]
        try:
            if some:
                self._read_all(some)
        except BaseException:  # nobody may wait for ever
            for asked in some:
                self._fly_soon(asked)
            raise

    def _read_all(self, some: Sequence[_Asked]) -> None:
        by_shard: defaultdict[int, list[_Asked]] = defaultdict(list)
        for asked in some:
            by_shard[self._namespace.keys.shard(asked.uid)].append(asked)
        parts = [
            Part(shard, [(self._service, asked.uid) for asked in of_shard])
            for shard, of_shard in by_shard.items()
        ]
        groups, asking = list(by_shard.values()), self._asking()
        readings = self._namespace.reads.ask(parts)
        readings.add_done_callback(partial(self._take_in, groups, asking))

    def _take_in(
        self, groups: Sequence[list[_Asked]], asking: _Asking, readings: Future[Readings]
    ) -> None:
        """Go on in the thread that reads, whoever waits for that: nothing here waits."""
        for asked, link in _links(groups, readings):
            told = self._told(asked, link, asking)
            if told is None or told is Told.WAIT:
                self._fly_soon(asked)
            else:
                self._go_on(asked, told)

    def _told(self, asked: _Asked, link: object, asking: _Asking) -> Told | None:
        """Take in one link if it confirms the uid; else say nothing."""
        if not isinstance(link, Link) or link.lease_s <= 0:
            return None
        if not self._names_this(link, asked.epoch, asking):
            return None
        return self._admission.confirmed(asked.uid, asked.epoch, link, asking.at, asking.term)


def _links(
    groups: Sequence[list[_Asked]], readings: Future[Readings]
) -> Iterator[tuple[_Asked, object]]:
    """Pair what was asked of each shard with its links; with None, if that was not answered."""
    answers: Readings = [None] * len(groups) if readings.exception() else readings.result()
    for group, answer in zip(groups, answers, strict=True):
        is_told = answer is not None and not isinstance(answer, Exception)
        good = is_told and answer.reply.status == "ok"  # type: ignore[union-attr]
        links: Sequence[object] = answer.reply.links if good else [None] * len(group)  # type: ignore[union-attr]
        yield from zip(group, links, strict=True)
