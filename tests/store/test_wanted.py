"""What is wanted of a service stands in Redis, and one controller at a time writes it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ray_route.policies import Autoscale
from ray_route.store.connect import Store
from ray_route.store.keys import Keys
from ray_route.store.scripts import plain_call
from ray_route.store.wanted import Upgrade, Wanted, WantedCalls

WANTED = Wanted(3, "ray_route:n:chat:controller", frozenset({0, 2}), generation=4, first=3, step=6)
GAPS = Wanted(3, "r", first=3, gaps=frozenset({3, 5}))
BY_UIDS = replace(GAPS, autoscale=Autoscale(1, 8, 500.0, None, 0.25))
BY_LOAD = replace(GAPS, tolerance=0.25, autoscale=Autoscale(2, 2, None, 0.1, 300.0))
ENDED = replace(WANTED, ended_upgrades=("r1", "r2 undone"))
UPGRADE = Upgrade(3, 0, "old", surge=2, start_s=9.5, drain_s=7.25, back=True, request="r1")


@pytest.fixture
def calls(namespace: str) -> WantedCalls:
    return WantedCalls(Keys(namespace, 1), "chat", "a1")


def claim(store: Store, calls: WantedCalls, least: int = 0) -> tuple[int, Wanted | None]:
    incarnation, held = store.one(calls.claim(least))
    return int(incarnation), calls.held(held)


ALL = [WANTED, ENDED, GAPS, BY_UIDS, BY_LOAD, replace(WANTED, upgrade=UPGRADE)]


@pytest.mark.parametrize("wanted", ALL)
def test_what_is_written_is_read_by_the_next_life(
    store: Store, calls: WantedCalls, wanted: Wanted
) -> None:
    first, held = claim(store, calls)
    assert held is None
    assert store.one(calls.want(first, wanted)) == b"ok"
    second, held = claim(store, calls)
    assert (second > first, held) == (True, wanted)


def test_fields_of_before_upgrades_are_read(store: Store, calls: WantedCalls) -> None:
    first, _ = claim(store, calls)
    store.one(calls.want(first, Wanted(2, "x")))
    later = ("first", "step", "ended_upgrades", "gaps")
    store.one(plain_call("HDEL", calls.keys.wanted("chat"), *later))
    assert claim(store, calls)[1] == Wanted(2, "x")


def test_a_younger_controller_decides_alone(store: Store, calls: WantedCalls) -> None:
    older, _ = claim(store, calls)
    younger, _ = claim(store, calls)
    assert store.one(calls.want(younger, WANTED)) == b"ok"
    assert store.one(calls.want(older, Wanted(1, "x"))) == b"deposed"
    assert store.one(calls.want(older, None)) == b"deposed"
    assert claim(store, calls)[1] == WANTED


def test_a_write_makes_good_what_was_lost_and_a_claim_exceeds_what_is_known(
    store: Store, calls: WantedCalls
) -> None:
    first, _ = claim(store, calls)
    store._client.flushall()
    assert store.one(calls.want(first, WANTED)) == b"ok"
    store._client.flushall()
    assert claim(store, calls, first + 10**12)[0] == first + 10**12 + 1


def test_what_is_forgotten_or_anothers_is_nobodys_wish(store: Store, calls: WantedCalls) -> None:
    first, _ = claim(store, calls)
    store.one(calls.want(first, WANTED))
    assert claim(store, WantedCalls(calls.keys, "chat", "a2"))[1] is None
    mine, _ = claim(store, calls)
    assert store.one(calls.want(mine, None)) == b"ok"
    assert claim(store, calls)[1] is None


@pytest.mark.parametrize(
    ("field", "value"),
    [("replicas", "x"), ("replicas", "0"), ("cordons", "1,y"), ("gaps", "1,y"), ("generation", "")],
)
def test_a_damaged_field_is_no_wish(
    store: Store, calls: WantedCalls, field: str, value: str
) -> None:
    first, _ = claim(store, calls)
    store.one(calls.want(first, WANTED))
    store.one(plain_call("HSET", calls.keys.wanted("chat"), field, value))
    assert claim(store, calls)[1] is None


@pytest.mark.parametrize(
    ("field", "value"),
    [("least", "0"), ("least", "9"), ("down_ms", ""), ("target_uids", "nan"), ("target_load", "1")],
)
def test_a_damaged_policy_is_none(store: Store, calls: WantedCalls, field: str, value: str) -> None:
    first, _ = claim(store, calls)
    store.one(calls.want(first, BY_UIDS))
    store.one(plain_call("HSET", calls.keys.wanted("chat"), field, value))
    assert claim(store, calls)[1] == GAPS


def test_a_key_of_another_type_is_made_anew(store: Store, calls: WantedCalls) -> None:
    store.one(plain_call("SET", calls.keys.wanted("chat"), "x"))
    first, held = claim(store, calls)
    assert held is None
    store.one(plain_call("SET", calls.keys.wanted("chat"), "x"))
    assert store.one(calls.want(first, WANTED)) == b"ok"
    assert claim(store, calls)[1] == WANTED
