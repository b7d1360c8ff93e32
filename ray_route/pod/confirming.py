"""Confirming: what Redis says of a pod's uids; those that are new here are acquired.

Once for all who ask for a uid meanwhile; and for all uids that calls of an event loop ask for at
once by one read.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as LateError
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import ray

from ray_route.clock import Deadline
from ray_route.errors import (
    FencedError,
    RouteError,
    RouterUnavailableError,
    RouteTimeoutError,
)
from ray_route.model import Link
from ray_route.pod.admission import Admission, Told
from ray_route.pod.holdings import Holdings
from ray_route.pod.hooks import Hooks, unacquired
from ray_route.pod.links_together import TOGETHER, Asking, asking, read_together
from ray_route.pod.surroundings import Surroundings
from ray_route.runtime.futures import Outcome
from ray_route.runtime.loop_posts import ended
from ray_route.runtime.threads import Threads
from ray_route.runtime.waiting import run
from ray_route.runtime.worker import beginner

READ_S = 30.0
# A call that a pod turns away can go on; one that waits here for a router can't.
_ROUTER_S = 2.0
POLL_S = 0.02
_READERS = 32

Alone = Callable[..., object]
"""Has a function called with what follows, in a thread where it may wait."""
Then = Callable[[str, "BaseException | None"], None]

Refuse = Callable[[str, int, str], FencedError]
"""Makes the refusal of a call that has not run, of a uid, an epoch and a reason."""


class _Asked(NamedTuple):
    """A uid that is to be confirmed under an epoch, and what all who wait for that wait for."""

    uid: str
    epoch: int
    flight: Future[None]


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
        self._read_all = partial(read_together, namespace, service, held)
        self._lock = threading.Lock()
        self._flights: dict[tuple[str, int], Future[None]] = {}
        self._asked: list[_Asked] = []
        self._beginner = beginner()  # made here: a call may be interrupted
        # Not the event loop's default threads: the user's hooks may need those to return.
        self._readers = Threads(_READERS, "ray_route-read")

    # Ways in.

    def here(self, uid: str, epoch: int, deadline: Deadline) -> None:
        """Confirm a uid, or wait for whoever does; return at the deadline."""
        begin = self._beginner.put
        flight = self._flight(uid, epoch, lambda asked: begin(partial(self._fly_soon, asked)))
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

    def acquire_all(self, uids: Mapping[str, int], then: Then, alone: Alone) -> None:
        """Acquire uids that have arrived with their states, before anybody calls them.

        Their links are read first, together; where that does not settle one well, by itself, in a
        thread of `alone`. Whoever calls one meanwhile waits for that. `then` is told, of each, what
        it was not acquired for.
        """
        mine: list[_Asked] = []
        for uid, epoch in uids.items():
            known = len(mine)
            flight = self._flight(uid, epoch, mine.append)
            if len(mine) == known:
                self._admission.unread(uid)  # should that one fail, it is asked for again
            else:
                flight.add_done_callback(partial(_tell, then, uid))
        self._read_all(mine, partial(self._go_on_with, partial(alone, self._fly)))

    def confirm_all(self, uids: Mapping[str, int], alone: Alone) -> None:
        """Read uids' links together, and take in what they say; acquires nothing.

        What that does not settle well is read by itself, in a thread of `alone`.
        """
        some = [_Asked(uid, epoch, Future()) for uid, epoch in uids.items()]
        self._read_all(some, partial(self._confirm_read, alone))

    def _confirm_read(self, alone: Alone, asked: _Asked, link: object, began: Asking) -> None:
        if self._told(asked, link, began) is None:
            try:
                alone(self._confirm_alone, asked)
            except RuntimeError:  # there is no thread for it, now
                self._admission.unread(asked.uid)

    def _confirm_alone(self, asked: _Asked) -> None:
        with suppress(RouteError, ray.exceptions.RayError):  # it is asked for again
            self.confirm(asked.uid, asked.epoch)

    def _flight(self, uid: str, epoch: int, begin: Callable[[_Asked], object]) -> Future[None]:
        """Return what to wait for; `begin` has it confirmed where no interrupt of a call reaches.

        Interrupted in here, one is begun for which nobody waits.
        """
        with self._lock:
            flight = self._flights.get((uid, epoch))
            if flight is None:
                flight = Outcome()
                flight.set_running_or_notify_cancel()  # nobody who waits for it can cancel it
                begin(_Asked(uid, epoch, flight))
                self._flights[uid, epoch] = flight
            return flight

    def confirm(self, uid: str, epoch: int) -> Told:
        """Read a uid's link, and take in what it says; acquires nothing."""
        began = asking(self._held)
        try:
            link = self._read(uid, epoch)
        except BaseException:
            self._admission.unread(uid)
            raise
        if link is None or not began.is_named_by(link, epoch):
            self._admission.denied(uid, epoch, began.term)
            raise self._refuse(uid, epoch, "the directory does not confirm it")
        return self._admission.confirmed(uid, epoch, link, began.at, began.term)

    # One by one.

    def _fly_soon(self, asked: _Asked) -> None:
        try:
            self._readers.begin(self._fly, asked)
        except RuntimeError as error:  # the system has no more threads for us, now
            self._arrived(asked, unacquired(asked.uid, error))

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
        if error is not None and not isinstance(error, Exception):
            error = unacquired(asked.uid, error)
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
        with self._held.lock:
            ending = self._held.scheduled.at(uid, epoch) < math.inf
        asking = self._namespace.ask("report_use", self._service, {uid: epoch}, ending=ending)
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
            some, self._asked = self._asked[:TOGETHER], self._asked[TOGETHER:]
        try:
            if some:
                self._read_all(some, partial(self._go_on_with, self._fly_soon))
        except BaseException:  # nobody may wait for ever
            for asked in some:
                self._fly_soon(asked)
            raise

    def _go_on_with(
        self, alone: Callable[[_Asked], object], asked: _Asked, link: object, began: Asking
    ) -> None:
        told = self._told(asked, link, began)
        if told is not None and told is not Told.WAIT:
            self._go_on(asked, told)
            return
        try:
            alone(asked)
        except RuntimeError as error:  # there is no thread for it, now
            self._admission.unread(asked.uid)
            self._arrived(asked, unacquired(asked.uid, error))

    def _told(self, asked: _Asked, link: object, began: Asking) -> Told | None:
        """Take in one link if it confirms the uid; else say nothing."""
        if not isinstance(link, Link) or link.lease_s <= 0:
            return None
        if not began.is_named_by(link, asked.epoch):
            return None
        return self._admission.confirmed(asked.uid, asked.epoch, link, began.at, began.term)


def _tell(then: Then, uid: str, flight: Future[None]) -> None:
    then(uid, flight.exception())
