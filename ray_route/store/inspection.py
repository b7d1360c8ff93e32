"""Looks at every key of a namespace: what is damaged, and how to mend it.

The commands that mend rest on the rule that Redis may lose anything: what is deleted by them is
written back by those who know it, under its old epochs, before anyone takes it for missing.
"""

from __future__ import annotations

import json
import shlex
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ray_route.config import RouteConfig
from ray_route.errors import ConfigError, DamagedKeyError, RouteError
from ray_route.model import is_name
from ray_route.protocol.changes import UnreadableEntryError, read_entry
from ray_route.store.connect import AsyncStore
from ray_route.store.counters import parse_counter
from ray_route.store.damage import MOST, shown
from ray_route.store.keys import Keys
from ray_route.store.links import parse_link
from ray_route.store.namespaces import LAYOUT, parse_layout, parse_options
from ray_route.store.pods import damaged_field, is_part, read_table
from ray_route.store.scripts import Call, plain_call

_KEYS_PER_LOOK = 5_000
_ENTRIES = 10_000
_STRAYS_NAMED = 20  # of each life
# In one step, so that nobody claims an index in between; the router writes back what is missing.
_FORGET_FIELDS = (
    'redis.call("HDEL", KEYS[1], unpack(ARGV)); return redis.call("HDEL", KEYS[2], "sealed")'
)
_FORGET_TABLE = 'redis.call("DEL", KEYS[1]); return redis.call("HDEL", KEYS[2], "sealed")'
_WRITE_META = (
    'redis.call("DEL", KEYS[1]); return redis.call('
    '"HSET", KEYS[1], "layout", ARGV[1], "shards", ARGV[2], "options", ARGV[3])'
)


@dataclass(frozen=True, slots=True)
class Damage:
    """A damaged key: what it holds, and the command of `redis-cli` that mends it."""

    key: str
    found: str
    mend: str


async def damages(store: AsyncStore, namespace: str) -> AsyncIterator[Damage]:
    """Yield what is damaged in a namespace; reads all of it, in pieces that block nobody.

    Raises `StoreUnavailableError`. Keys of kinds that are unknown here are left alone.
    """
    keys = Keys(namespace, 1)
    look = _Look(store, keys)
    some: list[str] = []
    async for key in store.scan(keys.everything()):
        if key != keys.meta:
            some.append(key)
        if len(some) == _KEYS_PER_LOOK:
            for damage in await look.at(some):
                yield damage
            some = []
    # Last: the counters say how many shards there are, and the pod tables which pods.
    for damage in [*await look.at(some), *await look.at([keys.meta]), *look.strays()]:
        yield damage


