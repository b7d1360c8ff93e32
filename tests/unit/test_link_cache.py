from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest
from helpers import ManualClock
from hypothesis import example, given
from hypothesis import strategies as st

from ray_route.clock import now
from ray_route.model import Link
from ray_route.state.link_cache import _ANSWER_S, LinkCache

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


def one_by_one(cache: LinkCache, uids: str) -> None:
    for uid in uids:
        cache.get(S, uid)


def all_at_once(cache: LinkCache, uids: str) -> None:
    cache.get_all(S, dict.fromkeys(uids, 0))


def test_what_was_asked_for_gets_a_second_chance_and_only_one(clock):
    cache = LinkCache(3, clock)
    for uid in ("a", "b", "c"):
        cache.put(S, uid, LINK, clock())
    one_by_one(cache, "ac")
    cache.put(S, "d", LINK, clock())
    cache.put(S, "e", LINK, clock())
    assert {uid for uid in "abcde" if cache.get(S, uid)} == {"c", "d", "e"}


@pytest.mark.parametrize("ask", [one_by_one, all_at_once])
def test_what_nobody_asked_for_goes_first(clock, ask):
    cache = LinkCache(3, clock)
    for uid in ("a", "b", "c"):
        cache.put(S, uid, LINK, clock())
    ask(cache, "ac")
    cache.put(S, "d", LINK, clock())
    assert {uid for uid in "abcd" if cache.get(S, uid)} == {"a", "c", "d"}


def test_when_all_were_asked_for_the_one_longest_in_line_goes(clock):
    cache = LinkCache(3, clock)
    for uid in ("a", "b", "c", "d"):
        cache.put(S, uid, LINK, clock())
    for uid in ("b", "c", "d"):
        cache.get(S, uid)
    cache.put(S, "e", LINK, clock())
    assert {uid for uid in "abcde" if cache.get(S, uid)} == {"c", "d", "e"}


@pytest.mark.parametrize("forget", [lambda cache: cache.drop(S, "b"), LinkCache.flush])
def test_a_second_chance_is_not_inherited(clock, forget):
    cache = LinkCache(3, clock)
    for uid in ("a", "b", "c"):
        cache.put(S, uid, LINK, clock())
        cache.get(S, uid)
    forget(cache)
    clock.tick(1)
    for uid in ("a", "d", "c"):
        cache.put(S, uid, LINK, clock())
    for uid in ("a", "c"):
        cache.get(S, uid)
    cache.put(S, "e", LINK, clock())
    assert {uid for uid in "abcde" if cache.get(S, uid)} == {"a", "c", "e"}


def test_all_that_was_asked_for_lately_makes_room_all_the_same(clock):
    cache = LinkCache(3, clock)
    for uid in ("a", "b", "c", "d", "e"):
        cache.put(S, uid, LINK, clock())
        for known in "abcde":
            cache.get(S, known)
    assert len(cache) == 3
    assert cache.get(S, "e") == LINK


def test_the_bound_is_for_all_services_together(clock):
    cache = LinkCache(3, clock)
    for service in ("s", "t", "v", "w"):
        cache.put(service, "u", LINK, clock())
    assert [service for service in "stvw" if cache.get(service, "u")] == ["t", "v", "w"]


def test_what_was_dropped_leaves_its_room_to_others(clock):
    cache = LinkCache(3, clock)
    for uid in ("a", "b", "c"):
        cache.put(S, uid, LINK, clock())
    cache.drop(S, "b")
    cache.put(S, "d", LINK, clock())
    assert {uid for uid in "abcd" if cache.get(S, uid)} == {"a", "c", "d"}


def test_what_has_ended_goes_in_time(clock):
    cache = LinkCache(100, clock)
    for number in range(50):
        cache.put(S, f"old{number}", at_epoch(100, lease_s=1), clock())
    clock.tick(1)
    for number in range(50):
        cache.put(S, f"new{number}", LINK, clock())
    assert set(cache._links[S]) == {f"new{number}" for number in range(50)}


def found(cache: LinkCache) -> Link | None:
    """What it says of one uid, alone and among many."""
    link = cache.get(S, "u")
    assert cache.get_all(S, {"other": 0, "u": 0}) == {"other": None, "u": link}
    return link


def test_nothing_is_believed_for_longer_than_it_may_be_trusted(cache: LinkCache, clock):
    cache.put(S, "u", LINK, clock())
    cache.trusted_until = clock() + 2
    assert found(cache) == LINK
    clock.tick(2)
    assert found(cache) is None
    cache.trusted_until = clock() + 2
    assert found(cache) == LINK


