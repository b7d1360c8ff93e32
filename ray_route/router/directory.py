"""Decides where each uid is: finds its link, places it, relinks it when its pod has died.

Every such decision of a namespace is made here, once. Knows nothing of Ray: tests run it on a
bare event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ray_route.clock import now
from ray_route.config import RouteConfig
from ray_route.error_root import in_words
from ray_route.errors import (
    DamagedKeyError,
    PodRestartingError,
    RouteError,
    RouterUnavailableError,
)
from ray_route.model import Link, make_link
from ray_route.protocol.wire import Answer
from ray_route.router.link_table import LinkTable
from ray_route.router.membership import Membership
from ray_route.router.outcomes import Outcomes, linked
from ray_route.router.placer import Placer, Proposal
from ray_route.runtime.metrics import ROUTER_BATCH_UIDS
from ray_route.store.connect import AsyncStore

logger = logging.getLogger(__name__)

_UIDS_PER_SWEEP = 1_000
# So often a batch that meets what nobody foresaw is halved, to find for whom it does.
_HALVINGS = 64


@dataclass(eq=False, slots=True)
class _Batch:
    """Uids of one service on their way to Redis together, and who waits for them."""

    service: str
    node: str | None
    uids: list[str] = field(default_factory=list)
    answers: Mapping[str, Answer] = field(default_factory=dict)
    sent_at: float | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def late_answer(self, uid: str) -> Answer:
        """Return a uid's answer, its lease shortened by what has passed since it was read.

        Whoever joined late counts the lease from a request that was sent late.
        """
        answer = self.answers[uid]
        if isinstance(answer, RouteError) or self.sent_at is None:
            return answer
        lease_s = max(0.0, answer.lease_s - (now() - self.sent_at))
        owner = (answer.pod, answer.incarnation)
        return make_link(*owner, answer.epoch, answer.persistent, lease_s, answer.replaced)


class Directory:
    """Finds, places and relinks. One per router; belongs to one event loop."""

    def __init__(
        self, config: RouteConfig, links: LinkTable, store: AsyncStore, membership: Membership
    ) -> None:
        self._links = links
        self._store = store
        self._membership = membership
        self._grace_s = config.restart_grace_s
        self._placer = Placer(membership, config.strategy(), links.keys.namespace, config.ramp_s)
        self._forming: dict[tuple[str, str | None], _Batch] = {}
        self._under_way: defaultdict[str, dict[str, _Batch]] = defaultdict(dict)
        self._tasks: set[asyncio.Task[None]] = set()

    # Many uids.

    async def compute(
        self, service: str, wanted: Mapping[str, int], node: str | None
    ) -> dict[str, Answer]:
        """Return each uid's link in the order wanted, placing or relinking it where needed.

        `wanted` maps uids to the least epoch that the caller will take from a cache. Whoever
        asks for a uid that is on its way to Redis waits for that answer: one write for all. Uids of
        a lost shard are answered with `LostWritesError` at once: who asks for them can wait for its
        recovery without keeping others waiting.
        """
        answers: dict[str, Any] = self._links.cache.get_all(service, wanted)
        missing = [uid for uid, link in answers.items() if link is None]
        if missing:
            answers.update(await self._fetched(service, missing, wanted, node))
        return answers

    async def _fetched(
        self, service: str, uids: list[str], wanted: Mapping[str, int], node: str | None
    ) -> dict[str, Answer]:
        answers: dict[str, Answer] = {}
        waiting = self._joined(service, uids, wanted, node)
        late = {batch for batch in waiting if batch.sent_at is not None}
        for batch in waiting:
            await batch.done.wait()
        if self._links.superseded.is_set():
            raise self._links.taken_over()
        for batch, some in waiting.items():
            get = batch.late_answer if batch in late else batch.answers.__getitem__
            answers.update(zip(some, map(get, some), strict=True))
        return answers

    async def find(self, service: str, wanted: Mapping[str, int]) -> dict[str, Answer | None]:
        """Return each uid's link in the order wanted, None where there is none; places nothing.

        Of lost shards see `compute`.
        """
        answers: dict[str, Any] = self._links.cache.get_all(service, wanted)
        unknown = [uid for uid, link in answers.items() if link is None]
        if not unknown:
            return answers
        asked_at = now()
        found: dict[str, Link] = {}
        outcomes = await self._links.read_many(service, unknown, waits=False)
        for uid, outcome in outcomes.items():
            if isinstance(outcome, RouteError):
                answers[uid] = outcome
            elif outcome.link is not None:
                answers[uid] = found[uid] = outcome.link
        self._links.cache.put_all(service, found, asked_at)
        return answers

    async def sweep(self, service: str) -> int:
        """Relink every uid whose owner's life has ended now; return how many there were.

        One that can't be relinked holds up no other: what it met is raised when all were tried.
        """
        await self._membership.refresh(service)
        moved, some = 0, []
        problems: list[RouteError] = []
        async for key in self._store.scan(self._links.keys.links(service)):
            uid = self._links.keys.uid_of(key, service)
            if uid is not None:
                some.append(uid)
            if len(some) >= _UIDS_PER_SWEEP:
                moved += await self._sweep_some(service, some, problems)
                some = []
        moved += await self._sweep_some(service, some, problems)
        if problems:
            raise problems[0]
        return moved

    async def _sweep_some(self, service: str, uids: list[str], problems: list[RouteError]) -> int:
        strayed = {
            uid: link
            for uid, outcome in (await self._links.read_many(service, uids)).items()
            if not isinstance(outcome, DamagedKeyError)  # whose owner nobody knows
            and (link := linked(outcome))
            and self._membership.table.has_ended(service, link)
        }
        answers = await self._relink(service, strayed, None) if strayed else {}
        problems += [answer for answer in answers.values() if isinstance(answer, RouteError)]
        return len(strayed)

    async def give_away(
        self,
        service: str,
        lost: Mapping[str, Link],
        node: str | None,
        *,
        prefer_index: bool = False,
        waits: bool = True,
    ) -> dict[str, Answer]:
        """Relink uids whose owner has ended or has given them up.

        `prefer_index` chooses the index that they had, if a new life has it. `waits`: for the
        recovery of lost shards.
        """
        try:
            proposal = self._placer.propose(service, lost, node, lost if prefer_index else None)
        except RouteError as refusal:
            return {uid: refusal.about(uid=uid) for uid in lost}
        reason = "relinked" if prefer_index else "moved"
        answers = await self._links.relink(service, proposal, lost, reason, waits=waits)
        return {**answers, **proposal.refused}

    def propose(self, service: str, uids: Iterable[str]) -> Proposal:
        """Choose a pod for each uid that its owner has given up; raise `NoAvailablePodError`."""
        return self._placer.propose(service, uids, None)

    # Batches.

    def _joined(
        self, service: str, uids: list[str], wanted: Mapping[str, int], node: str | None
    ) -> dict[_Batch, list[str]]:
        """Return the batches that bring the uids' answers: those under way, or one that forms."""
        under_way = self._under_way[service]
        waiting: defaultdict[_Batch, list[str]] = defaultdict(list)
        forming = None
        for uid in uids:
            batch = under_way.get(uid)
            if batch is None or (batch.sent_at is not None and wanted[uid]):
                forming = forming or self._form(service, node)
                forming.uids.append(uid)
                batch = under_way[uid] = forming
            waiting[batch].append(uid)
        return waiting

    def _form(self, service: str, node: str | None) -> _Batch:
        """Return the batch that leaves when all have been heard who ask now."""
        forming = self._forming.get((service, node))
        if forming is None:
            forming = self._forming[service, node] = _Batch(service, node)
            task = asyncio.get_running_loop().create_task(self._settle(forming))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return forming

    async def quiet(self, service: str) -> None:
        """Wait until every placement that is under way for a service has ended."""
        for batch in set(self._under_way[service].values()):
            await batch.done.wait()

    async def _settle(self, batch: _Batch) -> None:
        del self._forming[batch.service, batch.node]
        batch.sent_at = now()
        self._links.meter.observe(ROUTER_BATCH_UIDS, len(batch.uids))
        halvings = iter(range(_HALVINGS))
        try:
            batch.answers = await self._placed(batch.service, batch.uids, batch.node, halvings)
        finally:
            under_way = self._under_way[batch.service]
            for uid in batch.uids:
                if under_way.get(uid) is batch:
                    del under_way[uid]
            batch.done.set()

    async def _placed(
        self, service: str, uids: list[str], node: str | None, halvings: Iterator[int]
    ) -> dict[str, Answer]:
        """Place uids. What nobody foresaw is the error of those alone who meet it by themselves.

        Whoever waits must hear of it: nothing else would ever end their wait.
        """
        try:
            return await self._place(service, uids, node)
        except RouteError as error:
            return dict.fromkeys(uids, error)
        except Exception as error:
            facts = {"namespace": self._links.keys.namespace, "service": service}
            logger.exception("a batch of %d uids of %s failed", len(uids), service, extra=facts)
            unforeseen = in_words(error)
        if len(uids) > 1 and next(halvings, None) is not None:
            half = len(uids) // 2
            first = await self._placed(service, uids[:half], node, halvings)
            return {**first, **await self._placed(service, uids[half:], node, halvings)}
        failed = RouterUnavailableError(reason=f"it failed: {unforeseen}", passes=False, **facts)
        return {uid: failed.about(uid=uid) for uid in uids}

    async def _place(self, service: str, uids: list[str], node: str | None) -> dict[str, Answer]:
        if not self._membership.table.available(service):
            await self._membership.refresh(service)
        try:
            proposal = self._placer.propose(service, uids, node)
        except RouteError as refusal:
            return await self._existing(service, dict.fromkeys(uids, refusal))
        outcomes = await self._links.place(service, proposal)
        answers = await self._adopted(service, node, outcomes)
        if proposal.refused:
            answers |= await self._existing(service, proposal.refused)
        return answers

    async def _existing(self, service: str, refused: Mapping[str, RouteError]) -> dict[str, Answer]:
        """Answer from what is there for those that can't be placed."""
        answers: dict[str, Answer] = {}
        outcomes = await self._links.read_many(service, list(refused), waits=False)
        for uid, outcome in outcomes.items():
            if isinstance(outcome, RouteError):
                answers[uid] = outcome
            elif outcome.link and self._membership.table.routable(service, outcome.link):
                answers[uid] = outcome.link
            else:
                answers[uid] = refused[uid].about(uid=uid)
        return answers

    async def _adopted(
        self, service: str, node: str | None, outcomes: Outcomes
    ) -> dict[str, Answer]:
        """Turn outcomes into answers, relinking what points to a life that has ended."""
        serving = self._membership.table.serving.get(service, {})
        answers: dict[str, Answer] = {}
        strayed: dict[str, Link] = {}
        for uid, outcome in outcomes.items():
            if isinstance(outcome, RouteError):
                answers[uid] = outcome
                continue
            link, written = outcome
            assert link is not None
            answers[uid] = link
            if not written and serving.get(link.pod) != link.incarnation:
                strayed[uid] = link
        if strayed:
            answers.update(await self._relink(service, strayed, node))
        return answers

    async def _relink(
        self, service: str, strayed: Mapping[str, Link], node: str | None
    ) -> dict[str, Answer]:
        """Give uids whose owner's life has ended to a living pod."""
        await self._membership.refresh(service)
        table = self._membership.table
        answers: dict[str, Answer] = {}
        lost: dict[str, Link] = {}
        for uid, link in strayed.items():
            if table.routable(service, link):
                answers[uid] = link
            elif table.has_ended(service, link):
                lost[uid] = link
            else:
                why = "the pod table lags behind its link, which proves nothing"
                answers[uid] = self._membership.unavailable(service, link.pod, why, uid)
        waiting = [uid for uid, link in lost.items() if self._may_restart(service, link)]
        for uid in waiting:
            answers[uid] = self._restarting(service, uid, lost.pop(uid))
        if lost:
            how = {"prefer_index": True, "waits": False}
            answers.update(await self.give_away(service, lost, node, **how))
        return answers

    def _may_restart(self, service: str, link: Link) -> bool:
        return self._membership.gone_for_s(service, link.pod) < self._grace_s

    def _restarting(self, service: str, uid: str, link: Link) -> PodRestartingError:
        return PodRestartingError(
            reason="its process has ended, and it has restart_grace_s to come back",
            may_have_run=False,
            namespace=self._links.keys.namespace,
            service=service,
            uid=uid,
            pod=link.pod,
        )
