"""Links in use are read again ahead of time: a bounded number at once, at moments that differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ray_route.client.refresh_ahead import RefreshAhead
from ray_route.clock import now
from ray_route.model import Link
from ray_route.state.link_cache import LinkCache

S = "chat"
LEASE_S = 240.0
UIDS_AT_ONCE, SLOTS_AT_ONCE = 500, 5_000


class Worker:
    """Does one thing after another, as the worker's thread does."""

    def __init__(self) -> None:
        self.left: list[Callable[[], None]] = []
        self.reads: list[list[str]] = []

    def read(self, service: str, uids: Any) -> None:
        assert service == S
        self.reads.append(list(uids))

    def work(self) -> int:
        steps = 0
        while self.left:
            self.left.pop(0)()
            steps += 1
        return steps


def ahead(near: LinkCache, worker: Worker, *, may_read: bool = True) -> RefreshAhead:
    return RefreshAhead(near, LEASE_S, worker.left.append, lambda: may_read, worker.read)


def near_with(uids: list[str], left_s: float) -> LinkCache:
    """Fill a cache with links that have so much left of their leases, all asked for."""
    near = LinkCache(100_000)
    near.put_all(S, dict.fromkeys(uids, Link(1, 7, 9, persistent=False, lease_s=left_s)), now())
    for uid in uids:
        near.get(S, uid)
    return near


def names(count: int) -> list[str]:
    return [f"u{number}" for number in range(count)]


def test_processes_look_at_moments_that_differ_and_several_times_before_a_lease_ends() -> None:
    periods = [ahead(LinkCache(1), Worker()).period_s() for _ in range(200)]
    longest = LEASE_S / 16
    assert all(0.7 * longest <= period <= longest for period in periods)
    assert max(periods) - min(periods) > 0.15 * longest
    assert len(set(periods)) > 100


def test_many_uids_are_read_in_bounded_pieces_between_other_work() -> None:
    uids, worker = names(12_345), Worker()
    ahead(near_with(uids, 60.0), worker).look()
    assert worker.reads == []  # not by whoever looks
    assert len(worker.left) <= SLOTS_AT_ONCE / UIDS_AT_ONCE + 1
    worker.work()
    assert max(map(len, worker.reads)) == UIDS_AT_ONCE
    assert sorted(uid for read in worker.reads for uid in read) == sorted(uids)


@pytest.mark.parametrize(("left", "is_due"), [(0.39, True), (0.41, False)])
def test_a_link_is_read_again_when_four_tenths_of_its_lease_are_left(
    left: float, is_due: bool
) -> None:
    worker = Worker()
    ahead(near_with(["u"], left * LEASE_S), worker).look()
    worker.work()
    assert worker.reads == ([["u"]] if is_due else [])


def test_who_may_not_read_looks_for_nothing() -> None:
    worker = Worker()
    ahead(near_with(["u"], 1.0), worker, may_read=False).look()
    assert worker.work() == 0


def test_a_look_that_is_under_way_is_not_begun_again() -> None:
    worker = Worker()
    looking = ahead(near_with(names(10), 1.0), worker)
    looking.look()
    looking.look()
    worker.work()
    assert len(worker.reads) == 1
    looking.look()
    worker.work()
    assert len(worker.reads) == 2
