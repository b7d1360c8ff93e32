"""What a process may take from Redis for itself, and what it leaves to the router."""

from __future__ import annotations

import threading

import pytest

from ray_route.client.coalescer import Batch
from ray_route.client.lookups import Judge, Lookups, Lost, NewUids
from ray_route.client.use_reporter import UseReporter
from ray_route.clock import now
from ray_route.config import RouteConfig
from ray_route.model import Link
from ray_route.runtime.link_reads import Part, Reading
from ray_route.runtime.worker import Worker
from ray_route.store.keys import Keys
from ray_route.store.links import ShardReply

S = "chat"
CONFIG = RouteConfig(ttl_s=300, margin_s=60)
KEYS = Keys("n", 8)
SERVING = 7


def judge() -> Judge:
    return Judge(KEYS, CONFIG, {S: {3: SERVING}})


def link(ttl_s: float = 300.0, incarnation: int = SERVING, *, persistent: bool = False) -> Link:
    lease_s = 240.0 if persistent else ttl_s - CONFIG.margin_s
    return Link(3, incarnation, 100, persistent=persistent, lease_s=lease_s)


def reading(held: Link | None, *, ends: bool = False) -> Reading:
    return Reading(ShardReply("ok", 1, [held], [False]), [ends])


def found(one: Reading | Exception | None, age_s: float = 0.0):
    return judge().found(S, [Part(0, [(S, "u")])], [one], age_s)


def test_a_link_to_a_life_that_serves_is_taken():
    assert found(reading(link())).links == {"u": link()}


@pytest.mark.parametrize(
    "left",
    [
        None,
        ValueError("a damaged key"),
        reading(None),
        reading(link(incarnation=6)),
        reading(link(ttl_s=83)),
    ],
    ids=["not believed", "damaged", "no link", "a life that does not serve", "a short lease"],
)
def test_what_must_be_decided_is_left_to_the_router(left):
    assert found(left) == ({}, {}, {}, set(), int(left is not None))


def test_an_answer_that_is_older_than_its_lease_is_not_taken():
    assert found(reading(link()), age_s=200).links
    assert not found(reading(link()), age_s=220).links


def test_a_lost_shard_is_told():
    lost = Reading(ShardReply("lost", 1, [], []), [])
    assert found(lost).lost == {"u": Lost(0)}


def test_a_link_that_has_lost_a_tenth_of_its_life_is_reported_as_used():
    assert found(reading(link(ttl_s=271))).used == {}
    assert found(reading(link(ttl_s=269))).used == {"u": 100}


def test_links_that_end_by_appointment_or_never_are_not_reported():
    assert found(reading(link(ttl_s=200), ends=True)).used == {}
    assert found(reading(link(persistent=True))).used == {}


@pytest.mark.parametrize("heard", [True, False])
def test_what_was_read_is_kept_and_told_only_if_the_stream_is_still_heard(heard: bool):
    kept: list[object] = []
    lookups = Lookups(
        lambda _: None,
        judge(),
        NewUids(),
        lambda: heard,
        None,  # nothing is read here
        lambda service, found, asked_at: kept.append((service, found.links, asked_at)),
        lambda *_: None,
        lambda *_: {},
    )
    asked_at = now()
    reply = [Part(0, [(S, "u")])], [reading(link())]
    answers = lookups._take(S, {"u": 0}, reply, asked_at)
    if heard:
        assert answers == {"u": link()}
        assert kept == [(S, {"u": link()}, asked_at)]
    else:  # it waits for the router
        assert isinstance(answers["u"], Batch)
        assert kept == []


def test_many_uids_are_sorted_by_shard_and_cut():
    uids = [f"u{number}" for number in range(9_000)]
    parts = judge().parts(S, uids)
    assert max(len(part.names) for part in parts) <= 500
    assert sorted(uid for part in parts for _, uid in part.names) == sorted(uids)
    assert all(KEYS.shard(uid) == part.shard for part in parts for _, uid in part.names)


def test_where_all_is_new_a_read_is_tried_now_and_then_and_comes_back_when_it_tells():
    new = NewUids()
    new.note(S, 31, 0)
    assert all(new.may_be_known(S) for _ in range(100))
    new.note(S, 1, 0)
    assert sum(new.may_be_known(S) for _ in range(160)) == 10
    assert new.may_be_known("another")
    new.note(S, 1, 1)
    assert all(new.may_be_known(S) for _ in range(100))


def test_uses_are_told_together_and_once():
    told = []
    reporter = UseReporter(30.0, lambda service, used: told.append((service, used)))
    reporter.note(S, {"u": 1})
    reporter.note(S, {"u": 2, "v": 1})
    reporter.note("game", {"u": 5})
    reporter.report()
    reporter.report()
    assert told == [(S, {"u": 2, "v": 1}), ("game", {"u": 5})]
    assert all(20 < reporter.period_s() <= 30 for _ in range(100))


def test_many_uses_are_told_in_bounded_pieces():
    told = []
    reporter = UseReporter(30.0, lambda _, used: told.append(len(used)))
    reporter.note(S, {f"u{number}": 1 for number in range(2_500)})
    reporter.report()
    assert told == [1_000, 1_000, 500]


def test_a_worker_goes_on_after_work_that_failed_and_ends_when_it_is_told():
    worker, done = Worker("worker"), threading.Event()

    def fail() -> None:
        raise SystemExit

    worker.put(fail)
    worker.put(done.set)
    assert done.wait(10)
    worker.stop(10)
    assert not worker._thread.is_alive()


def test_a_worker_does_its_duties_again_and_again_beside_its_work():
    worker, rounds, enough = Worker("worker"), [], threading.Event()

    def duty() -> None:
        rounds.append(1)
        if len(rounds) == 3:
            enough.set()

    worker.every(lambda: 0.01, duty)
    assert enough.wait(10)
    worker.stop(10)


def test_a_worker_that_is_never_idle_does_its_duties_all_the_same():
    worker, done = Worker("worker"), threading.Event()

    def again() -> None:
        if not done.is_set():
            worker.put(again)

    worker.put(again)
    worker.every(lambda: 0.01, done.set)
    assert done.wait(10)
    worker.stop(10)
