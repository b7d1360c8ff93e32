"""The near cache is believed only as long as the change stream is heard."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from helpers import eventually

from ray_route.client.change_reader import ChangeReader, Known
from ray_route.clock import now
from ray_route.config import RouteConfig
from ray_route.model import Link
from ray_route.protocol.changes import BEAT, Change, Position
from ray_route.runtime.belief import Belief
from ray_route.state.link_cache import LinkCache
from ray_route.state.pod_table import PodTable
from ray_route.store.connect import Store
from ray_route.store.embedded import EmbeddedServer
from ray_route.store.keys import Keys
from ray_route.store.scripts import plain_call
from ray_route.store.url import parse_url

S = "chat"
LINK = Link(0, 7, 100, persistent=False, lease_s=100.0)
STALENESS_S = 1.5
SEEN: dict[int, int] = {}
FIELDS = {"router": 1, "number": 2, "kind": "beat", "service": "", "payload": "{}"}


class Stream:
    """What a router writes, when a test says so."""

    def __init__(self, store: Store, keys: Keys) -> None:
        self._store, self._keys, self._number = store, keys, 0
        self.position = Position("0-0", 1, 0)

    def skip(self, entries: int) -> None:
        """Lose entries, as a trimmed stream or a failover does."""
        self._number += entries

    def append(self, change: Change, router: int = 1) -> None:
        self._number += 1
        fields: dict[str, Any] = {
            "router": router,
            "number": self._number,
            "kind": change.kind,
            "service": change.service,
            "payload": change.encode(),
        }
        flat = [part for pair in fields.items() for part in pair]
        entry = self._store.one(plain_call("XADD", self._keys.log, "*", *flat))
        self.position = Position(entry.decode(), router, self._number)


@pytest.fixture
def keys(namespace: str) -> Keys:
    return Keys(namespace, 256)


@pytest.fixture
def stream(store: Store, keys: Keys) -> Stream:
    return Stream(store, keys)


@pytest.fixture
def near(server: EmbeddedServer, keys: Keys, stream: Stream) -> Iterator[LinkCache]:
    """A near cache whose reader has just been told where the stream stands."""
    cache = LinkCache(100)
    config = RouteConfig(heartbeat_s=0.5, staleness_s=STALENESS_S)
    own = Store(parse_url(server.url), retries=0)
    place = Position("0-0", 1, 0)
    known = Known(PodTable(), cache, Belief(own, _nobody), SEEN.update)
    reader = ChangeReader(own, keys, config, known, place, now())
    reader.start()
    yield cache
    reader.stop()


def _nobody() -> Any:
    raise AssertionError("no router is asked")


@pytest.mark.slow
def test_a_silent_stream_makes_every_hit_a_miss_until_it_speaks_again(
    near: LinkCache, stream: Stream
) -> None:
    near.put(S, "u", LINK, now())
    assert near.get(S, "u") == LINK
    eventually(lambda: near.get(S, "u") is None, "nobody believes a silent stream", 5)
    assert now() >= near.trusted_until

    def believed() -> bool:
        stream.append(BEAT)
        near.put(S, "u", LINK, now())
        return near.get(S, "u") == LINK

    eventually(believed, "a beat brings trust back")


def test_a_beat_that_came_while_the_process_slept_counts_from_before(
    server: EmbeddedServer, keys: Keys, stream: Stream
) -> None:
    """It may be as old as the sleep: the router may have ended meanwhile."""
    cache, own = LinkCache(100), Store(parse_url(server.url), retries=0)
    config = RouteConfig(heartbeat_s=0.2, staleness_s=0.7)
    known = Known(PodTable(), cache, Belief(own, _nobody), SEEN.update)
    reader = ChangeReader(own, keys, config, known, Position("0-0", 1, 0), now())

    def believed() -> bool:
        stream.append(BEAT)
        reader._follow()
        cache.put(S, "u", LINK, now())
        return cache.get(S, "u") == LINK

    eventually(believed, "a beat that is heard at once is believed")
    stream.append(BEAT)
    slept_from = reader._drained_at
    assert slept_from is not None
    eventually(lambda: now() >= slept_from + config.staleness_s, "it has slept for too long", 5)
    reader._follow()
    assert cache.get(S, "u") is None
    reader.stop()


@pytest.mark.slow
def test_beats_keep_hits_alive_for_longer_than_one_beat_can(
    near: LinkCache, stream: Stream
) -> None:
    seen = {"until": 0.0}

    def outlived() -> bool:
        stream.append(BEAT)
        if near.get(S, "u") != LINK:  # not yet put there, or its reader had no turn for so long
            near.put(S, "u", LINK, now())
            seen["until"] = now() + 1.3 * STALENESS_S
        return now() > seen["until"]

    eventually(outlived, "the time that one beat gives has passed", 10)


def test_a_stale_link_is_dropped_and_a_newer_one_is_not(near: LinkCache, stream: Stream) -> None:
    near.put(S, "u", LINK, now())
    near.put(S, "v", LINK, now())
    stream.append(Change("link", S, stale={"u": 100, "v": 99}))
    eventually(lambda: near.get(S, "u") is None, "the link is known to be stale")
    assert near.get(S, "v") == LINK


def is_flushed(near: LinkCache, stream: Stream, router: int) -> None:
    """The cache forgets all, then believes what it is told after that."""
    eventually(lambda: near.get(S, "u") is None, "all is forgotten")

    def believed() -> bool:
        stream.append(BEAT, router)
        near.put(S, "u", LINK, now())
        return near.get(S, "u") == LINK

    eventually(believed, "what comes next is believed")


def test_a_reader_that_missed_an_entry_forgets_everything(near: LinkCache, stream: Stream) -> None:
    stream.append(BEAT)
    near.put(S, "u", LINK, now())
    stream.skip(1)
    stream.append(BEAT)
    is_flushed(near, stream, router=1)


def test_a_reader_that_meets_another_router_forgets_everything(
    near: LinkCache, stream: Stream
) -> None:
    stream.append(BEAT)
    near.put(S, "u", LINK, now())
    stream.append(BEAT, router=2)
    is_flushed(near, stream, router=2)


def test_the_last_words_of_an_older_router_change_nothing(near: LinkCache, stream: Stream) -> None:
    stream.append(BEAT)
    near.put(S, "u", LINK, now())
    stream.append(Change("link", S, stale={"u": 100}), router=0)
    stream.skip(-1)
    near.put(S, "v", LINK, now())
    stream.append(Change("link", S, stale={"v": 100}))
    eventually(lambda: near.get(S, "v") is None, "the next entry has been read")
    assert near.get(S, "u") == LINK


STRAYS: dict[str, dict[str, Any]] = {
    "of somebody else": {"hello": "world"},
    "without a number": {"router": 1, "kind": "beat", "service": "", "payload": "{}"},
    "with a garbled number": {**FIELDS, "number": "nan"},
    "with a negative router": {**FIELDS, "router": -1},
    "with a huge router": {**FIELDS, "router": 10**20},
    "with a garbled payload": {**FIELDS, "payload": "{"},
    "with a list for payload": {**FIELDS, "kind": "link", "payload": "[1]"},
    "with an infinite epoch": {**FIELDS, "kind": "link", "payload": '{"u": Infinity}'},
    "with half a pod": {**FIELDS, "kind": "pod", "payload": '{"pod": 0}'},
    "of bytes": {b"\xff": b"\xfe", "router": b"\xff"},
}


def test_stray_entries_cost_no_hit_and_the_reader_goes_on(
    near: LinkCache, stream: Stream, store: Store, keys: Keys
) -> None:
    stream.append(BEAT)
    for what, fields in STRAYS.items():
        near.put(S, "u", LINK, now())
        near.put(S, "v", LINK, now())
        flat = [part for pair in fields.items() for part in pair]
        store.one(plain_call("XADD", keys.log, "*", *flat))
        stream.append(Change("link", S, stale={"v": 100}))
        eventually(lambda: near.get(S, "v") is None, f"the entry after one {what} is read")
        assert near.get(S, "u") == LINK, what


@pytest.mark.slow
def test_after_an_entry_of_a_router_that_never_was_the_real_one_is_believed_again(
    near: LinkCache, stream: Stream
) -> None:
    stream.append(BEAT, router=2**52)
    stream.skip(-1)
    end = now() + 1.3 * STALENESS_S

    def believed() -> bool:
        stream.append(BEAT)
        near.put(S, "u", LINK, now())
        return now() > end and near.get(S, "u") == LINK

    eventually(believed, "the real router is believed")


@pytest.mark.slow
def test_a_reader_whose_stream_was_lost_finds_its_place_again(
    near: LinkCache, stream: Stream, store: Store, keys: Keys
) -> None:
    """The new stream may lie before the place that it reads from, for ever."""
    stream.append(BEAT)
    near.put(S, "u", LINK, now())
    store.one(plain_call("DEL", keys.log))
    is_flushed(near, stream, router=1)


def test_a_loss_makes_a_reader_forget_these_shards_alone(
    near: LinkCache, stream: Stream, keys: Keys
) -> None:
    other = next(uid for uid in ("v", "w", "x") if keys.shard(uid) != keys.shard("u"))
    near.put(S, "u", LINK, now())
    near.put(S, other, LINK, now())
    asked_at = now()
    stream.append(Change("lost", counters={keys.shard("u"): 7}))
    eventually(lambda: near.get(S, "u") is None, "the link is not believed any more", 5)
    assert near.get(S, other) == LINK
    assert not near.put(S, "u", LINK, asked_at), "an answer of before is kept"
    assert SEEN[keys.shard("u")] == 7, "what Redis has left is not enough"


@pytest.mark.slow
def test_only_beats_keep_hits_alive(near: LinkCache, stream: Stream) -> None:
    near.put(S, "u", LINK, now())

    def forgotten() -> bool:
        stream.append(Change("link", S, stale={"other": 1}))  # the stream is there; is the shard?
        return near.get(S, "u") is None

    eventually(forgotten, "nobody believes a stream without beats", 6)


@pytest.mark.parametrize("ends", [True, False])
def test_who_ends_says_nothing_of_a_server_that_ends_with_it(
    keys: Keys, caplog: pytest.LogCaptureFixture, *, ends: bool
) -> None:
    with EmbeddedServer("redis") as server:
        own = Store(parse_url(server.url), retries=0)
        config, place = RouteConfig(), Position("0-0", 1, 0)
        known = Known(PodTable(), LinkCache(100), Belief(own, _nobody), lambda _: None)
        reader = ChangeReader(own, keys, config, known, place, now())
        reader.start()
        if ends:
            reader.end_soon()
    if not ends:
        eventually(lambda: caplog.messages, "one that does not end says so")
    reader.stop()
    assert bool(caplog.messages) is not ends
