"""An agent's talk with its router: fetches orders, obeys them, and reports the uids in use."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray

from ray_route.clock import Deadline, now
from ray_route.errors import RouteError
from ray_route.gateway import Gateway
from ray_route.model import RoutingState
from ray_route.pod.admission import Admissions
from ray_route.router.orders import (
    Cap,
    Close,
    Memory,
    Open,
    Order,
    Recall,
    Release,
    Reopen,
    Show,
)
from ray_route.steps import run

logger = logging.getLogger(__name__)

_FETCH_S = 10.0
_SLACK_S = 10.0
_RETRY_S = 0.2
_RELEASERS = 16

# A temporary uid that nobody has used for this share of its TTL is given up: early enough that
# its `on_release` has run before its link could end and be another's.
_IDLE_SHARE = 2 / 3
_REVIEW_SHARE = 1 / 10

Hook = Callable[[str], Any]


class Attendance:
    """Serves one incarnation's orders until it ends."""

    def __init__(
        self,
        gateway: Gateway,
        service: str,
        pod: int,
        admissions: Admissions,
        on_release: Hook | None,
    ) -> None:
        self.state = RoutingState.READY
        self._gateway = gateway
        self._address = (service, pod, admissions.membership.incarnation)
        self._admissions = admissions
        self._on_release = on_release
        self._router = 0
        self._ended = threading.Event()
        self._releasers = ThreadPoolExecutor(_RELEASERS, thread_name_prefix="ray_route-release")
        for work in (self._fetch_orders, self._report_use):
            threading.Thread(target=work, name="ray_route-attendance", daemon=True).start()

    def end(self) -> None:
        """Stop attending; does not wait."""
        self._ended.set()
        self._releasers.shutdown(wait=False)

    def _fetch_orders(self) -> None:
        while not self._ended.is_set():
            try:
                router, state, orders = self._ask("fetch_orders", self._address, _FETCH_S)
                self._follow(router, state)
                for number, order in orders:
                    self._obey(router, number, order)
            except Exception as error:  # noqa: BLE001 - without orders, nothing here can move
                # Not by way of `Gateway.ask`: the router's restart must be noticed at once, for
                # a new one knows of this agent only by this call.
                logger.debug("orders can't be fetched: %r", error)
                self._ended.wait(_RETRY_S)
                self._find_router()

    def _find_router(self) -> None:
        try:
            self._gateway.find_router()
        except Exception as error:  # noqa: BLE001 - the next attempt may do better
            logger.warning("the router can't be found: %r", error)

    def _ask(self, method: str, *args: Any) -> Any:
        ref = getattr(self._gateway.router, method).remote(*args)
        return ray.get(ref, timeout=_FETCH_S + _SLACK_S)

    def _follow(self, router: int, state: RoutingState) -> None:
        """Take in which router speaks, and the state that the directory has for this pod."""
        self.state = state
        if state is RoutingState.SHUTDOWN:
            self._admissions.shut()
        if self._router and router > self._router:
            # A new router writes only once no older one can: what an older one asked for and
            # did not finish will never be finished.
            self._admissions.reopen_all()
        self._router = max(router, self._router)

    def _obey(self, router: int, number: int, order: Order) -> None:
        if self._ended.is_set():
            return
        if isinstance(order, Recall):
            self._answer(number, self._recall(order))
        elif router != self._router:
            return
        elif isinstance(order, Release):
            # These wait for calls and hooks; all others are done at once, and in order.
            deadline = Deadline.after(order.timeout_s)
            self._releasers.submit(self._release_and_answer, router, number, order, deadline)
        else:
            self._answer(number, self._carry_out(order))

    def _answer(self, number: int, result: Any) -> None:
        try:
            self._ask("take_answer", self._address, number, result)
        except (RouteError, ray.exceptions.RayError) as error:
            logger.warning("an answer did not reach the router: %r", error)

    def _carry_out(self, order: Order) -> Any:
        admissions = self._admissions
        if isinstance(order, Reopen):
            admissions.reopen(order.uids, order.order)
        elif isinstance(order, Cap):
            for uid, epoch in order.uids.items():
                admissions.cap(uid, epoch, now() + order.lease_s)
        elif isinstance(order, Close):
            admissions.close()
        elif isinstance(order, Open):
            admissions.open()
        if isinstance(order, (Show, Close, Open)):
            return admissions.holdings(), admissions.running
        return True

    def _recall(self, order: Recall) -> Memory:
        held = self._admissions.kinds() if self._admissions.membership.is_alive() else {}
        shard_of = self._gateway.keys.shard
        lost = {uid: kind for uid, kind in held.items() if shard_of(uid) in order.shards}
        return Memory(self._gateway.all_seen(), lost)

    def _release_and_answer(
        self, router: int, number: int, order: Release, deadline: Deadline
    ) -> None:
        given_up: list[str] = []
        for uid, epoch in order.uids.items():
            stale = router != self._router or self._ended.is_set()
            if stale or (given_up and deadline.remaining() == 0):
                break
            if self._release(uid, epoch, deadline, order.order):
                given_up.append(uid)
        self._answer(number, given_up)

    def _release(self, uid: str, epoch: int, deadline: Deadline, order: int = 0) -> bool:
        """Give one uid up; the user's hook runs after its last call and before anyone else's."""
        if not self._admissions.release(uid, epoch, deadline, order):
            return False
        if self._on_release is not None and self._admissions.holds(uid, epoch):
            try:
                self._on_release(uid)
            except Exception:
                logger.exception("on_release(%r) failed; the uid is given up all the same", uid)
        self._admissions.forget(uid, epoch)
        return True

    def _report_use(self) -> None:
        ttl_s = self._gateway.config.ttl_s
        reported_at = now()
        while not self._ended.wait(ttl_s * _REVIEW_SHARE):
            began = now()
            used, idle = self._admissions.review(reported_at, ttl_s * _IDLE_SHARE)
            try:
                self._give_up_idle(idle)
                self._refresh_used(used, ttl_s)
                reported_at = began
            except Exception as error:  # noqa: BLE001 - the next report makes up for it
                logger.warning("uids in use could not be reported: %r", error)

    def _give_up_idle(self, idle: dict[str, int]) -> None:
        at_once = Deadline.after(0)
        gone = {uid: epoch for uid, epoch in idle.items() if self._release(uid, epoch, at_once)}
        if gone:
            asked = self._gateway.ask("take_back", self._address, gone)
            run(asked, Deadline.after(_FETCH_S))

    def _refresh_used(self, used: dict[str, int], ttl_s: float) -> None:
        """Keep links in use alive, and let go of uids whose link is another by now."""
        if not used:
            return
        asked = self._gateway.ask("report_use", self._address[0], used)
        ended: dict[str, int] = run(asked, Deadline.after(max(ttl_s * _REVIEW_SHARE, 1.0)))
        for uid, epoch in ended.items():
            self._admissions.cap(uid, epoch, now())
            self._release(uid, epoch, Deadline.after(0))