class _Look:
    """One look at a namespace, some keys at a time."""

    def __init__(self, store: AsyncStore, keys: Keys) -> None:
        self._store = store
        self._keys = keys
        self._shards = 0
        self._known: dict[tuple[str, int], int] = {}
        self._unknown: set[str] = set()
        self._owners: dict[tuple[str, int, int], list[str]] = defaultdict(list)

    async def at(self, names: Sequence[str]) -> list[Damage]:
        """Return what is damaged of some keys."""
        found: list[Damage] = []
        asked = [(name, *how) for name in names if (how := self._reading(name)) is not None]
        replies = await self._store.run([call for _, call, _ in asked])
        for (name, _, judge), reply in zip(asked, replies, strict=True):
            if isinstance(reply, DamagedKeyError):
                found.append(Damage(name, reply.reason, self._deletion(name)))
            elif isinstance(reply, RouteError):
                raise reply
            elif reply is not None:  # else it has gone meanwhile
                found.extend(judge(name, reply))
        return found

    def strays(self) -> Iterator[Damage]:
        """Yield links to lives that no pod has had. Table and link may be of two moments."""
        for (service, pod, incarnation), names in self._owners.items():
            if service not in self._unknown and self._known.get((service, pod), -1) < incarnation:
                for name in names:
                    found = f"a link to life {incarnation} of pod {pod}, which has had none such"
                    yield Damage(name, found, _without_link(name))

    def _reading(self, name: str) -> tuple[Call, Callable[[str, Any], Iterable[Damage]]] | None:
        """Return how a key is read, and who judges the reply; None for a kind not known here."""
        keys = self._keys
        if name == keys.meta:
            return plain_call("HMGET", name, "layout", "shards", "options"), self._meta
        if name == keys.services:
            return plain_call("SMEMBERS", name), _services
        if name == keys.log:
            return plain_call("XREVRANGE", name, "+", "-", "COUNT", _ENTRIES), _log
        if keys.table_named(name) is not None:
            return plain_call("HGETALL", name), self._table
        if keys.counter_named(name) is not None:
            return plain_call("GET", name), self._counter
        return (plain_call("GET", name), self._link) if keys.link_named(name) else None

    def _deletion(self, name: str) -> str:
        """Say how to delete a key that is damaged as a whole."""
        if name == self._keys.meta:
            return self._new_meta(b"")
        if (service := self._keys.table_named(name)) is not None:
            self._unknown.add(service)
            return _command("EVAL", _FORGET_TABLE, 2, name, self._keys.meta)
        return _without_link(name) if self._keys.link_named(name) else _command("DEL", name)

    def _meta(self, name: str, reply: list[bytes | None]) -> Iterator[Damage]:
        layout, shards, options = reply
        if (layout, shards, options) == (None, None, None):
            return
        try:
            parse_layout(self._keys, b"%d" % LAYOUT if layout is None else layout)
            parse_options(self._keys, shards, options)
        except DamagedKeyError as error:
            yield Damage(name, error.reason, self._new_meta(options or b""))

    def _new_meta(self, options: bytes) -> str:
        """Write meta anew, for the case that no router does so within a heartbeat.

        With the options that it has, if they can be read, and as many shards as there are counters.
        """
        try:
            config = RouteConfig.of({**dict(json.loads(options)), "shards": self._shards or 256})
        except (ValueError, TypeError, RecursionError, ConfigError):
            config = RouteConfig(shards=self._shards or 256)
        words = (LAYOUT, config.shards, json.dumps(config.durable()))
        return _command("EVAL", _WRITE_META, 1, self._keys.meta, *words)

    def _table(self, name: str, reply: list[bytes] | dict[bytes, bytes]) -> Iterator[Damage]:
        table = read_table(reply)
        service = self._keys.table_named(name) or ""
        self._known.update(((service, pod.pod), pod.incarnation) for pod in table.records)
        flat = reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
        for where, reason in table.damaged.items():
            if isinstance(where, int):
                self._known[service, where] = MOST  # nobody knows
            fields = [field for field in flat if is_part(field, where)]
            mend = _command("EVAL", _FORGET_FIELDS, 2, name, self._keys.meta, *fields)
            yield Damage(name, damaged_field(name, where, reason).reason, mend)

    def _counter(self, name: str, value: bytes) -> Iterator[Damage]:
        self._shards = max(self._shards, 1 + (self._keys.counter_named(name) or 0))
        if parse_counter(value) < 0:
            found = f"{shown(value)} instead of a counter and its router"
            yield Damage(name, found, _command("DEL", name))

    def _link(self, name: str, value: bytes) -> Iterator[Damage]:
        found = parse_link(value)
        if found is None:
            yield Damage(name, f"{shown(value)} instead of a link", _without_link(name))
            return
        service, _ = self._keys.link_named(name) or ("", "")
        pod, incarnation = found[0]
        of_owner = self._owners[service, pod, incarnation]
        if len(of_owner) < _STRAYS_NAMED:
            of_owner.append(name)


def _services(name: str, reply: list[bytes]) -> Iterator[Damage]:
    for member in reply:
        if not is_name(member.decode(errors="replace")):
            found = f"{shown(member)} instead of a service's name"
            yield Damage(name, found, _command("SREM", name, member))


def _log(name: str, reply: list[Any]) -> Iterator[Damage]:
    for entry, fields in reply:
        try:
            read_entry(fields)
        except UnreadableEntryError as error:
            yield Damage(name, f"entry {entry.decode()}, {error}", _command("XDEL", name, entry))


def _without_link(name: str) -> str:
    """Delete a link with its shard's counter: as a loss of writes, which pods make good."""
    tag = name[: name.index("}") + 1]
    return _command("DEL", name, f"{tag}:e")


def _command(*words: object) -> str:
    return "redis-cli " + " ".join(map(_word, words))


def _word(value: object) -> str:
    """Quote a word for a shell, whatever bytes are in it."""
    text = value.decode(errors="surrogateescape") if isinstance(value, bytes) else str(value)
    if text.isprintable():
        return shlex.quote(text)
    data = text.encode(errors="surrogateescape")
    return "$'" + "".join(f"\\x{byte:02x}" for byte in data) + "'"
