"""The gate of a pod: which calls may enter, and whose results may leave.

Asks Redis at a uid's first call and whenever the pod's own lease on it has run out.
"""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as LateError
from functools import partial
from typing import Any
from weakref import WeakSet

from ray_route.clock import Deadline, now
from ray_route.errors import (
    FencedError,
    PodUnavailableError,
    RouteError,
    RouterUnavailableError,
    RouteTimeoutError,
)
from ray_route.model import Link
from ray_route.pod.admission import Admission, Told, Verdict
from ray_route.pod.exports import Exports
from ray_route.pod.holdings import Holdings
from ray_route.pod.hooks import Hooks
from ray_route.runtime.metrics import POD_REFUSALS, meter
from ray_route.runtime.namespace import Namespace
from ray_route.runtime.waiting import run

_READ_S = 30.0
# A call that a pod turns away can go on; one that waits here for a router can't.
_ROUTER_S = 2.0
# A call waits so long for `on_acquire`, which goes on: its caller has given up long before.
_PATIENCE_S = 600.0
_POLL_S = 0.02
_READERS = 32

_Key = tuple[str, int]


class Gate:
    """Admits calls to a pod's uids."""

    def __init__(self, namespace: Namespace, service: str, held: Holdings, hooks: Hooks) -> None:
        self.held = held
        self.admission = Admission(held)
        self.exports = Exports(held, drops_unpicklable=hooks.drops_unpicklable)
        self._namespace = namespace
        self._service = service
        self._meter = meter(namespace.name)
        self._hooks = hooks
        self._lock = threading.Lock()
        self._flights: dict[_Key, Future[None]] = {}
        self._refusals: WeakSet[FencedError] = WeakSet()
        # Not the event loop's default threads: the user's hooks may need those to return.
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="ray_route-read")

    @property
    def _ids(self) -> dict[str, Any]:
        ids = {"namespace": self._namespace.name, "service": self._service}
        return {**ids, "pod": self.held.pod}

    # Entering.

    def enter(self, uid: str, epoch: int, incarnation: int, call: object = None) -> None:
        """Begin to serve a call, asking Redis if need be; end it with `leave`.

        Where it may be interrupted in here, see `surely_left`.

        Raises `FencedError` if this pod does not own the uid, `StoreUnavailableError` if that can't
        be confirmed, and what `on_acquire` raises.
        """
        deadline = Deadline.after(_PATIENCE_S)
        while (verdict := self._verdict(uid, epoch, incarnation, call)) is not Verdict.ADMIT:
            if verdict is Verdict.WAIT:
                time.sleep(_POLL_S)
            else:
                self._confirm_here(uid, epoch, deadline)
            self._check(uid, deadline)

    async def enter_async(
        self,
        uid: str,
        epoch: int,
        incarnation: int,
        *,
        in_turn: bool = False,
        due: Deadline | None = None,
    ) -> None:
        """Do the same without blocking the event loop; see `Admission.enter` for `in_turn`.

        What is shared goes on if this call is cancelled; the call is counted by itself alone. Past
        `due` it raises `PodUnavailableError`.
        """
        longest_s = _PATIENCE_S if due is None else min(due.remaining(), _PATIENCE_S)
        deadline = Deadline.after(longest_s)
        while True:
            verdict = self._verdict(uid, epoch, incarnation, in_turn=in_turn)
            if verdict is Verdict.ADMIT:
                return
            if verdict is Verdict.WAIT:
                await asyncio.sleep(_POLL_S)
            else:
                await self._confirm_soon(uid, epoch, deadline)
            self._check(uid, deadline)

    def leave(self, uid: str, call: object = None) -> None:
        """End a call."""
        self.admission.leave(uid, call)

    def refusal(self, uid: str, epoch: int, incarnation: int) -> FencedError | None:
        """Return why a call that waits for its turn is refused by now; None: it is not."""
        reason = self.admission.refusal(uid, epoch, incarnation)
        return self._fenced(uid, epoch, reason, may_have_run=False) if reason else None

    def _verdict(
        self,
        uid: str,
        epoch: int,
        incarnation: int,
        call: object = None,
        *,
        in_turn: bool = False,
    ) -> Verdict:
        verdict, reason = self.admission.enter(uid, epoch, incarnation, call, in_turn=in_turn)
        if verdict is Verdict.REFUSE:
            raise self._fenced(uid, epoch, reason, may_have_run=False)
        return verdict

    def _check(self, uid: str, deadline: Deadline) -> None:
        if not deadline.remaining():
            raise PodUnavailableError(
                reason=f"uid {uid!r} is still being acquired, or given up by an earlier owner, "
                f"after {deadline.timeout_s:g} s",
                may_have_run=False,
                **self._ids,
            )

    # Leaving.

    def recheck(self, uid: str, epoch: int) -> None:
        """Return if the result of a call that has run may leave; else raise `FencedError`."""
        deadline = Deadline.after(_READ_S)
        while not self._still_serves(uid, epoch):
            try:
                self._confirm_here(uid, epoch, deadline)
                deadline.check(f"Redis to confirm uid {uid!r}")
            except RouteError as error:
                raise self._lost(uid, epoch, error) from error

    async def recheck_async(self, uid: str, epoch: int) -> None:
        """Do the same without blocking the event loop."""
        deadline = Deadline.after(_READ_S)
        while not self._still_serves(uid, epoch):
            try:
                await self._confirm_soon(uid, epoch, deadline)
                deadline.check(f"Redis to confirm uid {uid!r}")
            except RouteError as error:
                raise self._lost(uid, epoch, error) from error

    def _still_serves(self, uid: str, epoch: int) -> bool:
        """True if the result of a call may leave; False if Redis must be asked first."""
        verdict, reason = self.admission.still(uid, epoch)
        if verdict is Verdict.REFUSE:
            raise self._fenced(uid, epoch, reason, may_have_run=True)
        return verdict is Verdict.ADMIT

    def _lost(self, uid: str, epoch: int, error: RouteError) -> FencedError:
        return self._fenced(uid, epoch, getattr(error, "reason", str(error)), may_have_run=True)

    # Confirming: once for all who ask meanwhile.

    def _confirm_here(self, uid: str, epoch: int, deadline: Deadline) -> None:
        flight = self._flight(uid, epoch)
        try:
            flight.result(deadline.remaining())
        except LateError:  # Python 3.10 has a builtin that is another
            if flight.done():
                flight.result()  # on_acquire's own, or it has just come

    async def _confirm_soon(self, uid: str, epoch: int, deadline: Deadline) -> None:
        flight = self._flight(uid, epoch)
        await asyncio.wait({asyncio.wrap_future(flight)}, timeout=deadline.remaining())
        if flight.done():
            flight.result()

    def _flight(self, uid: str, epoch: int) -> Future[None]:
        """Have a uid confirmed, in a thread that no interrupt of a call reaches."""
        with self._lock:
            flight = self._flights.get((uid, epoch))
            if flight is None:
                flight = _new_flight()
                self._readers.submit(self._fly, uid, epoch, flight)
                self._flights[uid, epoch] = flight
            return flight

    def _fly(self, uid: str, epoch: int, flight: Future[None]) -> None:
        """Read the link; run `on_acquire` if the uid is new here; let all who wait go on."""
        done = partial(self._arrived, (uid, epoch), flight)
        try:
            told = self.confirm(uid, epoch)
            if told is not Told.ACQUIRE:
                if told is Told.WAIT:  # for an export of its state, or another who acquires it
                    time.sleep(_POLL_S)
                done(None)
                return
            state = self.admission.state_of(uid)
        except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it
            done(error)
            return
        acquired = partial(self._acquired, uid, epoch, done)
        self._hooks.start("on_acquire", uid, acquired, state)

    def acquire(self, uid: str, epoch: int) -> None:
        """Acquire a uid that has arrived with its state, before anybody calls it.

        Its link is read first. Whoever calls meanwhile waits for that. Raises what `enter` raises.
        """
        with self._lock:
            flight = self._flights.get((uid, epoch))
            is_mine = flight is None
            if flight is None:
                flight = self._flights[uid, epoch] = _new_flight()
        if not is_mine:
            self.admission.unread(uid)  # should that one fail, it is asked for again
            return
        self._fly(uid, epoch, flight)
        if flight.done():
            flight.result()

    def confirm(self, uid: str, epoch: int) -> Told:
        """Read a uid's link, and take in what it says; raise `FencedError` if it is another's."""
        term, incarnation, asked_at = self.held.term, self.held.lease.incarnation, now()
        try:
            link = self._read(uid, epoch)
        except BaseException:
            self.admission.unread(uid)
            raise
        mine = (self.held.pod, incarnation, epoch)
        if link is None or (link.pod, link.incarnation, link.epoch) != mine:
            self.admission.denied(uid, epoch, term)
            reason = "the directory does not confirm it"
            raise self._fenced(uid, epoch, reason, may_have_run=False)
        return self.admission.confirmed(uid, epoch, link, asked_at, term)

    def _acquired(
        self, uid: str, epoch: int, done: Any, error: BaseException | None, _: Any
    ) -> None:
        if error is None:
            self.admission.acquired(uid, epoch)
        else:
            self.admission.not_acquired(uid, epoch)
        done(error)

    def _arrived(self, key: _Key, flight: Future[None], error: BaseException | None) -> None:
        with self._lock:
            if self._flights.get(key) is flight:
                del self._flights[key]
        if error is None:
            flight.set_result(None)
        else:
            flight.set_exception(error)

    def _read(self, uid: str, epoch: int) -> Link | None:
        """Read a link; one whose lease is over is refreshed first, for it is in use.

        One that is missing, too: where Redis' clock has stepped the router writes it back then.
        Raises `FencedError` where no router says what holds: nothing is given up for that.
        """
        namespace, deadline = self._namespace, Deadline.after(_READ_S)
        shard = namespace.keys.shard(uid)
        asked = [(self._service, uid)]
        link = run(namespace.read(shard, asked), deadline)[0]
        if link is None or link.lease_s <= 0:
            self._have_refreshed(uid, epoch if link is None else link.epoch)
            link = run(namespace.read(shard, asked), deadline)[0]
        return link

    def _have_refreshed(self, uid: str, epoch: int) -> None:
        asking = self._namespace.ask("report_use", self._service, {uid: epoch})
        try:
            run(asking, Deadline.after(_ROUTER_S))
        except (RouteTimeoutError, RouterUnavailableError) as error:
            reason = f"its link has run out, and no router has said more within {_ROUTER_S:g} s"
            raise self._fenced(uid, epoch, reason, may_have_run=False) from error

    def _fenced(self, uid: str, epoch: int, reason: str, *, may_have_run: bool) -> FencedError:
        self._meter.count(POD_REFUSALS, self._service, str(self.held.pod))
        error = FencedError(
            reason=reason, may_have_run=may_have_run, uid=uid, epoch=epoch, **self._ids
        )
        self._refusals.add(error)
        return error

    def has_refused(self, error: FencedError) -> bool:
        """Return True if this gate made a refusal; user code may raise one that says the same."""
        return error in self._refusals


def _new_flight() -> Future[None]:
    flight: Future[None] = Future()
    flight.set_running_or_notify_cancel()  # nobody who waits for it can cancel it
    return flight
