"""The router's mind: who is where, decided once.

All that a namespace's router keeps in memory is here, and every decision about a link is made
here. Knows Redis only by `store`, and nothing of Ray: tests run it on a bare event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass, field

from ray_route.cache import LinkCache
from ray_route.clock import now
from ray_route.config import RouteConfig
from ray_route.errors import (
    ConfigError,
    InvalidInputError,
    NoAvailablePodError,
    PodUnavailableError,
    RouteError,
    RouterUnavailableError,
)
from ray_route.model import Link, Pod, PodRecord
from ray_route.podtable import LoadBook, PodTable
from ray_route.shards import Build, Outcome, Shards, SupersededError
from ray_route.store.connect import AsyncStore
from ray_route.store.keys import Keys
from ray_route.store.links import LinkCalls
from ray_route.store.pods import PodCalls, parse_table
from ray_route.store.scripts import script_call

logger = logging.getLogger(__name__)

Answer = Link | RouteError
_Outcomes = Mapping[str, Outcome | RouteError]

_DECISIONS_KEPT = 20_000


@dataclass(eq=False, slots=True)
class _Batch:
    """Uids of one service on their way to Redis together, and who waits for them."""

    service: str
    node: str | None
    uids: list[str] = field(default_factory=list)
    answers: Mapping[str, Answer] = field(default_factory=dict)
    sent: bool = False
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Directory:
    """Finds, places and relinks. One per router; belongs to one event loop."""

    def __init__(self, config: RouteConfig, store: AsyncStore, keys: Keys) -> None:
        self.config = config
        self.keys = keys
        self.table = PodTable()
        self.loads = LoadBook()
        self.cache = LinkCache(config.router_cache_size)
        self.superseded = asyncio.Event()
        self._store = store
        self._links = LinkCalls(keys, config)
        self._pods = PodCalls(keys)
        self.shards = Shards(store, keys, self._links)
        self._strategy = config.strategy()
        self._forming: dict[tuple[str, str | None], _Batch] = {}
        self._under_way: dict[tuple[str, str], _Batch] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._decisions: deque[tuple[float, str, str, str]] = deque(maxlen=_DECISIONS_KEPT)

    # The pod table.

    async def refresh(self, service: str) -> list[PodRecord]:
        """Read a service's pod table; return the records whose routing changed."""
        return self.take_in(service, parse_table(await self._store.one(self._pods.table(service))))

    def take_in(self, service: str, records: Iterable[PodRecord]) -> list[PodRecord]:
        """Take in records just read; return those whose routing changed."""
        changed = []
        for record in records:
            if self.table.update(service, record):
                changed.append(record)
            current = self.table.get(service, record.pod)
            if current is record:
                self.loads.report(service, record)
        return changed

    async def tables(self) -> dict[str, list[PodRecord]]:
        """Read the pod tables of all services."""
        names = sorted(name.decode() for name in await self._store.one(self._pods.services()))
        replies = await self._store.run([self._pods.table(name) for name in names])
        tables = {}
        for name, reply in zip(names, replies, strict=True):
            if isinstance(reply, RouteError):
                raise reply
            tables[name] = parse_table(reply)
        return tables

    async def declare_gone(self, service: str, pod: PodRecord, *, silent: bool) -> bool:
        """Write an incarnation's death before anyone acts on it; say whether it is dead now."""
        verdict = await self._store.one(self._pods.declare_gone(service, pod, silent=silent))
        return bool(verdict in (b"ok", b"superseded"))

    async def redis_time_us(self) -> int:
        """Read Redis `TIME` in microseconds."""
        return int(await self._store.one(script_call("time", [self.keys.meta], [])))

    # Links.

    async def compute(
        self, service: str, wanted: Mapping[str, int], node: str | None
    ) -> dict[str, Answer]:
        """Return each uid's link, placing or relinking it where that is needed.

        `wanted` maps uids to the least epoch that the caller will take from a cache. Whoever
        asks for a uid that is on its way to Redis waits for that answer: one write for all.
        """
        answers: dict[str, Answer] = {}
        waiting: dict[str, _Batch] = {}
        for uid, min_epoch in wanted.items():
            link = self._cached(service, uid, min_epoch)
            if link is None:
                waiting[uid] = self._join(service, uid, min_epoch, node)
            else:
                answers[uid] = link
        for batch in set(waiting.values()):
            await batch.done.wait()
        if self.superseded.is_set():
            raise self._taken_over()
        answers.update((uid, batch.answers[uid]) for uid, batch in waiting.items())
        return answers

    async def find(self, service: str, wanted: Mapping[str, int]) -> dict[str, Answer | None]:
        """Return each uid's link as it is, None where there is none; places nothing."""
        answers: dict[str, Answer | None] = {}
        for uid, min_epoch in wanted.items():
            answers[uid] = self._cached(service, uid, min_epoch)
        unknown = [uid for uid, link in answers.items() if link is None]
        asked_at = now()
        for uid, outcome in (await self._guarded(self.shards.read(service, unknown))).items():
            if isinstance(outcome, RouteError):
                answers[uid] = outcome
            elif outcome.link is not None:
                self.cache.put(service, uid, outcome.link, asked_at)
                answers[uid] = outcome.link
        return answers

    async def set_if_absent(self, service: str, uid: str, pod: int, *, persistent: bool) -> Link:
        """Link one uid to a chosen pod unless it has a link; return the link that holds."""
        target = await self._target(service, pod)
        outcomes = await self._write(
            service,
            [uid],
            lambda writer, shard, some: self._links.set_if_absent(
                writer, shard, service, some, [_owner(target)], persistent=persistent
            ),
        )
        outcome = outcomes[uid]
        if isinstance(outcome, RouteError):
            raise outcome
        assert outcome.link is not None
        if outcome.written:
            self._count(service, uid, outcome.link, "set if absent")
        return outcome.link

    async def _target(self, service: str, pod: int) -> PodRecord:
        """Return the pod if new links may go to it; unknown and closed ones are refused."""
        record = self.table.get(service, pod)
        if record is None or not record.available:
            await self.refresh(service)
            record = self.table.get(service, pod)
        if record is None:
            known = sorted(self.table.pods(service))
            raise InvalidInputError(
                argument="pod",
                value=pod,
                reason=f"is unknown; service {service!r} has pods {known}",
                namespace=self.keys.namespace,
            )
        if not record.available:
            raise self._unavailable(service, record, f"it takes no links: {record.describe()}")
        return record

    def _cached(self, service: str, uid: str, min_epoch: int) -> Link | None:
        link = self.cache.get(service, uid, min_epoch)
        return link if link is not None and self.table.routable(service, link) else None

    # Batches.

    def _join(self, service: str, uid: str, min_epoch: int, node: str | None) -> _Batch:
        batch = self._under_way.get((service, uid))
        if batch is not None and not (batch.sent and min_epoch):
            return batch
        forming = self._forming.get((service, node))
        if forming is None:
            forming = self._forming[service, node] = _Batch(service, node)
            asyncio.get_running_loop().call_soon(self._send_off, forming)
        forming.uids.append(uid)
        self._under_way[service, uid] = forming
        return forming

    def _send_off(self, batch: _Batch) -> None:
        del self._forming[batch.service, batch.node]
        batch.sent = True
        task = asyncio.get_running_loop().create_task(self._settle(batch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _settle(self, batch: _Batch) -> None:
        try:
            batch.answers = await self._place(batch)
        except RouteError as error:
            batch.answers = dict.fromkeys(batch.uids, error)
        except Exception as error:
            logger.exception("a batch of %d uids failed", len(batch.uids))
            unavailable = RouterUnavailableError(
                namespace=self.keys.namespace, reason=f"a batch failed: {error!r}"
            )
            batch.answers = dict.fromkeys(batch.uids, unavailable)
        finally:
            for uid in batch.uids:
                if self._under_way.get((batch.service, uid)) is batch:
                    del self._under_way[batch.service, uid]
            batch.done.set()

    async def _place(self, batch: _Batch) -> dict[str, Answer]:
        service = batch.service
        if not self.table.available(service):
            await self.refresh(service)
        try:
            owners = self._propose(service, batch.uids, batch.node)
        except RouteError as refusal:
            outcomes = await self._guarded(self.shards.read(service, batch.uids))
            return self._existing(service, outcomes, refusal)
        try:
            outcomes = await self._write(
                service,
                batch.uids,
                lambda writer, shard, some: self._links.set_if_absent(
                    writer, shard, service, some, [_owner(owners[uid]) for uid in some]
                ),
            )
        finally:
            self.loads.settle(service, owners.values())
        return await self._adopted(batch, outcomes)

    def _existing(
        self, service: str, outcomes: _Outcomes, refusal: RouteError
    ) -> dict[str, Answer]:
        """Answer from what is there when nothing can be placed."""
        answers: dict[str, Answer] = {}
        for uid, outcome in outcomes.items():
            if isinstance(outcome, RouteError):
                answers[uid] = outcome
            elif outcome.link is not None and self.table.routable(service, outcome.link):
                answers[uid] = outcome.link
            else:
                answers[uid] = refusal
        return answers

    async def _adopted(self, batch: _Batch, outcomes: _Outcomes) -> dict[str, Answer]:
        """Turn outcomes into answers, relinking what points to a life that has ended."""
        service = batch.service
        answers: dict[str, Answer] = {}
        strayed: dict[str, Link] = {}
        for uid, outcome in outcomes.items():
            if isinstance(outcome, RouteError):
                answers[uid] = outcome
                continue
            link = outcome.link
            assert link is not None
            answers[uid] = link
            if outcome.written:
                self._count(service, uid, link, "placed")
            elif not self.table.routable(service, link):
                strayed[uid] = link
        if strayed:
            answers.update(await self._relink(service, strayed, batch.node))
        return answers

    async def _relink(
        self, service: str, strayed: dict[str, Link], node: str | None
    ) -> dict[str, Answer]:
        """Give uids whose owner's life has ended to a living pod, the same index if it is back."""
        await self.refresh(service)
        answers: dict[str, Answer] = {}
        lost: dict[str, Link] = {}
        for uid, link in strayed.items():
            if self.table.routable(service, link):
                answers[uid] = link
            elif self.table.has_ended(service, link):
                lost[uid] = link
            else:
                record = self.table.get(service, link.pod)
                state = (
                    record.describe() if record else "not in the pod table, which proves nothing"
                )
                answers[uid] = PodUnavailableError(
                    reason=f"it is {state}",
                    may_have_run=False,
                    namespace=self.keys.namespace,
                    service=service,
                    uid=uid,
                    pod=link.pod,
                )
        if lost:
            answers.update(await self._give_away(service, lost, node))
        return answers

    async def _give_away(
        self, service: str, lost: dict[str, Link], node: str | None
    ) -> dict[str, Answer]:
        try:
            owners = self._propose(service, list(lost), node, lost)
        except RouteError as refusal:
            return dict.fromkeys(lost, refusal)
        try:
            outcomes = await self._write(
                service,
                list(lost),
                lambda writer, shard, some: self._links.relink(
                    writer,
                    shard,
                    service,
                    some,
                    [lost[uid].epoch for uid in some],
                    [_owner(owners[uid]) for uid in some],
                ),
            )
        finally:
            self.loads.settle(service, owners.values())
        answers: dict[str, Answer] = {}
        for uid, outcome in outcomes.items():
            if isinstance(outcome, RouteError):
                answers[uid] = outcome
                continue
            assert outcome.link is not None
            answers[uid] = outcome.link
            if outcome.written:
                self._count(service, uid, outcome.link, f"relinked from pod {lost[uid].pod}")
        return answers

    def _propose(
        self,
        service: str,
        uids: Iterable[str],
        node: str | None,
        previous: Mapping[str, Link] | None = None,
    ) -> dict[str, PodRecord]:
        """Choose a pod for each uid, as if all that is under way to pods had arrived there."""
        pods = self.table.available(service)
        if not pods:
            known = {pod.pod: pod.describe() for pod in self.table.pods(service).values()}
            raise NoAvailablePodError(known=known, namespace=self.keys.namespace, service=service)
        by_index = {pod.pod: pod for pod in pods}
        load = self.loads.load(service, pods)
        owners: dict[str, PodRecord] = {}
        for uid in uids:
            back = previous and by_index.get(previous[uid].pod)
            owner = back or by_index[self._chosen(service, pods, load, uid, node)]
            load[owner.pod] += 1
            owners[uid] = owner
        self.loads.propose(service, owners.values())
        return owners

    def _chosen(
        self,
        service: str,
        pods: list[PodRecord],
        load: Mapping[int, float],
        uid: str,
        node: str | None,
    ) -> int:
        try:
            chosen = self._strategy(pods, load, uid, node)
        except Exception as error:
            raise ConfigError(
                option="placement", reason=f"the strategy failed: {error!r}", service=service
            ) from error
        if chosen not in load:
            raise ConfigError(
                option="placement",
                reason=f"the strategy chose {chosen!r}, which is not an available pod",
                service=service,
            )
        return chosen

    async def _write(self, service: str, uids: list[str], build: Build) -> _Outcomes:
        """Run a verb and keep what holds afterwards."""
        asked_at = now()
        outcomes = await self._guarded(self.shards.run(uids, build))
        for uid, outcome in outcomes.items():
            if not isinstance(outcome, RouteError) and outcome.link is not None:
                self.cache.put(service, uid, outcome.link, asked_at)
        return outcomes

    async def _guarded(self, running: Awaitable[_Outcomes]) -> _Outcomes:
        try:
            return await running
        except SupersededError as error:
            self.superseded.set()
            raise self._taken_over() from error

    def _taken_over(self) -> RouterUnavailableError:
        return RouterUnavailableError(
            namespace=self.keys.namespace, reason="a younger router has taken over"
        )

    def _count(self, service: str, uid: str, link: Link, decision: str) -> None:
        record = self.table.get(service, link.pod)
        if record is not None and record.incarnation == link.incarnation:
            self.loads.placed(service, record, link.epoch)
        self._decisions.append((time.time(), service, uid, f"{decision}: pod {link.pod}"))

    # What operators see.

    def pods(self, service: str, redis_time_us: int) -> dict[int, Pod]:
        """All pods of a service, as the last read of the table has them."""
        return {
            index: Pod(
                pod=index,
                state=record.state,
                life=record.life,
                load=self.loads.load(service, [record])[index],
                links=self.loads.links(service, record),
                node=record.node,
                actor=record.actor,
                incarnation=record.incarnation,
                heartbeat_age_s=max(0, redis_time_us - record.heartbeat_us) / 1e6,
            )
            for index, record in sorted(self.table.pods(service).items())
        }

    def decisions(self, service: str, uid: str) -> tuple[str, ...]:
        """The router's last decisions about a uid, oldest first, with their local time."""
        return tuple(
            f"{time.strftime('%H:%M:%S', time.localtime(at))} {text}"
            for at, of_service, of_uid, text in self._decisions
            if of_uid == uid and of_service == service
        )

    def _unavailable(self, service: str, record: PodRecord, reason: str) -> PodUnavailableError:
        return PodUnavailableError(
            reason=reason,
            may_have_run=False,
            namespace=self.keys.namespace,
            service=service,
            pod=record.pod,
        )


def _owner(pod: PodRecord) -> str:
    return f"{pod.pod}:{pod.incarnation}"
