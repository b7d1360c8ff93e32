"""What evens out and scales a service asks of a router: of pods' uids, and that some move."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from ray_route.model import HotUid, PodRecord
from ray_route.protocol.commands import Count, Weigh, Weighed
from ray_route.router.mailbox import Mailboxes, NoAnswerError
from ray_route.router.membership import Membership
from ray_route.router.moves import Moves

_ANSWER_S = 10.0
# A state may be a gigabyte, and a pod that fetches it may be busy.
_MOVE_S = 60.0


class Shifts:
    """Counts and weighs uids and moves some, as it is told. Belongs to one event loop."""

    def __init__(self, membership: Membership, mailboxes: Mailboxes, moves: Moves) -> None:
        self._membership = membership
        self._mailboxes = mailboxes
        self._moves = moves

    async def weigh(self, service: str) -> dict[tuple[int, int], Weighed]:
        """Ask each pod that takes new uids what it holds, by (pod, incarnation).

        Raises `PodUnavailableError` if one does not answer: nothing can be evened out then.
        """
        pods = await self._available(service)
        told = await asyncio.gather(*(self._ask(service, pod, Weigh()) for pod in pods))
        return {
            (pod.pod, pod.incarnation): Weighed(*it) for pod, it in zip(pods, told, strict=True)
        }

    async def count(self, service: str) -> dict[int, int]:
        """Ask each pod that serves how many uids it holds; raise `PodUnavailableError`."""
        await self._membership.refresh(service)
        pods = [pod for pod in self._membership.table.pods(service).values() if pod.routable]
        told = await asyncio.gather(*(self._ask(service, pod, Count()) for pod in pods))
        return {pod.pod: uids for pod, uids in zip(pods, told, strict=True)}

    async def hottest(self, service: str, most: int) -> list[HotUid]:
        """Ask each pod for its hottest uids; what a pod does not answer is left out."""
        pods = await self._available(service)
        asked = (self._ask(service, pod, Weigh(most)) for pod in pods)
        told = await asyncio.gather(*asked, return_exceptions=True)
        return [one for some in told if isinstance(some, list) for one in some]

    async def shift(
        self, service: str, moves: Mapping[str, tuple[int, int]], patience_s: float
    ) -> dict[str, str]:
        """Move uids, given with their epochs, to pods; return why each stays, empty if it moved.

        One that has a call stays unless that ends within `patience_s` seconds.
        """
        return await self._moves.shift(service, moves, patience_s=patience_s, timeout_s=_MOVE_S)

    async def _available(self, service: str) -> list[PodRecord]:
        await self._membership.refresh(service)
        return list(self._membership.table.available(service))

    async def _ask(self, service: str, pod: PodRecord, command: Weigh | Count) -> Any:
        address = (service, pod.pod, pod.incarnation)
        try:
            return await self._mailboxes.ask(address, command, _ANSWER_S)
        except NoAnswerError as error:
            why = f"it does not tell of its uids: {error}"
            raise self._membership.unavailable(service, pod.pod, why) from error
