"""One shard of a fresh namespace on a real server, driven verb by verb."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field, replace
from typing import Any

from ray_route.config import RouteConfig
from ray_route.model import Link
from ray_route.store.connect import Store
from ray_route.store.keys import Keys
from ray_route.store.links import LinkCalls, ShardReply, Writer
from ray_route.store.scripts import Call, plain_call, script_call

SERVICE = "chat"
TTL_MS = 300_000
MARGIN_S = 60.0
NO_TTL, NO_KEY = -1, -2


def _fresh_calls() -> LinkCalls:
    config = RouteConfig(ttl_s=TTL_MS / 1000, margin_s=MARGIN_S, shards=1)
    return LinkCalls(Keys(f"t{uuid.uuid4().hex[:12]}", config.shards), config)


@dataclass(frozen=True)
class Shard:
    """The shard as one router sees it. `do` compares every answer with what is stored."""

    store: Store
    writer: Writer = field(default_factory=lambda: Writer(1))
    calls: LinkCalls = field(default_factory=_fresh_calls)

    def seen_by(self, router: int = 1, seen: int = 0) -> Shard:
        """The same shard, as another router or one with other memories sees it."""
        return replace(self, writer=Writer(router, seen))

    def call(self, verb: str, uids: list[str], *args: Any, **options: Any) -> Call:
        return getattr(self.calls, verb)(self.writer, 0, SERVICE, uids, *args, **options)

    def send(self, verb: str, uids: list[str], *args: Any, **options: Any) -> ShardReply:
        return self.calls.parse(self.store.one(self.call(verb, uids, *args, **options)))

    def do(self, verb: str, uids: list[str], *args: Any, **options: Any) -> ShardReply:
        reply = self.send(verb, uids, *args, **options)
        if reply.status == "ok":
            stored = self.stored(uids)
            assert reply.links == stored, f"{verb} said what is not stored"
            assert _replaced(reply.links) == _replaced(stored), f"{verb} said another epoch"
        return reply

    def stored(self, uids: list[str]) -> list[Link | None]:
        values = self.store.run([plain_call("GET", self.key(uid)) for uid in uids])
        ttls = self.store.run([plain_call("PTTL", self.key(uid)) for uid in uids])
        return [_link(value, ttl) for value, ttl in zip(values, ttls, strict=True)]

    def one(self, verb: str, uid: str, *args: Any, **options: Any) -> tuple[Link | None, bool]:
        """Run a verb on one uid; what it takes per uid is given without a list around it."""
        reply = self.do(verb, [uid], *([arg] for arg in args), **options)
        assert reply.status == "ok"
        return reply.links[0], reply.written[0]

    def place(self, uid: str, owner: str, *, persistent: bool = False) -> Link:
        """Link a uid, whoever held it."""
        link, _ = self.one("set", uid, owner, persistent=persistent)
        assert link is not None
        return link

    def remove(self, uid: str, after_s: float = 0) -> tuple[Link | None, bool]:
        return self.one("remove", uid, after_s=after_s)

    def read(self, *uids: str, seen: int = 0) -> ShardReply:
        names = [(SERVICE, uid) for uid in uids]
        return self.calls.parse(self.store.one(self.calls.read(seen, 0, names)))

    def key(self, uid: str) -> str:
        return self.calls.keys.link(0, SERVICE, uid)

    def raw(self, uid: str) -> bytes | None:
        return self.store.one(plain_call("GET", self.key(uid)))

    def pttl(self, uid: str) -> int:
        """Milliseconds left, `NO_TTL` or `NO_KEY`."""
        return self.store.one(plain_call("PTTL", self.key(uid)))

    def expire(self, uid: str, ms: int) -> None:
        """Set what is left of a link's life by hand."""
        assert self.store.one(plain_call("PEXPIRE", self.key(uid), ms)) == 1

    def put(self, uid: str, value: bytes, link: Link) -> None:
        """Store a link by hand."""
        life = () if link.persistent else ("PX", TTL_MS)
        self.store.one(plain_call("SET", self.key(uid), value, *life))

    def counter(self) -> tuple[int, int]:
        """The stored counter, and the router that wrote it."""
        stored = self.store.one(plain_call("GET", self.calls.keys.counter(0)))
        counter, router = stored.split(b":")
        return int(counter), int(router)

    def set_counter(self, counter: int, router: int = 1) -> None:
        self.store.one(plain_call("SET", self.calls.keys.counter(0), f"{counter}:{router}"))

    def time_us(self) -> int:
        return int(self.store.one(script_call("time", [self.calls.keys.meta], [])))

    def lose_everything(self) -> None:
        self.store.one(Call("", ("FLUSHALL",)))

    def dump(self) -> dict[bytes, tuple[bytes, int]]:
        """Every key of the server with its bytes and its remaining life in seconds, rounded."""
        names = sorted(self.store.one(Call("", ("KEYS", "*"))))
        values = self.store.run([plain_call("DUMP", name) for name in names])
        lives = self.store.run([plain_call("PTTL", name) for name in names])
        return {
            name: (value, life if life < 0 else round(life / 10_000))
            for name, value, life in zip(names, values, lives, strict=True)
        }


def _link(value: bytes | None, ttl: int) -> Link | None:
    if value is None:
        return None
    pod, incarnation, epoch = (int(part) for part in value.split(b":")[:3])
    replaced = value.split(b":")[3] if value.count(b":") > 2 else b""
    number = int(replaced) if replaced.isdigit() else 0
    return Link(pod, incarnation, epoch, ttl == NO_TTL or value.endswith(b":p"), 0.0, number)


def _replaced(links: Any) -> list[int]:
    return [getattr(link, "replaced", 0) for link in links]


def owner(link: Link) -> tuple[int, int]:
    return link.pod, link.incarnation
