"""The counters of all shards: the highest that this router has seen, and what Redis has of them.

A counter that is lower than one that was seen tells that writes are lost. Which shards nothing may
be read from or written to is known here, too: those that are set aside, and those whose answers
were lost.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from ray_route.clock import now
from ray_route.errors import RouteError, StoreUnavailableError
from ray_route.router.problems import Problems
from ray_route.router.sendings import Sendings
from ray_route.router.server_clock import ServerClocks
from ray_route.router.set_aside import SetAside
from ray_route.router.spans import Spans
from ray_route.store.connect import AsyncStore
from ray_route.store.counters import parse_counter, parse_counters
from ray_route.store.keys import Keys
from ray_route.store.links import LinkCalls


class Compared(NamedTuple):
    """What comparing counters has found.

    Of `lost` shards a missing link means nothing: Redis has lost their writes, or its clock has
    stepped. Of `unseen` nothing is known now; `servers` are those whose shards have been compared,
    `answered` all that are there, by name; `at` is when counters were read.
    """

    lost: frozenset[int]
    unseen: frozenset[int]
    servers: Mapping[str, str]
    answered: Mapping[str, str]
    at: float


class _Read(NamedTuple):
    """Who one server is, what its counters hold, which are lost, and if it told of all."""

    server: str
    who: str
    seen: Mapping[int, bytes | None]
    lost: Collection[int]
    is_whole: bool


class Counters:
    """What a router knows of the shards' counters. Belongs to one event loop."""

    def __init__(self, store: AsyncStore, keys: Keys, links: LinkCalls, problems: Problems) -> None:
        self.seen = [0] * keys.shards
        self.aside = SetAside(links.config)
        self.sendings = Sendings()
        self.clocks = ServerClocks(links.config, keys.shards, is_cluster=store.is_cluster)
        self._store = store
        self._keys = keys
        self._links = links
        self._problems = problems
        self._spans = [Spans() for _ in range(keys.shards)]
        self._seen_at: dict[int, str] = {}
        """By which name each shard's server was seen last."""
        self._tried_at: dict[int, str | None] = {}
        """And where it was looked for last."""
        self._tried = -math.inf

    def remember(self, seen: Iterable[tuple[int, int]]) -> None:
        """Take in (shard, counter) that somebody else was told."""
        for shard, counter in seen:
            self.seen[shard] = max(self.seen[shard], counter)

    def take(self, shard: int, found: int, left: int) -> bool:
        """Take in the counters that a script of this router found and left.

        False if two servers have taken writes to the shard, which is set aside then: whichever
        stays, what is on its way to it may lift its counter past any that is known.
        """
        self.remember([(shard, left)])
        is_whole = self._spans[shard].take(found, left)
        if not is_whole:
            self.aside.add([shard])
        return is_whole

    def shut(self, shard: int) -> StoreUnavailableError | None:
        """Return why nothing may be read from or written to a shard now."""
        if shard in self.aside:
            return self._problems.aside(shard)
        is_known = self._server_of(shard) in (None, self._seen_at.get(shard))
        is_open = is_known and not self.sendings.is_in_doubt(shard)
        return None if is_open else self._problems.unread(shard)

    def needs_look(self, shard: int) -> bool:
        """True if a look may open a shard: not if one has just tried, and its server is away."""
        known = (None, self._seen_at.get(shard), self._tried_at.get(shard))
        is_elsewhere = self._server_of(shard) not in known
        return is_elsewhere or self.sendings.is_in_doubt(shard, self._tried)

    def _server_of(self, shard: int) -> str | None:
        """Name a shard's server in a Cluster; None if none is known, and elsewhere."""
        if not self._store.is_cluster:
            return None
        return self._store.server_of(self._keys.counter(shard))

    async def compare(self) -> Compared:
        """Look which servers there are, then at their counters and time; say what is lost.

        All servers are read at once. One that fails costs its own shards alone. Raises
        `StoreUnavailableError` if nobody answers, in a Cluster if no master does.
        """
        asked_at = now()
        servers = await self._store.servers()
        known = {name: shards for name, shards in self._by_server().items() if name in servers}
        reading = (self._read(name, shards) for name, shards in known.items())
        began = now()  # not before: a master that is away has kept it waiting
        found = [each for each in await asyncio.gather(*reading) if each is not None]
        homes = {shard: each.who for each in found for shard in each.seen}
        self._seen_at.update((shard, each.server) for each in found for shard in each.seen)
        self._tried = asked_at
        self._tried_at = {shard: self._server_of(shard) for shard in range(self._keys.shards)}
        self.aside.add(self.sendings.moved_to(homes))
        self.sendings.looked(homes, asked_at)
        unseen = frozenset(range(self._keys.shards)).difference(homes)
        self.aside.looked(unseen, began, now())
        aside = self._refused(found)
        return Compared(
            aside.union(*(each.lost for each in found)),
            unseen,
            {each.server: each.who for each in found if each.is_whole},
            {**servers, **{each.server: each.who for each in found}},
            began,
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

    async def _read(self, server: str | None, shards: list[int]) -> _Read | None:
        """Compare the shards of one server; None where it does not answer in time."""
        assert server is not None
        seen, asked_at = list(self.seen), now()
        calls = self._links.counters(shards, by_slot=self._store.is_cluster)
        try:
            who, replies = await self._store.ask(server, calls)
            time_us, stored = parse_counters(replies)
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
            self.remember([(shard, parse_counter(counter))])
            self._spans[shard].saw(parse_counter(counter))
        return _Read(server, who, counters, lost, is_whole=len(counters) == len(shards))

    async def stored(self) -> dict[int, bytes | None]:
        """Return what stands in all counters that can be read; raise what keeps others from it."""
        servers = await self._store.servers()  # who they are must be known first
        stored: dict[int, bytes | None] = {}
        for server, shards in self._by_server().items():
            if server is None or server not in servers:
                continue  # in a Cluster: it is away
            calls = self._links.counters(shards, by_slot=self._store.is_cluster)
            _, replies = await self._store.ask(server, calls)
            _, counters = parse_counters(replies)
            for shard, counter in zip(shards, counters, strict=True):
                if isinstance(counter, RouteError):
                    raise counter
                stored[shard] = counter
        return stored
