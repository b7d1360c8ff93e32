from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from helpers import ManualClock

from ray_route.cache import LinkCache
from ray_route.model import Link

S = "chat"
LINK = Link(0, 7, 100, persistent=False, lease_s=10.0)


@pytest.fixture
def cache(clock: ManualClock) -> LinkCache:
    return LinkCache(100, clock)


def at_epoch(epoch: int, lease_s: float = 10.0) -> Link:
    return replace(LINK, epoch=epoch, lease_s=lease_s)


def test_what_was_put_is_found_under_its_service_and_uid_alone(cache: LinkCache, clock):
    assert cache.put("a-b", "c", LINK, clock())
    assert cache.get("a-b", "c") == LINK
    assert cache.get("a", "b-c") is None
    assert cache.get("a-b", "d") is None


def test_an_entry_ends_with_its_lease(cache: LinkCache, clock):
    cache.put(S, "u", LINK, clock())
    clock.tick(9.99)
    assert cache.get(S, "u") == LINK
    clock.tick(0.01)
    assert cache.get(S, "u") is None
    assert len(cache) == 0


def test_the_lease_handed_out_is_what_is_left_of_it(cache: LinkCache, clock):
    cache.put(S, "u", LINK, clock())
    clock.tick(4)
    assert cache.get(S, "u").lease_s == pytest.approx(6)


def test_the_lease_counts_from_before_the_question(cache: LinkCache, clock):
    asked_at = clock()
    clock.tick(4)
    cache.put(S, "u", LINK, asked_at)
    assert cache.get(S, "u").lease_s == pytest.approx(6)


def test_a_copy_of_a_copy_never_lives_longer(cache: LinkCache, clock):
    other = LinkCache(100, clock)
    cache.put(S, "u", LINK, clock())
    clock.tick(4)
    other.put(S, "u", cache.get(S, "u"), clock())
    clock.tick(5.9)
    assert other.get(S, "u") == LINK
    clock.tick(0.2)
    assert other.get(S, "u") is None


def test_an_answer_whose_lease_ended_on_its_way_is_not_kept(cache: LinkCache, clock):
    asked_at = clock()
    clock.tick(10)
    assert not cache.put(S, "u", LINK, asked_at)
    assert not cache.put(S, "u", at_epoch(100, lease_s=0.0), clock())
    assert cache.get(S, "u") is None


def test_a_put_never_lowers_an_epoch(cache: LinkCache, clock):
    cache.put(S, "u", at_epoch(100), clock())
    assert not cache.put(S, "u", at_epoch(99), clock())
    assert cache.get(S, "u").epoch == 100
    assert cache.put(S, "u", at_epoch(101), clock())
    assert cache.get(S, "u").epoch == 101


def test_a_put_of_the_same_epoch_renews_the_lease(cache: LinkCache, clock):
    cache.put(S, "u", LINK, clock())
    clock.tick(5)
    assert cache.put(S, "u", LINK, clock())
    assert cache.get(S, "u").lease_s == pytest.approx(10)


def test_an_expired_entry_is_in_nobodys_way(cache: LinkCache, clock):
    cache.put(S, "u", at_epoch(100), clock())
    clock.tick(10)
    assert cache.put(S, "u", at_epoch(99), clock())


def test_an_entry_below_the_wanted_epoch_is_a_miss(cache: LinkCache, clock):
    cache.put(S, "u", LINK, clock())
    assert cache.get(S, "u", min_epoch=100) == LINK
    assert cache.get(S, "u", min_epoch=101) is None
    assert cache.get(S, "u") == LINK


def test_a_drop_takes_the_entry_and_returns_it(cache: LinkCache, clock):
    cache.put(S, "u", LINK, clock())
    cache.put(S, "v", LINK, clock())
    assert cache.drop(S, "u") == LINK
    assert cache.drop(S, "u") is None
    assert cache.get(S, "u") is None
    assert cache.get(S, "v") == LINK


