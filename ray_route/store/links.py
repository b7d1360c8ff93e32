"""Links in Redis: builds the calls and reads the replies. Nothing here does I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal, NamedTuple

from ray_route.config import RouteConfig
from ray_route.errors import DamagedKeyError
from ray_route.model import Link, make_link
from ray_route.store.damage import MOST, is_number, shown
from ray_route.store.keys import Keys
from ray_route.store.scripts import Call, plain_call, script_call

# 1,000 new links block Redis for about 4 ms; 500 uids per script keep others' waits short.
MAX_UIDS = 500

_OWNERS_KEPT = 10_000

_MOST = b"%d" % MOST
_COLONS = 2
EPOCH_DIGITS = len(_MOST)

_SCHEDULED_PERSISTENT = b":p"
_VALUE = re.compile(rb"([0-9]{1,10}):([0-9]{1,16}):([0-9]{1,16})(?::([0-9]{1,16}))?(?::([tp]))?")


ANY_TIME_US = 2**53
"""Later than any clock shows, and exact in a script's numbers."""


Why = Literal["wanted", "unused", "due"]
"""Why a link is removed: in any case; unless it is persistent; if its removal is scheduled."""


class Writer(NamedTuple):
    """Who writes, and what it knows of the shard that it writes to.

    `seen` is the highest counter that it was told, `latest_us` the latest time that the server's
    clock may show, in microseconds since 1970: later, the script changes nothing.
    """

    incarnation: int
    seen: int = 0
    latest_us: int = ANY_TIME_US


class ShardReply(NamedTuple):
    """What holds in one shard after a script.

    `status` is "ok", or the reason why nothing was changed: "superseded" (a younger router
    writes here), "lost" (Redis has lost writes) or "stepped" (its clock shows more than it can).
    `found` is the counter before the script.
    `links` and `written` follow the uids asked; in place of a link that is damaged stands the
    error that names its key.
    """

    status: str
    counter: int
    links: list[Link | DamagedKeyError | None]
    written: list[bool]
    found: int = 0


class RememberedLink(NamedTuple):
    """What somebody remembers of a link that Redis may have lost.

    `removal_s` is None, or how many seconds are left until its removal, 0 if it was removed.
    """

    link: Link
    removal_s: float | None = None


