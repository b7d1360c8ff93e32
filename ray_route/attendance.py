"""An agent's talk with its router: fetches orders, obeys them, and reports the uids in use."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray

from ray_route.admission import Admissions
from ray_route.clock import Deadline, now
from ray_route.errors import RouteError
from ray_route.gateway import Gateway
from ray_route.orders import Cap, Close, Order, Release, Reopen, Show
from ray_route.steps import run

logger = logging.getLogger(__name__)

_FETCH_S = 10.0
_SLACK_S = 10.0
_RETRY_S = 0.2
_HANDS = 4

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
        self._gateway = gateway
        self._address = (service, pod, admissions.membership.incarnation)
        self._admissions = admissions
        self._on_release = on_release
        self._router = 0
        self._ended = threading.Event()
        self._hands = ThreadPoolExecutor(_HANDS, thread_name_prefix="ray_route-orders")
        for work in (self._fetch_orders, self._report_use):
            threading.Thread(target=work, name="ray_route-attendance", daemon=True).start()

    def end(self) -> None:
        """Stop attending; does not wait."""
        self._ended.set()
        self._hands.shutdown(wait=False)

    def _fetch_orders(self) -> None:
        while not self._ended.is_set():
            try:
                router, orders = self._ask("fetch_orders", self._address, _FETCH_S)
            except (RouteError, ray.exceptions.RayError):
                # Not by way of `Gateway.ask`: the router's restart must be noticed at once, for
                # a new one knows of this agent only by this call.
                self._ended.wait(_RETRY_S)
                self._gateway.find_router()
                continue
            if router != self._router:
                # A new router writes only once no older one can: what an older one asked for
                # and did not finish will never be finished.
                self._admissions.reopen_all()
                self._router = router
            for number, order in orders:
                if not self._ended.is_set():
                    self._hands.submit(self._obey, number, order)

    def _ask(self, method: str, *args: Any) -> Any:
        ref = getattr(self._gateway.router, method).remote(*args)
        return ray.get(ref, timeout=_FETCH_S + _SLACK_S)

    def _obey(self, number: int, order: Order) -> None:
        try:
            result = self._carry_out(order)
            self._ask("take_answer", self._address, number, result)
        except (RouteError, ray.exceptions.RayError) as error:
            logger.warning("an order of the router went unanswered: %r", error)
        except Exception:
            logger.exception("an order of the router failed: %s", type(order).__name__)

    def _carry_out(self, order: Order) -> Any:
        admissions = self._admissions
        if isinstance(order, Release):
            return self._release(order)
        if isinstance(order, Reopen):
            for uid, epoch in order.uids.items():
                admissions.reopen(uid, epoch)
            return None
        if isinstance(order, Cap):
            for uid, epoch in order.uids.items():
                admissions.cap(uid, epoch, now() + order.lease_s)
            return True
        if isinstance(order, Close):
            admissions.close()
        assert isinstance(order, (Close, Show))
        return admissions.holdings(), admissions.running

    def _release(self, order: Release) -> list[str]:
        deadline = Deadline.after(order.timeout_s)
        return [uid for uid, epoch in order.uids.items() if self._release_one(uid, epoch, deadline)]

    def _release_one(self, uid: str, epoch: int, deadline: Deadline) -> bool:
        """Give one uid up; the user's hook runs after its last call and before anyone else's."""
        if not self._admissions.release(uid, epoch, deadline):
            return False
        if self._on_release is not None and self._admissions.holds(uid):
            try:
                self._on_release(uid)
            except Exception:
                logger.exception("on_release(%r) failed; the uid is given up all the same", uid)
        self._admissions.forget(uid, epoch)
        return True

    def _report_use(self) -> None:
        """Keep links in use alive, and let go of uids whose links have ended unused."""
        every_s = self._gateway.config.ttl_s / 3
        while not self._ended.wait(every_s):
            used, idle = self._admissions.review()
            try:
                asked = self._gateway.ask("report_use", self._address[0], used, idle)
                ended: dict[str, int] = run(asked, Deadline.after(every_s))
            except (RouteError, ray.exceptions.RayError) as error:
                logger.warning("uids in use could not be reported: %r", error)
                continue
            self._release(Release(ended, 0.0))
