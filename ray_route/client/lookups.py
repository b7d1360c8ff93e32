"""Look-ups of single uids: read from Redis by this process, and only the rest asked of the router.

What makes the reading safe is in `docs/guarantees.md`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ray_route.client.coalescer import Coalescer, Done, Put, Send, Take
from ray_route.clock import now
from ray_route.config import RouteConfig
from ray_route.errors import RouteError
from ray_route.model import Link
from ray_route.runtime.link_reads import LinkReads, OfService, Part, Reading, Readings
from ray_route.store.keys import Keys
from ray_route.store.links import MAX_UIDS

# A shorter share of the longest lease is not worth keeping: the router lengthens the link's life.
_LEAST_SHARE = 0.1
# After so many reads that told nothing only one of so many is made.
_READS_IN_VAIN = 32
_LEFT_OUT = 16
# What is left of a link's life when it is reported as used.
_FRESH_SHARE = 0.9


class Lost(NamedTuple):
    """Redis has lost writes to a uid's shard: they must be recovered before it is asked again."""

    shard: int


class Found(NamedTuple):
    """What one reading tells of many uids; of the others it tells nothing.

    `used` are the epochs of links that have less of their lives left than is good, `ending` the
    uids whose removal is scheduled, and `read` says how many uids a server has told of at all.
    """

    links: dict[str, Link]
    used: dict[str, int]
    lost: dict[str, Lost]
    ending: set[str]
    read: int


@dataclass(frozen=True, slots=True)
class Judge:
    """Says which links a process may take from Redis for itself.

    `serving` has the incarnations of routable pods, by service and index.
    """

    keys: Keys
    config: RouteConfig
    serving: Mapping[str, Mapping[int, int]]

    def parts(self, service: str, uids: Sequence[str]) -> list[Part]:
        """Sort uids into what is asked of each shard."""
        if len(uids) == 1:  # the common case, in 3 µs less
            return [Part(self.keys.shard(uids[0]), [(service, uids[0])])]
        by_shard: defaultdict[int, list[str]] = defaultdict(list)
        for shard, uid in zip(self.keys.shards_of(uids), uids, strict=True):
            by_shard[shard].append(uid)
        return [
            Part(shard, OfService(service, some[start : start + MAX_UIDS]))
            for shard, some in by_shard.items()
            for start in range(0, len(some), MAX_UIDS)
        ]

    def found(
        self,
        service: str,
        parts: Sequence[Part],
        readings: Readings,
        age_s: float,
    ) -> Found:
        """Return what may be taken of what was read, `age_s` ago; leave the rest to the router.

        That is what has no link, or one to a life that does not serve, or one whose lease is too
        short to be worth keeping, or is over.
        """
        there = zip(parts, readings, strict=True)
        read = sum(len(part.names) for part, reading in there if reading is not None)
        found = Found({}, {}, {}, set(), read)
        for part, reading in zip(parts, readings, strict=True):
            if reading is None or isinstance(reading, Exception):
                continue
            if reading.reply.status == "ok":
                self._take(service, part, reading, age_s, found)
            else:
                lost = Lost(part.shard)
                found.lost.update((uid, lost) for _, uid in part.names)
        return found

    def _take(self, service: str, part: Part, reading: Reading, age_s: float, found: Found) -> None:
        config, serving = self.config, self.serving.get(service, {})
        least_s = age_s + _LEAST_SHARE * config.lease_s
        fresh_s = _FRESH_SHARE * config.ttl_s - config.margin_s
        for (_, uid), link, ends in zip(
            part.names, reading.reply.links, reading.ending, strict=True
        ):
            if not isinstance(link, Link):
                continue  # there is none, or its key is damaged: the router says which
            if link.lease_s < least_s or serving.get(link.pod) != link.incarnation:
                continue
            found.links[uid] = link
            if ends:
                found.ending.add(uid)
            elif link.lease_s < fresh_s and not link.persistent:
                found.used[uid] = link.epoch


class NewUids:
    """Notices where all that is asked for is new: then a read tells nothing, and is left out.

    A read in vain costs a tenth of what it saves where it tells. So it is left out only after many
    in vain, and tried now and then; one that tells something brings it back.
    """

    def __init__(self) -> None:
        self._in_vain: dict[str, int] = {}
        self._left_out: dict[str, int] = {}

    def may_be_known(self, service: str) -> bool:
        """True if the next read of a service may tell something."""
        if self._in_vain.get(service, 0) < _READS_IN_VAIN:
            return True
        left_out = self._left_out.get(service, 0) + 1
        self._left_out[service] = left_out
        return left_out % _LEFT_OUT == 0

    def note(self, service: str, read: int, told: int) -> None:
        """Take in how many uids a server has told of, and of how many that it knows something.

        Where nothing was believed, nothing was read in vain.
        """
        self._in_vain[service] = 0 if told else self._in_vain.get(service, 0) + read


class Lookups:
    """Look-ups of one kind, many at once in one question. Thread-safe.

    Answers of `reading` are links, or `Lost`, or where Redis did not tell the batch that brings the
    router's answer. `ready` tells whether Redis may be read now, and `keep` takes in what was
    found. `send` and `take` are those of the questions to the router.
    """

    def __init__(
        self,
        put: Put,
        judge: Judge,
        new_uids: NewUids,
        ready: Callable[[], bool],
        reads: LinkReads,
        keep: Callable[[str, Found, float], None],
        send: Send,
        take: Take,
    ) -> None:
        self.deciding = Coalescer(put, send, take)
        self.reading = Coalescer(put, self._send, self._take)
        self._judge = judge
        self._new_uids = new_uids
        self._ready = ready
        self._reads = reads
        self._keep = keep

    def close(self, error: RouteError) -> None:
        """Let all who wait, and all who come, hear that this has ended."""
        for questions in (self.reading, self.deciding):
            questions.close(error)

    def look_here(self, service: str, uid: str) -> Any:
        """Read one link in the calling thread; return what an answer of `reading` may be.

        None where it can't be read here: others read now, or nothing is to be believed.
        """
        part, asked_at = Part(self._judge.keys.shard(uid), [(service, uid)]), now()
        reading = self._reads.read_here(part)
        if reading is None:
            return None
        found = self._judge.found(service, [part], [reading], now() - asked_at)
        return self._settled(service, (uid,), found, asked_at)[uid]

    def _send(self, service: str, wanted: Mapping[str, int], done: Done) -> None:
        parts = self._judge.parts(service, list(wanted))
        reply = parts, self._reads.read(parts)
        done(lambda: reply)

    def _take(
        self, service: str, wanted: dict[str, int], reply: Any, asked_at: float
    ) -> dict[str, Any]:
        parts, readings = reply
        found = self._judge.found(service, parts, readings, now() - asked_at)
        return self._settled(service, wanted, found, asked_at)

    def _settled(
        self, service: str, uids: Collection[str], found: Found, asked_at: float
    ) -> dict[str, Any]:
        """Keep what was found, and have the router decide the rest."""
        self._new_uids.note(service, found.read, len(found.links) + len(found.lost))
        if self._ready():
            self._keep(service, found, asked_at)
        else:  # the stream has not been heard meanwhile
            found = Found({}, {}, found.lost, set(), found.read)
        answers: dict[str, Any] = {**found.links, **found.lost}
        if len(answers) < len(uids):
            rest = {uid: 0 for uid in uids if uid not in answers}
            answers.update(self.deciding.join_all(service, rest))
        return answers
