"""Renews a pod's lease, and has the pod serve again after a lapse.

A lease that was not renewed in time has lapsed: the pod serves nobody then, and keeps all that it
holds. It resumes the same incarnation when a renewal sent after the lapse succeeds, which proves
that nobody has ended its life, and the router vouches for it. A life that was ended is over.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from ray_route.clock import Deadline, now
from ray_route.model import RoutingState
from ray_route.pod import terms
from ray_route.pod.agent_log import logger_of
from ray_route.pod.incarnations import Incarnations
from ray_route.pod.own_record import Claimed, OwnRecord
from ray_route.protocol.commands import Word
from ray_route.runtime.metrics import POD_FENCINGS, meter
from ray_route.runtime.namespace import Namespace
from ray_route.runtime.waiting import run

_LEAST_S = 0.05


class LeaseRenewal:
    """Renews the leases of one agent's lives, one life after another.

    When a lease lapses `stopping` is set and `on_lapse` called, if there is one.
    """

    def __init__(
        self,
        namespace: Namespace,
        record: OwnRecord,
        serving: Incarnations,
        load: Callable[[], float],
        stopping: threading.Event,
        on_lapse: Callable[[], None] | None,
    ) -> None:
        self.lapsed = False
        self._namespace = namespace
        self._record = record
        self._serving = serving
        self._load = load
        self._stopping = stopping
        self._on_lapse = on_lapse
        self._seq = 0  # of the record, as told last
        self._under = 0  # the router in force at the last renewal that needed nobody's word
        self._heard = 0  # the youngest router heard of

    def begin(self, claimed: Claimed) -> None:
        """Take in that another life has begun."""
        self.lapsed = False
        self._seq = claimed.seq
        self._heard = max(self._heard, claimed.router)
        self._vouched(claimed.router)
        self._logger = logger_of(self._namespace.name, *self._serving.address[:2])

    def renew(self, state: RoutingState) -> str | None:
        """Renew, and after a lapse try to resume; return why this life is over, if it is."""
        self.look_for_lapse()
        held = self._serving.held
        term, asked_at = held.term, now()
        status, *told = self._record.renew(
            self._serving.address, self._load(), state, self._seq, lapsed=self.lapsed
        )
        if status != b"ok":
            return f"the directory says {status.decode()}"
        self._seq, router, was_lost = (int(each) for each in told)
        self._heard = max(self._heard, router, self._serving.commands.router)
        if self.lapsed:
            return self._ask_to_resume(term, asked_at)
        if was_lost and self._namespace.config.fast_failover:
            self._lapse("Redis had lost its record, and Ray may have called its actor dead")
        elif not terms.renew(held, asked_at):
            self._lapse("its renewal came too late")
        elif not was_lost:
            self._vouched(router)
        # Where Redis had lost the record, but the lease has not run out, this life goes on: nobody
        # can have ended it, since that takes a whole lease of silence by every router's clock, and
        # this pod has let less pass. But whoever was in force before is not there by this renewal,
        # so should the lease lapse next, only a router that knew the record of before may vouch.
        return None

    def look_for_lapse(self) -> None:
        """Take in that the lease has run out, if it has."""
        if not self.lapsed and not self._serving.held.lease.serves():
            self._lapse("its lease ran out before it was renewed")

    def _vouched(self, router: int) -> None:
        """Note which router was in force when this life was last beyond doubt."""
        self._under = self._serving.commands.under = router

    def _lapse(self, why: str) -> None:
        """Serve nobody, and keep all, until the router vouches for this life."""
        terms.lapse(self._serving.held)
        self.lapsed = True
        service, pod, _ = self._serving.address
        self._logger.warning("pod %s of %s serves nobody for now: %s", pod, service, why)
        meter(self._namespace.name).count(POD_FENCINGS, service, str(pod))
        if self._on_lapse is not None:
            self._stopping.set()
            self._on_lapse()

    def _ask_to_resume(self, term: int, asked_at: float) -> str | None:
        """Resume, if the router vouches for the renewal that was just sent, in this very lapse."""
        left_s = asked_at + 0.9 * self._namespace.config.pod_lease_s - now()
        held, address = self._serving.held, self._serving.address
        asked = self._namespace.ask("confirm_life", address, self._seq, self._under, self._heard)
        word, router = run(asked, Deadline.after(max(left_s, _LEAST_S)))
        if word is Word.ENDED:
            return "the router says that its life was ended"
        if word is Word.SERVE and router >= self._heard and terms.resume(held, term, asked_at):
            self.lapsed = False
            self._vouched(router)
            service, pod, _ = address
            self._logger.warning("pod %s of %s serves again, with what it held", pod, service)
        return None
