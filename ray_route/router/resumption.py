"""Resumption of lives whose lease has lapsed: whether a pod that kept its memory may serve again.

A pod past its lease refuses all calls and keeps what it holds. Its next renewal proves that nobody
has ended its life in Redis as it is now; whether Redis has forgotten an end, only a router can
tell, whose memory spans the lapse. Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ray_route.config import RouteConfig
from ray_route.model import Life, PodRecord
from ray_route.protocol.commands import Address, Word
from ray_route.router.membership import Membership
from ray_route.router.recovery import Recovery
from ray_route.router.shards import Shards, SupersededError
from ray_route.router.shared_run import SharedRun

logger = logging.getLogger(__name__)

_TRIES = 3


class Resumption:
    """Decides which lapsed lives go on. Needs a router that serves.

    `begin_anew` is called with the service and index of a life that was vouched for: its silence
    counts from then on.
    """

    def __init__(
        self,
        config: RouteConfig,
        membership: Membership,
        shards: Shards,
        recovery: Recovery,
        begin_anew: Callable[[str, int], None],
    ) -> None:
        self._patience_s = config.pod_lease_s
        self._membership = membership
        self._shards = shards
        self._recovery = recovery
        self._begin_anew = begin_anew
        self._fence = SharedRun(self._write_everywhere)

    async def confirm(self, address: Address, seq: int, under: int, heard: int) -> Word:
        """Say whether a life that renewed after its lapse, under number `seq`, serves again.

        `under` is the router that was in force when that pod's last renewal before the lapse was
        carried out, `heard` the youngest that it knows of. An answer is given within a pod's
        lease. Raises `RouterUnavailableError` if a younger router has taken over, and
        `StoreUnavailableError`; then nothing is decided.
        """
        if heard > self._shards.incarnation:
            raise self._shards.deposed()
        try:
            word = await asyncio.wait_for(self._judged(address, seq, under), self._patience_s)
        except asyncio.TimeoutError:
            word = Word.AGAIN
        service, pod, incarnation = address
        facts = {"service": service, "pod": pod, "incarnation": incarnation}
        logger.info("pod %d of %s had lapsed: %s", pod, service, word.value, extra=facts)
        return word

    async def _judged(self, address: Address, seq: int, under: int) -> Word:
        word = await self._known(address)
        if word is not None:
            return word
        if not self._recovery.credible.spans(under):
            await self._end(address)
            return Word.ENDED
        await self._fence.begun_now()
        await self._recovery.readmit([address])  # before its links are looked at
        return await self._vouch(address, seq)

    async def _known(self, address: Address) -> Word | None:
        """Say what is known of a life without asking anybody; None if it may go on."""
        record = self._record(address)
        lags = record is None or record.incarnation < address[2]
        if lags or address in self._membership.denied:  # which a later record may settle
            await self._membership.refresh(address[0])
            record = self._record(address)
        if record is None or record.incarnation < address[2]:
            return Word.AGAIN  # Redis has lost its record, and it has not renewed since
        if record.incarnation > address[2] or not record.routable:
            return Word.ENDED
        return self._denied(address)

    def _denied(self, address: Address) -> Word | None:
        """Look whether the end of a life is on its way to Redis; its outcome may be unknown."""
        if address not in self._membership.denied:
            return None
        return Word.ENDED if self._membership.denied.is_final(address) else Word.AGAIN

    def _record(self, address: Address) -> PodRecord | None:
        return self._membership.table.get(address[0], address[1])

    async def _end(self, address: Address) -> None:
        """End a life that may have been ended before, by a router whose word is lost."""
        record = self._record(address)
        if record is not None and record.life is Life.ALIVE:
            service, pod, _ = address
            logger.warning(
                "pod %d of %s has lapsed, and who could vouch for it is gone: it begins anew",
                pod,
                service,
            )
            await self._membership.declare_gone(service, record, silent=False)

    async def _write_everywhere(self) -> None:
        """Write to every shard as the only writer: no younger router, and nothing is lost.

        Comparing counters alone would miss a younger router that has written nothing yet.
        """
        for _ in range(_TRIES):
            try:
                lost = await self._shards.take_over()
            except SupersededError:
                raise self._shards.deposed() from None
            if not lost:
                return
            await self._recovery.recover(lost)
        raise self._shards.problems.lost_writes(lost)

    async def _vouch(self, address: Address, seq: int) -> Word:
        verdict = await self._membership.vouch(address, seq)
        denied = self._denied(address)  # in the tick of the reply: it may have been sent meanwhile
        if verdict == "lost":
            await self._recovery.recover()
            return Word.AGAIN
        if verdict != "ok":
            await self._membership.refresh(address[0])
            return Word.ENDED
        if denied is not None:
            return denied
        self._begin_anew(address[0], address[1])
        return Word.SERVE
