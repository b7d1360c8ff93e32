"""Runs verbs over many uids: one script call per shard, all of them in one round trip.

Remembers the highest counter of every shard, which is how a loss of writes is noticed, and what its
server's clock may show, which is how a step is. What meets one waits until it has been recovered,
and runs then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from itertools import starmap
from typing import Any, NamedTuple

from ray_route.clock import now
from ray_route.errors import (
    LostWritesError,
    RouteError,
    RouterUnavailableError,
    StoreUnavailableError,
)
from ray_route.model import Link
from ray_route.router.counters import Counters
from ray_route.router.problems import Problems
from ray_route.router.sendings import CARRIED_OUT_S
from ray_route.runtime.metrics import STORE_SECONDS, meter
from ray_route.store.connect import AsyncStore
from ray_route.store.counters import parse_writer
from ray_route.store.exchange import UnansweredError, UnlookedError
from ray_route.store.keys import Keys
from ray_route.store.links import MAX_UIDS, LinkCalls, Writer
from ray_route.store.scripts import Call, script_call

Build = Callable[[Writer, int, list[str]], Call]
MayPlace = Callable[[], Awaitable[None]]
Recover = Callable[[Iterable[int]], Awaitable[None]]

# Uids per round trip: enough to fill a pipeline, few enough to let others in between.
_UIDS_PER_TRIP = 5_000

# How often what was refused is sent again, each time after a look whether a recovery is due: it
# may have been refused only because it was late.
_TRIES = 5


class SupersededError(Exception):
    """A younger router writes this namespace. The only thing left to do is to exit."""


class Outcome(NamedTuple):
    """What holds for a uid after a script, and whether that script wrote it."""

    link: Link | None
    written: bool


class Shards:
    """The shards of one namespace as one writer sees them. Belongs to one event loop."""

    def __init__(self, store: AsyncStore, keys: Keys, links: LinkCalls) -> None:
        self.incarnation = 0
        self.recover: Recover = _nobody_recovers
        self.may_place: MayPlace = _anybody_may
        self.placed_at = [now()] * keys.shards
        """When a uid of each shard was last given to somebody, at the latest."""
        self.superseded = asyncio.Event()
        self._is_writer = False
        self._store = store
        self._keys = keys
        self._links = links
        self._meter = meter(keys.namespace)
        self.problems = Problems(store.url.address, keys.namespace)
        self.counters = Counters(store, keys, links, self.problems)
        self.look: Callable[[], Awaitable[object]] = self.counters.compare
        self._written_on: frozenset[str] = frozenset()

    async def claim(self) -> None:
        """Claim a higher incarnation than any router before, as far as is known.

        Where a master is away a younger router's writes may show later: then this one leaves.
        """
        self._is_writer = False
        self.placed_at = [now()] * self._keys.shards  # by the router before, for all we know
        # Whoever has written to a shard has been a router, for all we know.
        least = max(self.incarnation, *map(parse_writer, (await self.counters.stored()).values()))
        claim = script_call("claim_router", [self._keys.meta], [least])
        self.incarnation = int(await self._store.one(claim))

    def deposed(self) -> RouterUnavailableError:
        """Take in that Redis knows a younger router; return the error of what was asked.

        A router that has not become the writer may be that one itself: a claim without an answer
        may have been carried out, and it claims again.
        """
        if self._is_writer:
            self.superseded.set()
        return self.problems.taken_over()

    async def take_over(self) -> list[int]:
        """Become the writer of each shard; return those whose writes Redis has lost.

        Shards of a Cluster whose master is away are set aside. A router that has been the writer
        leaves them out only while all others are on the very servers on which it became that: so
        nothing that was written there since, by a younger router or about a life, can have been
        lost. Raises `SupersededError` if a younger router has taken over already, and
        `StoreUnavailableError`.
        """
        servers = await self._store.servers()
        shards = range(self._keys.shards)
        calls = [self._links.take_over(self.writer(shard), shard) for shard in shards]
        lost, away = [], []
        for shard, reply in zip(shards, await self._store.run(calls), strict=True):
            outcomes = self._outcomes(shard, [], reply)
            if isinstance(outcomes, LostWritesError):
                lost.append(shard)
            elif isinstance(outcomes, StoreUnavailableError) and self._store.is_cluster:
                away.append(shard)
            elif isinstance(outcomes, RouteError):
                raise outcomes
        self._took_over(servers, away)
        return lost

    def _took_over(self, servers: Mapping[str, str], away: list[int]) -> None:
        if away and self._is_writer and not self._is_where_it_began(servers, away):
            raise self.problems.unread(away[0])
        self.counters.aside.add(away)
        if not (away and self._is_writer):
            self._written_on = frozenset(servers.values())
        self._is_writer = True

    def _is_where_it_began(self, servers: Mapping[str, str], away: Collection[int]) -> bool:
        """True if all but these shards, and the namespace's own keys, are where they were.

        One of these `servers` may have been replaced since they were looked at: so it is asked who
        has been written to.
        """
        counters = [self._keys.counter(s) for s in range(self._keys.shards) if s not in away]
        there = {self._store.server_of(key) for key in (self._keys.meta, *counters)}
        return all(servers.get(name or "") in self._written_on for name in there)

    async def run(
        self,
        uids: Sequence[str],
        build: Build,
        *,
        placing: bool = False,
        waits: bool = True,
        once: bool = True,
    ) -> dict[str, Outcome | RouteError]:
        """Call one script per shard and 500 uids; return every uid's outcome or its error.

        `placing`: it may give a uid to another owner, which waits until that may be. `waits`: for
        the recovery of lost shards; else the outcomes there are `LostWritesError`, at once.
        `once`: it may change something, so before it is sent again somebody looks whose server it
        is. Raises `SupersededError` if another router has taken over: then nothing was changed.
        """
        outcomes: dict[str, Outcome | RouteError] = {}
        for start in range(0, len(uids), _UIDS_PER_TRIP):
            part = uids[start : start + _UIDS_PER_TRIP]
            some = await self._looked(list(part), build, placing=placing, once=once)
            outcomes.update(some)
            if waits and (lost := _those(some, LostWritesError)):
                recovered = await self._recovered(lost, build, placing=placing, once=once)
                outcomes.update(recovered)
        return outcomes

    async def _recovered(
        self, uids: list[str], build: Build, *, placing: bool, once: bool
    ) -> dict[str, Outcome | RouteError]:
        """Run what was refused again, each time after the recovery of its shards."""
        outcomes: dict[str, Outcome | RouteError] = {}
        for _ in range(_TRIES):
            try:
                await self.recover({self._keys.shard(uid) for uid in uids})
            except RouteError as error:
                return {**outcomes, **dict.fromkeys(uids, error)}
            outcomes.update(await self._looked(uids, build, placing=placing, once=once))
            uids = _those(outcomes, LostWritesError)
            if not uids:
                break
        return outcomes

    async def _looked(
        self, uids: list[str], build: Build, *, placing: bool, once: bool
    ) -> dict[str, Outcome | RouteError]:
        """Run what may have been carried out again, each time after a look at whose it is now."""
        outcomes = await self._trip(uids, build, placing=placing, once=once)
        for _ in range(_TRIES):
            uids = _those(outcomes, (UnansweredError, UnlookedError))
            if not uids:
                break
            try:
                await self.look()
            except RouteError as error:
                return {**outcomes, **dict.fromkeys(uids, error)}
            outcomes.update(await self._trip(uids, build, placing=placing, once=once))
        return outcomes

    async def read(
        self, service: str, uids: Sequence[str], *, waits: bool = True
    ) -> dict[str, Outcome | RouteError]:
        """Read links without changing anything; see `run`."""

        def build(writer: Writer, shard: int, some: list[str]) -> Call:
            names = [(service, uid) for uid in some]
            return self._links.read(writer.seen, shard, names, writer.latest_us)

        return await self.run(uids, build, waits=waits, once=False)

    async def _trip(
        self, uids: Sequence[str], build: Build, *, placing: bool, once: bool
    ) -> dict[str, Outcome | RouteError]:
        parts = self._parts(uids)
        try:
            if any(self.counters.needs_look(shard) for shard, _ in parts):
                await self.look()
            if placing:
                await self.may_place()  # nothing is awaited between this and the sending
        except RouteError as error:
            return dict.fromkeys(uids, error)
        outcomes: dict[str, Outcome | RouteError] = {}
        ready = []
        for shard, some in parts:
            if problem := self.counters.shut(shard):  # also if what was awaited has shut it
                outcomes.update(dict.fromkeys(some, problem))
            else:
                ready.append((shard, some))
        calls = [build(self.writer(shard), shard, some) for shard, some in ready]
        replies = await self._sent([shard for shard, _ in ready], calls, placing=placing, once=once)
        for (shard, some), call, reply in zip(ready, calls, replies, strict=True):
            parsed = self._outcomes(shard, some, reply, call)
            if isinstance(parsed, RouteError):
                outcomes.update(dict.fromkeys(some, parsed))
            else:
                outcomes.update(parsed)
        return outcomes

    async def _sent(
        self, shards: list[int], calls: list[Call], *, placing: bool, once: bool
    ) -> list[Any]:
        """Send scripts; return each one's reply or error, and note of which it was lost."""
        if not calls:
            return []
        noted = self.counters.sendings
        sendings = [noted.begin(shard) for shard in shards] if once else []
        asked_at = now()
        try:
            replies = await self._store.run(calls, once=once)
            self._meter.observe(STORE_SECONDS, now() - asked_at)
        except RouteError as error:
            replies = [error] * len(calls)
        except BaseException:  # whoever asked is gone, and it may be carried out all the same
            for sending in sendings:
                noted.lost(sending)
            self._note_placing(shards if placing else (), late=True)
            raise
        for sending, reply in zip(sendings, replies, strict=False):
            (noted.lost if isinstance(reply, UnansweredError) else noted.answered)(sending)
        for shard, reply in zip(shards if placing else (), replies, strict=False):
            self._note_placing([shard], late=isinstance(reply, RouteError))
        return replies

    def writer(self, shard: int) -> Writer:
        """Who writes to a shard, as its scripts want to know it."""
        counters = self.counters
        return Writer(self.incarnation, counters.seen[shard], counters.clocks.of(shard).latest_us())

    def _note_placing(self, shards: Iterable[int], *, late: bool) -> None:
        """Note the latest moment at which what was sent may have been carried out."""
        at = now() + (CARRIED_OUT_S if late else 0)
        for shard in shards:
            self.placed_at[shard] = max(at, self.placed_at[shard])

    def _parts(self, uids: Sequence[str]) -> list[tuple[int, list[str]]]:
        by_shard: dict[int, list[str]] = {}
        for uid in uids:
            by_shard.setdefault(self._keys.shard(uid), []).append(uid)
        return [
            (shard, some[start : start + MAX_UIDS])
            for shard, some in by_shard.items()
            for start in range(0, len(some), MAX_UIDS)
        ]

    def _outcomes(
        self, shard: int, uids: list[str], reply: Any, call: Call | None = None
    ) -> dict[str, Outcome | RouteError] | RouteError:
        if isinstance(reply, RouteError):
            return reply
        parsed = self._links.parse(reply, call)
        if parsed.status == "superseded":
            raise SupersededError(self._keys.namespace)
        if parsed.status == "lost":
            return self.problems.lost_writes([shard])
        if parsed.status == "stepped":
            return self.problems.lost_writes(
                [shard], "its clock has stepped, or it was asked long ago"
            )
        if not self.counters.take(shard, parsed.found, parsed.counter):
            return self.problems.lost_writes([shard], "two servers have taken writes to it")
        outcomes = starmap(_outcome, zip(parsed.links, parsed.written, strict=True))
        return dict(zip(uids, outcomes, strict=True))


def _those(
    outcomes: Mapping[str, Outcome | RouteError],
    kinds: type[RouteError] | tuple[type[RouteError], ...],
) -> list[str]:
    """Return the uids whose outcomes are errors of some kinds."""
    return [uid for uid, outcome in outcomes.items() if isinstance(outcome, kinds)]


def _outcome(link: Link | RouteError | None, written: bool) -> Outcome | RouteError:  # noqa: FBT001
    return link if isinstance(link, RouteError) else Outcome(link, written)


async def _anybody_may() -> None:
    """Let every placement through."""


async def _nobody_recovers(_: Iterable[int]) -> None:
    """Leave lost shards as they are."""
