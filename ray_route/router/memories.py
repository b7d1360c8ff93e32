"""What living pods remember: asked for when Redis has lost links, or may have let some run out."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from ray_route.model import Life, PodRecord
from ray_route.protocol.commands import Address, Memory, Recall
from ray_route.router.mailbox import Mailboxes, NoAnswerError
from ray_route.router.membership import Membership
from ray_route.router.shards import Shards

_ANSWER_S = 1.0
_PAUSE_S = 0.05


class Memories:
    """Asks agents. Belongs to one event loop."""

    def __init__(self, membership: Membership, shards: Shards, mailboxes: Mailboxes) -> None:
        self._membership = membership
        self._shards = shards
        self._mailboxes = mailboxes
        self.silent: set[Address] = set()
        """Who has been asked and has not answered yet."""

    def living(self) -> list[Address]:
        """Return all whose life has not ended."""
        table = self._membership.table
        return [
            (service, pod.pod, pod.incarnation)
            for service in table.services()
            for pod in table.pods(service).values()
            if pod.life is Life.ALIVE
        ]

    async def recall(self, agents: Iterable[Address], command: Recall) -> dict[Address, Memory]:
        """Ask living agents, each until it has answered or its life has ended."""
        asked = list(agents)
        self.silent.update(asked)
        memories = await asyncio.gather(*(self._ask(agent, command) for agent in asked))
        pairs = zip(asked, memories, strict=True)
        return {agent: memory for agent, memory in pairs if memory is not None}

    async def _ask(self, agent: Address, command: Recall) -> Memory | None:
        try:
            return await self._answer(agent, command)
        finally:
            self.silent.discard(agent)

    async def _answer(self, agent: Address, command: Recall) -> Memory | None:
        while self._is_alive(agent):
            try:
                memory: Memory = await self._mailboxes.ask(agent, command, _ANSWER_S)
            except NoAnswerError:
                await asyncio.sleep(_PAUSE_S)
            else:
                self._shards.counters.remember(enumerate(memory.counters))
                return memory
        return None

    def _is_alive(self, agent: Address) -> bool:
        service, pod, incarnation = agent
        record: PodRecord | None = self._membership.table.get(service, pod)
        alive = record is not None and record.life is Life.ALIVE
        return alive and record is not None and record.incarnation == incarnation
