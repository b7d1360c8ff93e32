"""Owners of many uids, read around the router."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from ray_route.clock import Deadline
from ray_route.config import RouteConfig
from ray_route.store.bulk import BulkReader, Owned
from ray_route.store.connect import Store
from ray_route.store.embedded import EmbeddedServer
from ray_route.store.keys import Keys
from ray_route.store.links import LinkCalls, Writer
from ray_route.store.owner_codes import FAILED, NO_LINK
from ray_route.store.scripts import plain_call
from ray_route.store.url import parse_url

SHARDS = 8
SERVICE = "chat"
STRANGE = ["é", "🙂", "a:b", "{x}", "a\r\nb", "\0", " ", "$3\r\nx", "x" * 512]
Owner = tuple[int, int]


class Directory:
    """A namespace whose links a test writes and reads."""

    def __init__(self, store: Store, namespace: str) -> None:
        self.store = store
        self.keys = Keys(namespace, SHARDS)
        self.calls = LinkCalls(self.keys, RouteConfig(shards=SHARDS))
        self.seen = [0] * SHARDS

    def place(self, owners: dict[str, str]) -> None:
        by_shard: dict[int, list[str]] = {}
        for uid in owners:
            by_shard.setdefault(self.keys.shard(uid), []).append(uid)
        for shard, uids in by_shard.items():
            holders = [owners[uid] for uid in uids]
            call = self.calls.set(Writer(1), shard, SERVICE, uids, holders, persistent=False)
            self.seen[shard] = self.calls.parse(self.store.one(call)).counter

    def read(self, uids: list[str], within_s: float = 10.0) -> Owned:
        reader = BulkReader(self.store, self.keys, SERVICE, self.seen)
        return reader.read([uid.encode() for uid in uids], Deadline.after(within_s))

    def owners(self, uids: list[str]) -> list[Owner | int]:
        """The owner of each uid in order, or the code that stands for there being none."""
        found = self.read(uids)
        return [found.owners[code] if code > FAILED else code for code in found.codes]


@pytest.fixture
def directory(store: Store, namespace: str) -> Directory:
    return Directory(store, namespace)


@pytest.mark.parametrize("number", [1, 3, 60, 1_000])
def test_every_uid_is_answered_in_the_order_asked(directory: Directory, number: int):
    owners = {f"u{place}": f"{place % 5}:7" for place in range(number)}
    directory.place(owners)
    uids = random.Random(1).sample(sorted(owners), len(owners))
    assert directory.owners(uids) == [(int(owners[uid][0]), 7) for uid in uids]


def test_a_uid_without_a_link_has_no_owner_and_is_no_failure(directory: Directory):
    directory.place({"held": "0:7"})
    found = directory.read(["absent", "held", "absent too"])
    assert [code for code in found.codes if code != NO_LINK] == [found.codes[1]]
    assert found.owners[found.codes[1]] == (0, 7)
    assert found.failed == {}


def test_a_uid_asked_for_twice_is_answered_twice(directory: Directory):
    directory.place({"a": "0:7", "b": "1:7"})
    assert directory.owners(["a", "b", "a"]) == [(0, 7), (1, 7), (0, 7)]


def test_a_uid_may_be_any_text(directory: Directory):
    directory.place({uid: f"{number}:7" for number, uid in enumerate(STRANGE)})
    assert directory.owners(STRANGE) == [(number, 7) for number in range(len(STRANGE))]


def test_owners_with_alike_digits_are_told_apart(directory: Directory):
    owners = ["1:1", "1:11", "11:1", "111:1", "1:1795506883576934", "11:1795506883576934", "0:1"]
    directory.place({f"u{number}": owner for number, owner in enumerate(owners)})
    expected = [tuple(map(int, owner.split(":"))) for owner in owners]
    assert directory.owners([f"u{number}" for number in range(len(owners))]) == expected


@pytest.mark.parametrize(
    "value",
    [
        "5:7:1",
        "5:7:12345678",
        "5:7:1795506883576934",
        "5:7:1795506883576934:t",
        "5:7:9:p",
        "5:7:1795506883576934:1795506883576933",
        "5:7:1795506883576934:1795506883576933:p",
        "5:7:1795506883576934:12345678",
        "5:7:1:1795506883576934",
    ],
)
def test_an_owner_is_read_from_any_form_of_a_link(directory: Directory, value: str):
    directory.place({"other": "5:71"})
    directory.store.one(plain_call("SET", link_key(directory, "u"), value))
    assert directory.owners(["u", "other", "u"]) == [(5, 7), (5, 71), (5, 7)]


def test_a_short_epoch_does_not_cut_into_the_incarnation(directory: Directory):
    directory.store.one(plain_call("SET", link_key(directory, "u"), "5:1795506883576934:12345678"))
    assert directory.owners(["u"]) == [(5, 1_795_506_883_576_934)]


def link_key(directory: Directory, uid: str) -> str:
    return directory.keys.link(directory.keys.shard(uid), SERVICE, uid)


def test_more_owners_than_fit_into_a_byte_are_told_apart(directory: Directory):
    directory.place({f"u{number}": f"{number}:7" for number in range(600)})
    uids = [f"u{number}" for number in range(600)]
    assert directory.owners(uids) == [(number, 7) for number in range(600)]


def test_more_uids_than_one_request_takes_are_answered_in_order(directory: Directory):
    uids = [f"u{number}" for number in range(SHARDS * 1_300)]
    directory.place(dict.fromkeys(uids[::3][:400], "0:7"))
    held = set(uids[::3][:400])
    assert directory.owners(uids) == [(0, 7) if uid in held else NO_LINK for uid in uids]


def test_no_uids_are_no_work(directory: Directory):
    assert list(directory.read([]).codes) == []


def test_counters_beyond_those_that_the_caller_had_seen_come_with_the_answer(
    directory: Directory,
):
    uids = [f"u{number}" for number in range(100)]
    directory.place(dict.fromkeys(uids, "0:7"))
    stored = list(directory.seen)
    assert directory.read(uids).counters == {}
    directory.seen[3] -= 1
    directory.seen[5] = 0
    assert directory.read(uids).counters == {3: stored[3], 5: stored[5]}


@pytest.mark.parametrize("loss", ["counter", "everything", "last write"])
@pytest.mark.parametrize("number", [20, 100])
def test_a_shard_that_has_lost_writes_fails_and_is_no_miss(
    directory: Directory, loss: str, number: int
):
    uids = [f"u{place}" for place in range(number)]
    directory.place(dict.fromkeys(uids, "0:7"))
    counter = directory.keys.counter(3)
    if loss == "last write":
        directory.store.one(plain_call("SET", counter, f"{directory.seen[3] - 1}:1"))
    else:
        directory.store.one(plain_call("DEL", counter))
    if loss == "everything":
        for uid in uids:
            if directory.keys.shard(uid) == 3:
                directory.store.one(plain_call("DEL", link_key(directory, uid)))
    found = directory.read(uids)
    assert found.failed.keys() == {3}
    assert "lost writes" in found.failed[3]
    failed = [uid for uid, code in zip(uids, found.codes, strict=True) if code == FAILED]
    assert failed == [uid for uid in uids if directory.keys.shard(uid) == 3]
    assert NO_LINK not in found.codes


def test_a_higher_counter_than_is_known_is_no_loss(directory: Directory):
    directory.place({"u": "0:7"})
    shard = directory.keys.shard("u")
    directory.store.one(plain_call("SET", directory.keys.counter(shard), f"{2**53 - 1}:1"))
    assert directory.read(["u"]).failed == {}


def test_past_the_deadline_nothing_is_called_a_miss(directory: Directory):
    directory.place({"u": "0:7"})
    found = directory.read(["u", "absent"], within_s=0.0)
    assert list(found.codes) == [FAILED, FAILED]
    assert set(found.failed.values()) == {"the deadline passed"}


@pytest.fixture
def mortal() -> Iterator[EmbeddedServer]:
    with EmbeddedServer() as server:
        yield server


def test_a_server_that_is_down_is_a_failure_of_every_shard(mortal: EmbeddedServer, namespace: str):
    directory = Directory(Store(parse_url(mortal.url)), namespace)
    uids = [f"u{number}" for number in range(100)]
    directory.place(dict.fromkeys(uids, "0:7"))
    mortal.stop()
    found = directory.read(uids)
    assert set(found.codes) == {FAILED}
    assert found.failed.keys() == set(range(SHARDS))
    assert all(f"127.0.0.1:{mortal.port}" in reason for reason in found.failed.values())


def test_a_connection_that_broke_is_replaced_and_read_again(mortal: EmbeddedServer, namespace: str):
    directory = Directory(Store(parse_url(mortal.url)), namespace)
    directory.place({"u": "0:7"})
    directory.read(["u"])
    mortal.stop()
    mortal.start()
    directory.seen = [0] * SHARDS
    directory.place({"u": "1:7"})
    assert directory.owners(["u", "absent"]) == [(1, 7), NO_LINK]


def test_a_read_that_is_cut_short_leaves_no_answers_for_the_next(directory: Directory):
    uids = [f"u{number}" for number in range(20_000)]
    directory.place(dict.fromkeys(uids[:400], "0:7"))
    began = time.monotonic()
    assert FAILED not in directory.read(uids).codes
    whole_s, cut_short = time.monotonic() - began, 0
    for attempt in range(400):  # how long it takes depends on the machine, and what else it does
        codes = directory.read(uids, within_s=whole_s * (attempt % 20) / 20).codes
        cut_short += FAILED in codes and codes.count(FAILED) < len(uids)
        assert directory.store.one(plain_call("GET", link_key(directory, "u0"))).startswith(b"0:7:")
        assert directory.owners(uids[:800]) == [(0, 7)] * 400 + [NO_LINK] * 400
        if cut_short == 3:
            return
    pytest.fail("no deadline passed in the middle of a read")