def test_a_link_to_a_life_that_does_not_serve_is_a_miss_for_as_long(clock):
    serving: dict[str, dict[int, int]] = {}
    cache = LinkCache(100, clock, serving)
    cache.put(S, "u", LINK, clock())
    assert found(cache) is None
    serving[S] = {0: 7}
    assert found(cache) == LINK
    for others in ({0: 6}, {0: 8}, {1: 7}, {}):
        serving[S] = others
        assert found(cache) is None


@pytest.mark.parametrize("odd", [[], {}, None, 7, b"u"])
def test_what_is_no_uid_or_service_is_in_no_cache(cache: LinkCache, clock, odd):
    cache.put(S, "u", LINK, clock())
    assert cache.get(S, odd) is None
    assert cache.get(odd, "u") is None


def test_a_look_up_survives_a_flush_in_its_midst(clock):
    cache = LinkCache(100, clock)
    cache.put(S, "u", LINK, clock())

    def flushing() -> float:
        cache._clock = clock
        cache.flush()
        return clock()

    cache._clock = flushing
    assert cache.get(S, "u") == LINK
    assert cache.get(S, "u") is None


UIDS = "abcde"
ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from(UIDS), st.integers(1, 5), st.integers(0, 3)),
        st.tuples(
            st.just("put_all"),
            st.dictionaries(st.sampled_from(UIDS), st.integers(1, 5)),
            st.integers(0, 3),
        ),
        st.tuples(st.just("drop"), st.sampled_from(UIDS), st.integers(0, 5)),
        st.tuples(st.just("flush")),
        st.tuples(st.just("tick"), st.integers(1, 12)),
    ),
    max_size=60,
)


class Both:
    """A cache, and a plain dict that is told the same."""

    def __init__(self, maxsize: int) -> None:
        self.clock = ManualClock()
        self.cache = LinkCache(maxsize, self.clock)
        self.plain: dict[str, tuple[int, float]] = {}
        self.stale_at = dict.fromkeys(UIDS, -1.0)
        self.dropped: dict[str, float] = {}

    def put(self, uid: str, epoch: int, under_way_s: int) -> None:
        asked_at = self.clock() - under_way_s
        self.tick(0.001)
        self._put(uid, epoch, asked_at)
        self.cache.put(S, uid, at_epoch(epoch), asked_at)

    def _put(self, uid: str, epoch: int, asked_at: float) -> None:
        held, until = self.plain.get(uid, (0, 0.0))
        if asked_at > self.stale_at[uid] and (held <= epoch or until <= self.clock()):
            self.plain[uid] = epoch, asked_at + LINK.lease_s

    def put_all(self, epochs: dict[str, int], under_way_s: int) -> None:
        if len({*self.plain, *epochs}) > self.cache._ring._maxsize:
            return  # one of them may take the place of another, whose epoch is forgotten then
        asked_at = self.clock() - under_way_s
        self.tick(0.001)
        for uid, epoch in epochs.items():
            self._put(uid, epoch, asked_at)
        links = {uid: at_epoch(epoch) for uid, epoch in epochs.items()}
        self.cache.put_all(S, links, asked_at)

    def drop(self, uid: str, up_to_epoch: int) -> None:
        at = self.clock()
        self.dropped = {uid: then for uid, then in self.dropped.items() if at < then + _ANSWER_S}
        if uid not in self.dropped and len(self.dropped) == self.cache._ring._maxsize:
            # No room for another name: no answer that is under way is kept.
            self.dropped.clear()
            self.stale_at = dict.fromkeys(UIDS, at)
        self.dropped[uid] = self.stale_at[uid] = at
        if uid in self.plain and self.plain[uid][0] <= up_to_epoch:
            del self.plain[uid]
        self.cache.drop(S, uid, up_to_epoch)

    def flush(self) -> None:
        self.stale_at = dict.fromkeys(UIDS, self.clock())
        self.dropped.clear()
        self.plain.clear()
        self.cache.flush()

    def tick(self, seconds: float) -> None:
        self.clock.tick(seconds)

    def agree(self, uid: str) -> None:
        """Both say the same, or the cache says nothing for want of room."""
        said = self.cache.get(S, uid)
        for min_epoch in range(7):
            one, many = self.cache.get(S, uid, min_epoch), self.cache.get_all(S, {uid: min_epoch})
            assert many == {uid: one}
            assert one is None or one.lease_s == many[uid].lease_s
        epoch, until = self.plain.get(uid, (0, 0.0))
        if said is not None:
            assert (said.epoch, said.lease_s) == (epoch, pytest.approx(until - self.clock()))
        elif until > self.clock():
            assert len(self.plain) > self.cache._ring._maxsize
            del self.plain[uid]


