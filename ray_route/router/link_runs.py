"""Runs verbs that write links: what holds afterwards is cached, and what is on its way is load."""

from __future__ import annotations

from collections.abc import Awaitable

from ray_route.clock import now
from ray_route.router.outcomes import Outcomes, known
from ray_route.router.placer import Proposal
from ray_route.router.shards import Build, Outcome, Shards, SupersededError
from ray_route.state.link_cache import LinkCache
from ray_route.state.load_book import LoadBook


class LinkRuns:
    """Runs verbs on the shards as long as no younger router has taken over."""

    def __init__(self, shards: Shards, loads: LoadBook, cache: LinkCache) -> None:
        self._shards = shards
        self._loads = loads
        self._cache = cache

    async def write_proposed(
        self, service: str, proposal: Proposal, build: Build, *, waits: bool
    ) -> Outcomes:
        """Run a verb that links uids to owners; meanwhile they count as the owners' load."""
        arrivals = proposal.arrivals()
        for pod, links in arrivals:
            self._loads.propose(service, pod, links)
        try:
            uids = list(proposal.chosen)
            return await self.write(service, uids, build, placing=True, waits=waits)
        finally:
            for pod, links in arrivals:
                self._loads.settle(service, pod, links)

    async def write(
        self, service: str, uids: list[str], build: Build, *, placing: bool, waits: bool = True
    ) -> Outcomes:
        """Run a verb and keep what holds afterwards; `placing`: it may give uids to others."""
        asked_at = now()
        running = self._shards.run(uids, build, placing=placing, waits=waits)
        outcomes = await self.in_force(running)
        held = {
            uid: outcome.link
            for uid, outcome in outcomes.items()
            if isinstance(outcome, Outcome) and outcome.link is not None
        }
        self._cache.put_all(service, held, asked_at)
        return outcomes

    async def write_one(
        self, service: str, uid: str, build: Build, *, placing: bool = True
    ) -> Outcome:
        """Run a verb for one uid, as `write` does; raise what stood in its way."""
        return known((await self.write(service, [uid], build, placing=placing))[uid])

    async def in_force(self, running: Awaitable[Outcomes]) -> Outcomes:
        """Wait for what runs; raise `RouterUnavailableError` if a younger router has taken over."""
        try:
            return await running
        except SupersededError as error:
            self._shards.superseded.set()
            raise self._shards.problems.taken_over() from error
