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
from ray_route.router.problems import Problems
from ray_route.router.server_clock import ServerClocks
from ray_route.router.set_aside import SetAside
from ray_route.router.spans import Spans
from ray_route.runtime.metrics import STORE_SECONDS, meter
from ray_route.store.connect import AsyncStore
from ray_route.store.counters import parse_counter, parse_counters, parse_writer
from ray_route.store.keys import Keys
from ray_route.store.links import MAX_UIDS, LinkCalls, Writer
from ray_route.store.scripts import Call, script_call

Build = Callable[[Writer, int, list[str]], Call]
MayPlace = Callable[[], Awaitable[None]]
Recover = Callable[[Iterable[int]], Awaitable[None]]

# Uids per round trip: enough to fill a pipeline, few enough to let others in between.
_UIDS_PER_TRIP = 5_000

# A server that stalls may carry out late what it has received: its sender's tries and time-outs.
_CARRIED_OUT_S = 10.0

# How often what was refused is sent again, each time after a look whether a recovery is due: it
# may have been refused only because it was late.
_TRIES = 5


class SupersededError(Exception):
    """A younger router writes this namespace. The only thing left to do is to exit."""


class Outcome(NamedTuple):
    """What holds for a uid after a script, and whether that script wrote it."""

    link: Link | None
    written: bool


class Compared(NamedTuple):
    """What comparing counters has found.

    Of `lost` shards a missing link means nothing: Redis has lost their writes, or its clock has
    stepped. Of `unseen` nothing is known now; `servers` are those whose shards have been compared.
    """

    lost: frozenset[int]
    unseen: frozenset[int]
    servers: frozenset[str]


class _Read(NamedTuple):
    """What one server's counters hold, which of these shards are lost, and if it told of all."""

    server: str
    seen: Mapping[int, bytes | None]
    lost: Collection[int]
    is_whole: bool