@dataclass(frozen=True, slots=True)
class LinkCalls:
    """Builds the calls of every verb on links. One call takes uids of one shard only.

    All uids of a call have the same `service`. Owners are "pod:incarnation".
    """

    keys: Keys
    config: RouteConfig
    # What values begin with, as read before: there are as many as lives of pods.
    _owners: dict[bytes, tuple[int, int]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def _ttl_ms(self) -> int:
        return int(self.config.ttl_s * 1000)

    def _call(
        self, verb: str, writer: Writer, shard: int, service: str, uids: Sequence[str], *args: Any
    ) -> Call:
        start = self.keys.link(shard, service, "")
        keys = [self.keys.counter(shard), *[start + uid for uid in uids]]
        whose = (writer.incarnation, writer.seen)
        return script_call(verb, keys, [*whose, *args, writer.latest_us])

    def set_if_absent(
        self,
        writer: Writer,
        shard: int,
        service: str,
        uids: Sequence[str],
        owners: Sequence[str],
        *,
        persistent: bool = False,
    ) -> Call:
        """Link each uid that has no link; a live link wins."""
        kind = _kind(persistent)
        return self._call(
            "set_if_absent", writer, shard, service, uids, self._ttl_ms, kind, *owners
        )

    def relink(
        self,
        writer: Writer,
        shard: int,
        service: str,
        uids: Sequence[str],
        expected: Sequence[int],
        owners: Sequence[str],
    ) -> Call:
        """Give each uid to another owner if its epoch is still the expected one."""
        pairs = _interleave(expected, owners)
        return self._call("relink", writer, shard, service, uids, self._ttl_ms, *pairs)

    def hand_over(
        self,
        writer: Writer,
        shard: int,
        service: str,
        uids: Sequence[str],
        expected: Sequence[int],
        owners: Sequence[str],
        *,
        persistent: bool | None = None,
    ) -> Call:
        """Give each uid to another owner if it has a link, of exactly the expected epoch.

        Of the kind that it has, unless `persistent` says another.
        """
        how = (self._ttl_ms, _kind(persistent))
        pairs = _interleave(expected, owners)
        return self._call("hand_over", writer, shard, service, uids, *how, *pairs)

    def regrant(
        self,
        writer: Writer,
        shard: int,
        service: str,
        uids: Sequence[str],
        expected: Sequence[int],
    ) -> Call:
        """Give each uid back to its owner under a new epoch, if its epoch is the expected one."""
        return self._call("regrant", writer, shard, service, uids, self._ttl_ms, *expected)

    def set(
        self,
        writer: Writer,
        shard: int,
        service: str,
        uids: Sequence[str],
        owners: Sequence[str],
        expected: Sequence[int | None] | None = None,
        *,
        persistent: bool | None,
    ) -> Call:
        """Link each uid to its owner if its epoch is the expected one, or if it has no link.

        Without `expected`, whatever it has; with `persistent=None` of the kind that it has.
        """
        epochs = (
            ["*"] * len(uids) if expected is None else ["" if e is None else e for e in expected]
        )
        how = (self._ttl_ms, _kind(persistent))
        pairs = _interleave(owners, epochs)
        return self._call("set", writer, shard, service, uids, *how, *pairs)

    def try_set(
        self,
        writer: Writer,
        shard: int,
        service: str,
        uids: Sequence[str],
        owners: Sequence[str],
        replaceable: Sequence[int | None],
        *,
        persistent: bool,
        steal: bool = False,
    ) -> Call:
        """Link each uid to its owner, unless another pod holds it under another epoch."""
        epochs = ["" if epoch is None else epoch for epoch in replaceable]
        how = (self._ttl_ms, _kind(persistent), "steal" if steal else "keep")
        pairs = _interleave(owners, epochs)
        return self._call("try_set", writer, shard, service, uids, *how, *pairs)

    def remove(
        self, writer: Writer, shard: int, service: str, uids: Sequence[str], after_s: float = 0
    ) -> Call:
        """Remove each uid's link, now or after a delay."""
        return self._call("remove", writer, shard, service, uids, _delay_ms(after_s))

    def remove_if(
        self,
        writer: Writer,
        shard: int,
        service: str,
        uids: Sequence[str],
        meant: Sequence[str],
        after_s: float = 0,
        why: Why = "wanted",
    ) -> Call:
        """Remove each uid's link if it is the one meant, and if it may go for that (see `Why`).

        What is meant is written "pod", "pod:incarnation" or "pod:incarnation:epoch".
        """
        how = (_delay_ms(after_s), why)
        return self._call("remove_if", writer, shard, service, uids, *how, *meant)

    def refresh(
        self,
        writer: Writer,
        shard: int,
        service: str,
        uids: Sequence[str],
        expected: Sequence[int],
        *,
        ending: bool = False,
    ) -> Call:
        """Lengthen the life of links in use; `ending`: also if their removal is scheduled."""
        how = (self._ttl_ms, "ending" if ending else "used")
        return self._call("refresh", writer, shard, service, uids, *how, *expected)

    def readmit(
        self,
        writer: Writer,
        shard: int,
        service: str,
        uids: Sequence[str],
        links: Sequence[Link],
    ) -> Call:
        """Write temporary links back that have run out, where the uid has none now."""
        values = [f"{link.pod}:{link.incarnation}:{link.epoch}" for link in links]
        return self._call("readmit", writer, shard, service, uids, self._ttl_ms, *values)

    def restore(
        self,
        writer: Writer,
        shard: int,
        service: str,
        uids: Sequence[str],
        kept: Sequence[RememberedLink],
        *,
        token: int = 1,
        first: bool = True,
        last: bool = True,
    ) -> Call:
        """Write back a part of a shard's lost links; a temporary one lives as if refreshed now.

        `token` names the recovery: a small number, the same for all parts of the shard.
        """
        pairs = chain.from_iterable(map(self._restored, kept))
        how = ("first" if first else "next", "last" if last else "more")
        return self._call("restore", writer, shard, service, uids, token, *how, *pairs)

    def _restored(self, kept: RememberedLink) -> tuple[str, int | str]:
        link = kept.link
        value = f"{link.pod}:{link.incarnation}:{link.epoch}"
        if link.replaced:
            value = f"{value}:{link.replaced}"
        if kept.removal_s is None:
            return value, "" if link.persistent else self._ttl_ms
        left_ms = _delay_ms(kept.removal_s)
        return f"{value}:{'p' if link.persistent else 't'}", left_ms

    def take_over(self, writer: Writer, shard: int) -> Call:
        """Make the caller the shard's only writer."""
        return self._call("take_over", writer, shard, "", ())

    def read(
        self,
        seen: int,
        shard: int,
        names: Iterable[tuple[str, str]],
        latest_us: int | None = None,
    ) -> Call:
        """Read the links of (service, uid) names of one shard; not past `latest_us`, if given."""
        keys = [self.keys.counter(shard), *self.keys.links_of(shard, names)]
        return script_call("read", keys, [seen] if latest_us is None else [seen, latest_us])

    def counters(self, shards: Sequence[int], *, by_slot: bool) -> list[Call]:
        """Read the time of one server, and counters that it holds; `by_slot` in a Cluster."""
        keys = [self.keys.counter(shard) for shard in shards]
        named = [[key] for key in keys] if by_slot else [keys]
        return [Call(keys[0], ("TIME",)), *(plain_call("MGET", *some) for some in named)]

    def parse(self, reply: list[Any], call: Call | None = None) -> ShardReply:
        """Read the reply of any verb on links; `call` has the keys, for the errors of damaged ones.

        Without it a damaged link is named by what it holds alone.
        """
        status, (counter, _, found) = reply[0].decode(), reply[1].partition(b":")
        values, ttls, written = reply[2::3], reply[3::3], reply[4::3]
        links = self._links(call.keys[1:] if call else (), zip(values, ttls, strict=True))
        flags = [flag == 1 for flag in written]
        return ShardReply(status, int(counter), links, flags, int(found or counter))

    def _links(
        self, names: Sequence[str], stored: Iterable[tuple[bytes | None, int | None]]
    ) -> list[Link | DamagedKeyError | None]:
        """Read values and what is left of their TTLs: 0.5 µs each; splitting all, 1.1 µs."""
        longest_s, margin_s = self.config.lease_s, self.config.margin_s
        owners = self._owners
        if len(owners) > _OWNERS_KEPT:
            owners.clear()
        links: list[Link | DamagedKeyError | None] = []
        for value, ttl_ms in stored:
            if value is None:
                links.append(None)
                continue
            start, _, epoch = value.rpartition(b":")
            owner, replaced, persistent = owners.get(start), 0, ttl_ms is None
            # A new owner, more after the epoch, or damage; inline, since a call takes 0.1 µs.
            if owner is None or len(epoch) != EPOCH_DIGITS or epoch > _MOST or not epoch.isdigit():
                found = parse_link(value)
                if found is None:
                    links.append(self._damaged(names, len(links), value, ttl_ms))
                    continue
                owner, epoch, replaced = found
                persistent = persistent or value.endswith(_SCHEDULED_PERSISTENT)
                if value.count(b":") == _COLONS:
                    owners[start] = owner
            pod, incarnation = owner
            lease_s = longest_s if ttl_ms is None else ttl_ms / 1000 - margin_s
            if not 0.0 <= lease_s <= longest_s:
                lease_s = max(0.0, min(lease_s, longest_s))
            links.append(make_link(pod, incarnation, int(epoch), persistent, lease_s, replaced))
        return links

    def _damaged(
        self, names: Sequence[str], index: int, value: bytes, ttl_ms: int | None
    ) -> DamagedKeyError:
        key = names[index] if names else ""
        return damaged_link(self.keys, key, value, ends=ttl_ms is not None)


def parse_link(value: bytes) -> tuple[tuple[int, int], bytes, int] | None:
    """Return owner, epoch, and the epoch that it replaced or 0; None for a damaged value.

    The owner is (pod, incarnation).
    """
    found = _VALUE.fullmatch(value)
    if found is None or not all(is_number(found[n] or b"0") for n in (2, 3, 4)):
        return None
    return (int(found[1]), int(found[2])), found[3], int(found[4] or 0)


def damaged_link(keys: Keys, key: str, value: bytes, *, ends: bool = False) -> DamagedKeyError:
    """Make the error of a link that nobody can read; a script puts "?" before its value."""
    service, uid = Keys.link_named(key) or (None, None)
    return DamagedKeyError(
        key=key,
        reason=f"{shown(value.removeprefix(b'?'))} instead of a link",
        ends=ends,
        namespace=keys.namespace,
        service=service,
        uid=uid,
    )


def readable(links: Iterable[Link | DamagedKeyError | None]) -> list[Link | None]:
    """Return links that were read; raise the error of the first that is damaged."""
    good = []
    for link in links:
        if isinstance(link, DamagedKeyError):
            raise link
        good.append(link)
    return good


def _kind(persistent: bool | None) -> str:  # noqa: FBT001 - it has no other argument
    if persistent is None:
        return "kept"
    return "persistent" if persistent else "temporary"


def _delay_ms(after_s: float) -> int:
    # A delay too short for a millisecond is still a delay: 0 would remove at once.
    return max(1, int(after_s * 1000)) if after_s > 0 else 0


def _interleave(first: Sequence[Any], second: Sequence[Any]) -> Iterator[Any]:
    for one, other in zip(first, second, strict=True):
        yield one
        yield other
