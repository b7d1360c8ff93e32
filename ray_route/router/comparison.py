"""Looks at Redis: which servers there are, and whether they have lost anything.

A look waits for Redis alone. What it finds lost is told at once, and is made up for elsewhere
(`recovery`), however long that takes: a server is vouched for by what was compared, and who reads
a shard that is still lost is refused by its counter.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ray_route.config import RouteConfig
from ray_route.errors import DamagedKeyError
from ray_route.router.counters import Compared as Seen
from ray_route.router.shards import Shards
from ray_route.store.connect import AsyncStore
from ray_route.store.damage import tell
from ray_route.store.keys import Keys
from ray_route.store.namespaces import is_whole, read_whole


@dataclass(frozen=True, slots=True)
class Compared:
    """What a look has found; `at` is the moment before counters were read.

    `servers` are the identities of the primaries whose counters were compared; they were read
    before. Of `lost` shards a missing link means nothing; of `unseen` ones, in a Cluster, nothing
    is known while their master is away. `is_whole` is true if nothing is known to be lost, nor the
    pod tables. `steps` is for `ServerClocks.believe`.
    """

    at: float
    servers: str
    lost: frozenset[int]
    unseen: frozenset[int]
    is_whole: bool
    steps: Sequence[float | None]


class Comparison:
    """Compares what Redis has with what this router knows. Belongs to one event loop.

    `tell_lost` hears of shards that are found lost, with their counters: once, until they may have
    been well in between. `tell_servers` hears that the servers of the last look, `seen_last`, are
    others.
    """

    def __init__(self, config: RouteConfig, store: AsyncStore, keys: Keys, shards: Shards) -> None:
        self._config = config
        self._store = store
        self._keys = keys
        self._shards = shards
        self._lost: frozenset[int] = frozenset()
        self._restoring: frozenset[int] = frozenset()
        self.tell_lost: Callable[[Mapping[int, int]], None] = _tell_nobody
        self.tell_servers: Callable[[], None] = _tell_nobody
        self.seen_last = ""
        self._servers: Mapping[str, str] = {}

    async def look(self) -> Compared:
        """Look once; raise `RouteError` where Redis fails, in a Cluster if all masters do."""
        found = await self._shards.counters.compare()
        self._servers = found.answered
        steps = self._shards.counters.clocks.steps(found.lost)
        self._tell(found.lost, found.unseen)
        names = named(found.servers.values())
        self._note(names)
        whole = not found.lost and await self._is_whole(names, found)
        return Compared(found.at, names, found.lost, found.unseen, whole, steps)

    async def _is_whole(self, servers: str, found: Seen) -> bool:
        """True if the pod tables are those of these servers, as far as can be known now."""
        if found.unseen and self._store.server_of(self._keys.meta) not in found.servers:
            return True
        return await self.is_sealed(servers, others_away=bool(found.unseen))

    def _tell(self, lost: frozenset[int], unseen: frozenset[int]) -> None:
        news = lost - (self._lost - self._restoring)
        self._lost = lost | (self._lost & unseen)
        if news:
            self.tell_lost({shard: self._shards.counters.seen[shard] for shard in sorted(news)})

    def _note(self, servers: str) -> None:
        if servers != self.seen_last:
            self.seen_last = servers
            self.tell_servers()

    @contextmanager
    def restoring(self, shards: Collection[int]) -> Iterator[None]:
        """Note that some shards are written back: found lost meanwhile or later, they are news.

        Each is well as soon as its own counter is there, which may be lost again before this router
        hears that it was.
        """
        self._restoring = frozenset(shards)
        try:
            yield
        finally:
            self._lost -= self._restoring
            self._restoring = frozenset()

    async def servers(self) -> str:
        """Name the servers that answer; raise `RouteError` if none does."""
        self._servers = await self._store.servers()
        return named(self._servers.values())

    def without_aside(self, servers: str) -> str:
        """Leave out of some servers, as they were looked at, those with shards that are set aside.

        For a seal: who finds it goes by what such a server has, though nobody has compared that.
        """
        keys = map(self._keys.counter, self._shards.counters.aside.shards)
        apart = {self._servers.get(self._store.server_of(key) or "") for key in keys}
        return named(set(servers.split(",")).difference(filter(None, apart)))

    @property
    def home(self) -> str:
        """Name the server that has the namespace's own keys, as they were looked at; else ""."""
        return self._servers.get(self._store.server_of(self._keys.meta) or "", "")

    async def is_sealed(self, servers: str, *, others_away: bool = False) -> bool:
        """True if the namespace was whole on these servers; others come after a failover.

        On these and more, with `others_away`. Not where its own key is damaged either: a recovery
        writes that anew.
        """
        try:
            reply = await self._store.one(read_whole(self._keys))
        except DamagedKeyError as error:
            tell(error)
            return False
        # Where they are is known better once they have been read.
        names, home = servers.split(","), self.home
        return is_whole(self._keys, reply, self._config, names, home, others_away=others_away)


def named(identities: Iterable[str]) -> str:
    """Write the identities of servers as one text."""
    return ",".join(sorted(identities))


def _tell_nobody(*_: object) -> None:
    """Keep it to oneself."""