class Shards:
    """The shards of one namespace as one writer sees them. Belongs to one event loop."""

    def __init__(self, store: AsyncStore, keys: Keys, links: LinkCalls) -> None:
        self.incarnation = 0
        self.seen = [0] * keys.shards
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
        self.aside = SetAside(links.config)
        self._spans = [Spans() for _ in range(keys.shards)]
        self._written_on: frozenset[str] = frozenset()
        self.clocks = ServerClocks(links.config, keys.shards, is_cluster=store.is_cluster)

    async def claim(self) -> None:
        """Claim a higher incarnation than any router before, as far as is known.

        Where a master is away a younger router's writes may show later: then this one leaves.
        """
        self._is_writer = False
        self.placed_at = [now()] * self._keys.shards  # by the router before, for all we know
        # Whoever has written to a shard has been a router, for all we know.
        least = max(self.incarnation, *map(parse_writer, (await self._stored()).values()))
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
        self.aside.add(away)
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

    def remember(self, seen: Iterable[tuple[int, int]]) -> None:
        """Take in (shard, counter) that somebody else was told."""
        for shard, counter in seen:
            self.seen[shard] = max(self.seen[shard], counter)

    async def lost(self) -> list[int]:
        """Compare all; return the lost, and raise what keeps any from being compared."""
        compared = await self.compare(await self._store.servers())
        if compared.unseen:
            raise self.problems.unread(min(compared.unseen))
        return sorted(compared.lost)

    async def compare(self, servers: Collection[str]) -> Compared:
        """Read counters and time of these servers, by name; say what is lost, and of whom.

        All servers are read at once. One that fails costs its own shards alone.
        """
        held = self._by_server()
        known = {name: shards for name, shards in held.items() if name in servers}
        reading = (self._read_counters(name, shards) for name, shards in known.items())
        began = now()
        found = [each for each in await asyncio.gather(*reading) if each is not None]
        seen = {shard for each in found for shard in each.seen}
        unseen = frozenset(range(self._keys.shards)) - seen
        self.aside.looked(unseen, began, now())
        aside = self._refused(found)
        unread = known.keys() - {each.server for each in found if each.is_whole}
        return Compared(
            aside.union(*(each.lost for each in found)),
            unseen,
            frozenset(servers) - unread,
        )

    def set_aside_if_away(self, shard: int, problem: RouteError) -> bool:
        """Set a shard aside whose server does not answer, if there are others; say if it is so."""
        is_away = isinstance(problem, StoreUnavailableError) and self._store.is_cluster
        if is_away:
            self.aside.add([shard])
        return is_away

    def _refused(self, found: Iterable[_Read]) -> frozenset[int]:
        """Have whoever is told the counters of shards that are set aside be refused there.

        Their servers have all writes, as far as is known; return which they are.
        """
        counters = {s: c for each in found for s, c in each.seen.items() if s in self.aside}
        self.remember((shard, parse_counter(counter) + 1) for shard, counter in counters.items())
        return frozenset(counters)

    def _by_server(self) -> dict[str | None, list[int]]:
        held: dict[str | None, list[int]] = {}
        for shard in range(self._keys.shards):
            held.setdefault(self._store.server_of(self._keys.counter(shard)), []).append(shard)
        return held

    async def _read_counters(self, server: str | None, shards: list[int]) -> _Read | None:
        """Compare the shards of one server; None where it does not answer in time."""
        assert server is not None
        seen, asked_at = list(self.seen), now()
        calls = self._links.counters(shards, by_slot=self._store.is_cluster)
        try:
            time_us, stored = parse_counters(await self._store.ask(server, calls))
        except StoreUnavailableError:
            if not self._store.is_cluster:
                raise
            return None
        counters = {
            s: c for s, c in zip(shards, stored, strict=True) if not isinstance(c, RouteError)
        }
        clocks = {self.clocks.of(shard) for shard in shards}
        stepped = {clock for clock in clocks if clock.shows(time_us, asked_at)}
        lost = []
        for shard, counter in counters.items():
            if self.clocks.of(shard) in stepped:
                # The server has all writes: whoever is told this counter is refused all the same.
                self.remember([(shard, parse_counter(counter) + 1)])
                lost.append(shard)
            elif parse_counter(counter) < seen[shard]:
                lost.append(shard)
        return _Read(server, counters, lost, is_whole=len(counters) == len(shards))

    async def _stored(self) -> dict[int, bytes | None]:
        """Return what stands in all counters that can be read; raise what keeps others from it."""
        servers = await self._store.servers()  # who they are must be known first
        stored: dict[int, bytes | None] = {}
        for server, shards in self._by_server().items():
            if server is None or server not in servers:
                continue  # in a Cluster: it is away
            calls = self._links.counters(shards, by_slot=self._store.is_cluster)
            _, counters = parse_counters(await self._store.ask(server, calls))
            for shard, counter in zip(shards, counters, strict=True):
                if isinstance(counter, RouteError):
                    raise counter
                stored[shard] = counter
        return stored

    async def run(
        self, uids: Sequence[str], build: Build, *, placing: bool = False, waits: bool = True
    ) -> dict[str, Outcome | RouteError]:
        """Call one script per shard and 500 uids; return every uid's outcome or its error.

        `placing`: it may give a uid to another owner, which waits until that may be. `waits`: for
        the recovery of lost shards; else the outcomes there are `LostWritesError`, at once. Raises
        `SupersededError` if another router has taken over: then nothing was changed.
        """
        outcomes: dict[str, Outcome | RouteError] = {}
        for start in range(0, len(uids), _UIDS_PER_TRIP):
            part = uids[start : start + _UIDS_PER_TRIP]
            some = await self._trip(part, build, placing=placing)
            outcomes.update(some)
            if waits and (lost := _lost(some)):
                outcomes.update(await self._recovered(lost, build, placing=placing))
        return outcomes

    async def _recovered(
        self, uids: list[str], build: Build, *, placing: bool
    ) -> dict[str, Outcome | RouteError]:
        """Run what was refused again, each time after the recovery of its shards."""
        outcomes: dict[str, Outcome | RouteError] = {}
        for _ in range(_TRIES):
            try:
                await self.recover({self._keys.shard(uid) for uid in uids})
            except RouteError as error:
                return {**outcomes, **dict.fromkeys(uids, error)}
            outcomes.update(await self._trip(uids, build, placing=placing))
            uids = _lost(outcomes)
            if not uids:
                break
        return outcomes

    async def read(
        self, service: str, uids: Sequence[str], *, waits: bool = True
    ) -> dict[str, Outcome | RouteError]:
        """Read links without changing anything; see `run`."""

        def build(writer: Writer, shard: int, some: list[str]) -> Call:
            names = [(service, uid) for uid in some]
            return self._links.read(writer.seen, shard, names, writer.latest_us)

        return await self.run(uids, build, waits=waits)

    async def _trip(
        self, uids: Sequence[str], build: Build, *, placing: bool
    ) -> dict[str, Outcome | RouteError]:
        outcomes: dict[str, Outcome | RouteError] = {}
        parts, asked_at = self._parts(uids), now()
        try:
            if placing:
                await self.may_place()  # nothing is awaited between this and the sending
            for shard, some in parts:
                if shard in self.aside:  # also if what was awaited has set it aside
                    outcomes.update(dict.fromkeys(some, self.problems.aside(shard)))
            parts = [part for part in parts if part[0] not in self.aside]
            calls = [build(self.writer(shard), shard, some) for shard, some in parts]
            replies = await self._store.run(calls)
            self._meter.observe(STORE_SECONDS, now() - asked_at)
        except RouteError as error:
            if placing:
                self._note_placing((shard for shard, _ in parts), late=True)
            return {**outcomes, **{uid: error for _, some in parts for uid in some}}
        for (shard, some), call, reply in zip(parts, calls, replies, strict=True):
            parsed = self._outcomes(shard, some, reply, call)
            if placing:
                self._note_placing([shard], late=isinstance(reply, RouteError))
            if isinstance(parsed, RouteError):
                outcomes.update(dict.fromkeys(some, parsed))
            else:
                outcomes.update(parsed)
        return outcomes

    def writer(self, shard: int) -> Writer:
        """Who writes to a shard, as its scripts want to know it."""
        return Writer(self.incarnation, self.seen[shard], self.clocks.of(shard).latest_us())

    def _note_placing(self, shards: Iterable[int], *, late: bool) -> None:
        """Note the latest moment at which what was sent may have been carried out."""
        at = now() + (_CARRIED_OUT_S if late else 0)
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
        self.seen[shard] = max(self.seen[shard], parsed.counter)
        if not self._spans[shard].take(parsed.found, parsed.counter):
            # Whichever stays: what is on its way to it may lift its counter past any known one.
            self.aside.add([shard])
            return self.problems.lost_writes([shard], "two servers have taken writes to it")
        outcomes = starmap(_outcome, zip(parsed.links, parsed.written, strict=True))
        return dict(zip(uids, outcomes, strict=True))


def _lost(outcomes: dict[str, Outcome | RouteError]) -> list[str]:
    return [uid for uid, outcome in outcomes.items() if isinstance(outcome, LostWritesError)]


def _outcome(link: Link | RouteError | None, written: bool) -> Outcome | RouteError:  # noqa: FBT001
    return link if isinstance(link, RouteError) else Outcome(link, written)


async def _anybody_may() -> None:
    """Let every placement through."""


async def _nobody_recovers(_: Iterable[int]) -> None:
    """Leave lost shards as they are."""
