"""The gate of a pod: which calls may enter, and whose results may leave.

Asks Redis at a uid's first call and whenever the pod's own lease on it has run out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any
from weakref import WeakSet

from ray_route.clock import Deadline
from ray_route.errors import FencedError, PodUnavailableError, RouteError
from ray_route.pod.admission import Admission, Verdict
from ray_route.pod.confirming import POLL_S, READ_S, Alone, Confirming, Then
from ray_route.pod.due import is_over, not_acquired
from ray_route.pod.exports import Exports
from ray_route.pod.holdings import Holdings
from ray_route.pod.hooks import Hooks
from ray_route.pod.surroundings import Surroundings
from ray_route.runtime.metrics import POD_REFUSALS, meter

# A call waits so long for `on_acquire`, which goes on: its caller has given up long before.
_PATIENCE_S = 600.0


class Gate:
    """Admits calls to a pod's uids."""

    def __init__(self, namespace: Surroundings, service: str, held: Holdings, hooks: Hooks) -> None:
        self.held = held
        self.admission = Admission(held)
        self.exports = Exports(held, drops_unpicklable=hooks.drops_unpicklable)
        self._namespace = namespace
        self._service = service
        self._meter = meter(namespace.name)
        self._confirming = Confirming(
            namespace, service, held, self.admission, hooks, self._unconfirmed
        )
        self._refusals: WeakSet[FencedError] = WeakSet()

    @property
    def _ids(self) -> dict[str, Any]:
        ids = {"namespace": self._namespace.name, "service": self._service}
        return {**ids, "pod": self.held.pod}

    # Entering.

    def enter(
        self,
        uid: str,
        epoch: int,
        incarnation: int,
        call: object = None,
        *,
        due: Deadline | None = None,
    ) -> None:
        """Begin to serve a call, asking Redis if need be; end it with `leave`.

        Where it may be interrupted in here, see `surely_left`.

        Raises `FencedError` if this pod does not own the uid, `StoreUnavailableError` if that can't
        be confirmed, what `on_acquire` raises, past `due` `RouteTimeoutError`, and
        `PodUnavailableError` if nobody gives up for so long.
        """
        deadline: Deadline | None = None
        while (verdict := self._verdict(uid, epoch, incarnation, call)) is not Verdict.ADMIT:
            deadline = deadline or _patience(due)
            if verdict is Verdict.WAIT:
                time.sleep(POLL_S)
            else:
                self._confirming.here(uid, epoch, deadline)
            self._check(uid, deadline, due)

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

        What is shared goes on if this call is cancelled; the call is counted by itself alone.
        """
        deadline: Deadline | None = None
        while True:
            verdict = self._verdict(uid, epoch, incarnation, in_turn=in_turn)
            if verdict is Verdict.ADMIT:
                return
            deadline = deadline or _patience(due)
            if verdict is Verdict.WAIT:
                await asyncio.sleep(POLL_S)
            else:
                await self._confirming.soon(uid, epoch, deadline)
            self._check(uid, deadline, due)

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

    def _check(self, uid: str, deadline: Deadline, due: Deadline | None) -> None:
        if deadline.remaining():
            return
        if is_over(due):
            raise not_acquired(due, self._service, uid)
        raise PodUnavailableError(
            reason=f"uid {uid!r} is still being acquired, or given up by an earlier owner, "
            f"after {deadline.timeout_s:g} s",
            may_have_run=False,
            **self._ids,
        )

    # Leaving.

    def recheck(self, uid: str, epoch: int, *, has_run: bool = True) -> None:
        """Return if the result of a call that has run may leave; else raise `FencedError`.

        Or if one that has not run may begin, which has waited since it was admitted.
        """
        deadline: Deadline | None = None
        while not self._still_serves(uid, epoch, has_run=has_run):
            deadline = deadline or Deadline.after(READ_S)
            try:
                self._confirming.here(uid, epoch, deadline)
                deadline.check(f"Redis to confirm uid {uid!r}")
            except RouteError as error:
                raise self._lost(uid, epoch, error, has_run=has_run) from error

    async def recheck_async(self, uid: str, epoch: int) -> None:
        """Do the same without blocking the event loop."""
        deadline: Deadline | None = None
        while not self._still_serves(uid, epoch):
            deadline = deadline or Deadline.after(READ_S)
            try:
                await self._confirming.soon(uid, epoch, deadline)
                deadline.check(f"Redis to confirm uid {uid!r}")
            except RouteError as error:
                raise self._lost(uid, epoch, error) from error

    def _still_serves(self, uid: str, epoch: int, *, has_run: bool = True) -> bool:
        """True if the result of a call may leave; False if Redis must be asked first."""
        verdict, reason = self.admission.still(uid, epoch)
        if verdict is Verdict.REFUSE:
            raise self._fenced(uid, epoch, reason, may_have_run=has_run)
        return verdict is Verdict.ADMIT

    def _lost(
        self, uid: str, epoch: int, error: RouteError, *, has_run: bool = True
    ) -> FencedError:
        reason = getattr(error, "reason", str(error))
        return self._fenced(uid, epoch, reason, may_have_run=has_run)

    # What others than calls ask for.

    def acquire_all(self, uids: Mapping[str, int], then: Then, alone: Alone) -> None:
        """See `Confirming.acquire_all`."""
        self._confirming.acquire_all(uids, then, alone)

    def confirm_all(self, uids: Mapping[str, int], alone: Alone) -> None:
        """See `Confirming.confirm_all`."""
        self._confirming.confirm_all(uids, alone)

    # Refusing.

    def _unconfirmed(self, uid: str, epoch: int, reason: str) -> FencedError:
        return self._fenced(uid, epoch, reason, may_have_run=False)

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


def _patience(due: Deadline | None) -> Deadline:
    return Deadline.after(_PATIENCE_S if due is None else min(due.remaining(), _PATIENCE_S))
