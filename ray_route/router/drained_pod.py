"""The pod that a drain empties: what it is told and asked, and who else could serve its uids."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from ray_route.clock import Deadline
from ray_route.errors import PodUnavailableError, StoreUnavailableError
from ray_route.model import Life, Link, PodRecord, RoutingState
from ray_route.protocol.commands import Address, Command, Open, Shown
from ray_route.router.mailbox import Mailboxes
from ray_route.router.membership import Membership

_ANSWER_S = 5.0
_GIVE_BACK_S = 10.0
RETRY_S = 0.5

IsRestarting = Callable[[str], Awaitable[bool]]


@dataclass
class DrainedPod:
    """One life of a pod, while it is drained; `before` is the state that it gets back."""

    membership: Membership
    mailboxes: Mailboxes
    is_restarting: IsRestarting
    service: str
    record: PodRecord
    before: RoutingState

    def __post_init__(self) -> None:
        self._denying = self.record.state is not self.before  # by an earlier router

    @property
    def _address(self) -> Address:
        return self.service, self.record.pod, self.record.incarnation

    def links(self, holdings: dict[str, int]) -> dict[str, Link]:
        """Return the links of what it holds, by their epochs."""
        return {uid: self._link(epoch) for uid, epoch in holdings.items()}

    def _link(self, epoch: int) -> Link:
        pod, incarnation = self.record.pod, self.record.incarnation
        return Link(pod, incarnation, epoch, persistent=False, lease_s=0)

    def is_dead(self) -> bool:
        """True if this life of the pod has ended."""
        return self.membership.table.is_dead(self.service, self._link(0))

    async def ask(self, command: Command) -> Shown:
        """Have it carry out a command, return what it holds; `NoAnswerError` if it is silent."""
        answer: Shown = await self.mailboxes.ask(self._address, command, _ANSWER_S)
        return answer

    def open(self) -> None:
        """Have it serve again, when it may have closed."""
        self.mailboxes.post(self._address, Open())

    async def set_state(self, state: RoutingState) -> None:
        """Write its routing state; `PodUnavailableError` if its life has ended."""
        await self.membership.set_state(self.service, self.record, state)

    async def deny_new(self) -> None:
        """Have it take no new uids: from now on it may have been told so."""
        self._denying = True
        await self.set_state(RoutingState.DENY_NEW)

    async def give_back(self) -> None:
        """Let it take new uids again, if it did before and still lives."""
        deadline = Deadline.after(_GIVE_BACK_S)
        while self._denying:
            try:
                await self.membership.refresh(self.service)
                record = self.membership.table.get(self.service, self.record.pod)
                if record is not None and record.state is RoutingState.DENY_NEW:
                    await self.set_state(self.before)
            except StoreUnavailableError:
                if deadline.remaining() == 0:
                    raise
                await asyncio.sleep(RETRY_S)
            except PodUnavailableError:
                return  # its life has ended
            else:
                return

    def has_others(self) -> bool:
        """True if another pod takes new uids now."""
        available = self.membership.table.available(self.service)
        return any(True for _ in self._others(available))

    async def waits_for_others(self) -> bool:
        """True if another pod is to come: Ray starts it again; or has just come."""
        for other in self._others(list(self.membership.table.pods(self.service).values())):
            gone = other.life is Life.GONE
            if gone and other.actor and await self.is_restarting(other.actor):
                return True
        return self.has_others()

    def _others(self, pods: Iterable[PodRecord]) -> Iterable[PodRecord]:
        return (pod for pod in pods if pod.pod != self.record.pod)