@pytest.mark.slow
@given(ACTS, st.integers(1, 6))
@example([("drop", "b", 0), ("drop", "b", 0), ("put", "a", 1, 0)], 1)
@example([("drop", "b", 0), ("drop", "c", 0), ("put", "a", 1, 0)], 1)
def test_it_says_what_a_plain_dict_says_as_far_as_it_has_room(acts, maxsize: int):
    both = Both(maxsize)
    for act, *args in acts:
        getattr(both, act)(*args)
        for uid in UIDS:
            both.agree(uid)
        assert sum(map(len, both.cache._links.values())) <= maxsize


def test_threads_never_read_what_was_invalidated_before_they_asked():
    """Put, drop and look up at once: a stale answer that slips in between is seen here."""
    uids = [f"u{number}" for number in range(4)]
    truth, floor = dict.fromkeys(uids, 1), dict.fromkeys(uids, 1)
    cache = LinkCache(3)
    end = time.monotonic() + 0.4

    def learn(seed: int) -> None:
        draw = random.Random(seed)
        while time.monotonic() < end:
            uid, asked_at = draw.choice(uids), now()
            cache.put(S, uid, at_epoch(truth[uid]), asked_at)

    def change(uid: str) -> None:
        while time.monotonic() < end:
            truth[uid] += 1
            cache.drop(S, uid, truth[uid] - 1)
            floor[uid] = truth[uid]

    def read(seed: int) -> int:
        draw, hits = random.Random(seed), 0
        while time.monotonic() < end:
            uid = draw.choice(uids)
            least = floor[uid]
            link = cache.get(S, uid)
            assert link is None or link.epoch >= least
            hits += link is not None
        return hits

    with often_switching(), ThreadPoolExecutor(12) as pool:
        others = [pool.submit(learn, seed) for seed in range(4)]
        others += [pool.submit(change, uid) for uid in uids]
        readers = [pool.submit(read, seed) for seed in range(3)]
        assert all(reader.result() for reader in readers)
        for other in others:
            other.result()
    assert sum(map(len, cache._links.values())) <= 3


@contextmanager
def often_switching() -> Iterator[None]:
    """Have threads take turns every microsecond, not every 5 ms."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def test_threads_that_put_at_once_leave_the_highest_epoch(clock):
    cache = LinkCache(100, clock)

    def put(epoch: int) -> None:
        cache.put(S, f"u{epoch % 5}", at_epoch(epoch), clock())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, [n * 7919 % 1_000 for n in range(1_000)]))
    assert sorted(cache.get(S, f"u{n}").epoch for n in range(5)) == [995, 996, 997, 998, 999]


def test_many_that_come_together_and_do_not_all_fit_are_each_found_or_gone(clock):
    cache = LinkCache(10, clock)
    old = {f"old-{number}": at_epoch(number + 1) for number in range(4)}
    cache.put_all(S, old, clock())
    clock.tick(1)
    many = {f"new-{number}": at_epoch(100 + number) for number in range(25)}
    many["new-3"] = at_epoch(103, lease_s=0.0)  # has ended on its way
    assert cache.put_all(S, {**many, "old-1": at_epoch(50)}, clock()) == 25
    said = {uid: link for uid in [*old, *many] if (link := cache.get(S, uid)) is not None}
    assert len(said) == len(cache) == cache.held == 10
    assert said.items() <= {**old, **many, "old-1": at_epoch(50)}.items()
    cache.put_all(S, {"one": LINK, "two": LINK}, clock())
    assert cache.get(S, "one") == cache.get(S, "two") == LINK
    assert cache.held == 10


def test_room_that_was_left_is_taken_before_new_room(clock):
    cache = LinkCache(10, clock)
    cache.put_all(S, {"a": LINK, "b": LINK}, clock())
    cache.drop(S, "a")
    clock.tick(1)
    cache.put_all(S, {"c": LINK}, clock())
    assert cache.slots == cache.held == 2


def test_looking_for_what_has_ended_goes_round_and_round(clock):
    cache = LinkCache(100, clock)
    cache.put_all(S, {f"a{number}": LINK for number in range(10)}, clock())
    clock.tick(5)
    cache.put_all(S, {f"b{number}": LINK for number in range(8)}, clock())
    clock.tick(6)
    cache.put_all(S, {f"c{number}": LINK for number in range(6)}, clock())
    assert len(cache) == 14 < cache.held < 24
