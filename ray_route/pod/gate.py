"""The gate of a pod: which calls may enter, and whose results may leave.

Asks Redis at a uid's first call and whenever the pod's own lease on it has run out.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ray_route.clock import Deadline, now
from ray_route.errors import FencedError, PodUnavailableError, RouteError
from ray_route.model import Link
from ray_route.pod.admission import Admissions, Verdict
from ray_route.pod.command_loop import Hook
from ray_route.runtime.metrics import POD_REFUSALS, meter
from ray_route.runtime.namespace import Namespace
from ray_route.runtime.waiting import run

_ACQUIRE_S = 30.0
_ADMITTERS = 32


class Gate:
    """Admits calls for the incarnation that `admissions` is of."""

    def __init__(
        self,
        namespace: Namespace,
        service: str,
        pod: int,
        admissions: Admissions,
        on_acquire: Hook | None,
    ) -> None:
        self.admissions = admissions
        # Not the event loop's default threads: the user's hooks may need those to return.
        self.admitters = ThreadPoolExecutor(_ADMITTERS, thread_name_prefix="ray_route-admit")
        self._namespace = namespace
        self._ids: dict[str, Any] = {
            "namespace": namespace.name,
            "service": service,
            "pod": pod,
        }
        self._service = service
        self._meter = meter(namespace.name)
        self._on_acquire = on_acquire
        self._confirming: dict[tuple[str, int], Future[float]] = {}
        self._lock = threading.Lock()

    def try_enter(self, uid: str, epoch: int, incarnation: int) -> Admissions | None:
        """Begin to serve a call if that takes no I/O; None if Redis must be asked."""
        admissions = self.admissions
        verdict, reason = admissions.enter(uid, epoch, incarnation)
        if verdict is Verdict.REFUSE:
            raise self._fenced(uid, epoch, reason, may_have_run=False)
        return admissions if verdict is Verdict.ADMIT else None

    def enter(self, uid: str, epoch: int, incarnation: int) -> Admissions:
        """Begin to serve a call, asking Redis if need be; end it with `Admissions.leave`."""
        admissions = self.try_enter(uid, epoch, incarnation)
        if admissions is not None:
            return admissions
        admissions = self.admissions
        reason = admissions.take(uid, epoch, self._confirm_once(admissions, uid, epoch))
        if reason:
            raise self._fenced(uid, epoch, reason, may_have_run=False)
        return admissions

    def still_serves(self, admissions: Admissions, uid: str, epoch: int) -> bool:
        """True if the result of a call may leave; False if Redis must be asked first."""
        verdict, reason = admissions.still(uid, epoch)
        if verdict is Verdict.REFUSE:
            raise self._fenced(uid, epoch, reason, may_have_run=True)
        return verdict is Verdict.ADMIT

    def recheck(self, admissions: Admissions, uid: str, epoch: int) -> None:
        """Return if the result of a call that has run may leave; else raise `FencedError`."""
        if self.still_serves(admissions, uid, epoch):
            return
        try:
            self._confirm_once(admissions, uid, epoch)
        except RouteError as error:
            reason = getattr(error, "reason", str(error))
            raise self._fenced(uid, epoch, reason, may_have_run=True) from error

    def _confirm_once(self, admissions: Admissions, uid: str, epoch: int) -> float:
        """Confirm a uid's link from Redis; return when that lease ends.

        Callers of the same uid wait for the first of them.
        """
        mine: Future[float] = Future()
        with self._lock:
            first = self._confirming.setdefault((uid, epoch), mine)
        if first is not mine:
            try:
                return first.result(_ACQUIRE_S)
            except TimeoutError as error:
                raise PodUnavailableError(
                    reason=f"on_acquire({uid!r}) takes too long", may_have_run=False, **self._ids
                ) from error
        try:
            lease_end = self._confirm(admissions, uid, epoch)
        except BaseException as error:
            mine.set_exception(error)
            raise
        else:
            mine.set_result(lease_end)
            return lease_end
        finally:
            with self._lock:
                del self._confirming[uid, epoch]

    def _confirm(self, admissions: Admissions, uid: str, epoch: int) -> float:
        asked_at = now()
        link = self._read(uid)
        reason = admissions.judge_link(epoch, link)
        if reason or link is None:
            raise self._fenced(uid, epoch, reason, may_have_run=False)
        lease_end = asked_at + link.lease_s
        acquired = admissions.begin_acquire(uid, epoch)
        try:
            if acquired and self._on_acquire is not None:
                self._on_acquire(uid)
        except BaseException:
            admissions.leave(uid)
            admissions.forget(uid, epoch)
            raise
        reason = admissions.hold(uid, epoch, lease_end, persistent=link.persistent)
        if acquired:
            admissions.leave(uid)
        if reason:
            raise self._fenced(uid, epoch, reason, may_have_run=False)
        return lease_end

    def _read(self, uid: str) -> Link | None:
        namespace = self._namespace
        shard = namespace.keys.shard(uid)
        asked = namespace.read(shard, [(self._service, uid)])
        return run(asked, Deadline.after(_ACQUIRE_S))[0]

    def _fenced(self, uid: str, epoch: int, reason: str, *, may_have_run: bool) -> FencedError:
        self._meter.count(POD_REFUSALS, self._service, str(self._ids["pod"]))
        return FencedError(
            reason=reason, may_have_run=may_have_run, uid=uid, epoch=epoch, **self._ids
        )