@pytest.mark.parametrize(("up_to", "kept"), [(99, True), (100, False), (101, False)])
def test_a_drop_spares_a_newer_epoch_than_was_meant(cache: LinkCache, clock, up_to: int, kept):
    cache.put(S, "u", LINK, clock())
    dropped = cache.drop(S, "u", up_to)
    assert (dropped is None) == kept
    assert (cache.get(S, "u") is not None) == kept


@pytest.mark.parametrize("delay_s", [0, 0.001, 5])
def test_an_answer_under_way_when_its_uid_was_invalidated_is_not_kept(
    cache: LinkCache, clock, delay_s: float
):
    asked_at = clock()
    clock.tick(delay_s)
    cache.drop(S, "u")
    clock.tick(1)
    assert not cache.put(S, "u", LINK, asked_at)
    assert cache.get(S, "u") is None


def test_an_answer_under_way_is_not_kept_even_if_the_drop_spared_an_entry(cache: LinkCache, clock):
    cache.put(S, "u", at_epoch(100), clock())
    asked_at = clock()
    cache.drop(S, "u", up_to_epoch=50)
    assert not cache.put(S, "u", at_epoch(60), asked_at)
    assert cache.get(S, "u").epoch == 100


def test_an_invalidation_concerns_no_other_uid_and_no_later_question(cache: LinkCache, clock):
    asked_at = clock()
    cache.drop(S, "u")
    assert cache.put(S, "v", LINK, asked_at)
    assert cache.put("other", "u", LINK, asked_at)
    clock.tick(0.001)
    assert cache.put(S, "u", LINK, clock())


def test_a_flush_forgets_all_entries_and_all_answers_under_way(cache: LinkCache, clock):
    asked_at = clock()
    cache.put(S, "u", LINK, asked_at)
    clock.tick(1)
    cache.flush()
    assert cache.get(S, "u") is None
    assert not cache.put(S, "v", LINK, asked_at)
    clock.tick(0.001)
    assert cache.put(S, "v", LINK, clock())


def test_a_flush_does_not_forget_that_an_answer_was_invalidated(cache: LinkCache, clock):
    asked_at = clock()
    cache.drop(S, "u")
    cache.flush()
    assert not cache.put(S, "u", LINK, asked_at)


def test_an_invalidation_outlives_every_answer_that_could_come(cache: LinkCache, clock):
    asked_at = clock()
    cache.drop(S, "u")
    for _ in range(200):
        clock.tick(1)
        assert not cache.put(S, "u", at_epoch(100, lease_s=10_000), asked_at)


def test_a_cache_is_bounded_and_forgets_what_was_not_used(clock):
    cache = LinkCache(3, clock)
    for uid in ("a", "b", "c"):
        cache.put(S, uid, LINK, clock())
    cache.get(S, "a")
    cache.put(S, "d", LINK, clock())
    assert len(cache) == 3
    assert cache.get(S, "a") == LINK
    assert cache.get(S, "b") is None


def test_more_invalidations_than_fit_refuse_every_answer_under_way(clock):
    cache = LinkCache(3, clock)
    asked_at = clock()
    for uid in ("a", "b", "c", "d"):
        cache.drop(S, uid)
    for uid in ("a", "b", "c", "d", "untouched"):
        assert not cache.put(S, uid, LINK, asked_at)
    clock.tick(0.001)
    assert cache.put(S, "a", LINK, clock())


def test_more_invalidations_than_fit_cost_no_entry_that_was_not_meant(clock):
    cache = LinkCache(3, clock)
    cache.put(S, "kept", LINK, clock())
    for number in range(10):
        cache.drop(S, f"u{number}")
    assert cache.get(S, "kept") == LINK


def test_threads_that_put_at_once_leave_the_highest_epoch(clock):
    cache = LinkCache(100, clock)

    def put(epoch: int) -> None:
        cache.put(S, f"u{epoch % 5}", at_epoch(epoch), clock())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, [n * 7919 % 1_000 for n in range(1_000)]))
    assert sorted(cache.get(S, f"u{n}").epoch for n in range(5)) == [995, 996, 997, 998, 999]
