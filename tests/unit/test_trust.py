"""How long a near cache believes what it has, and what a beat vouches for."""

from __future__ import annotations

import pytest
from helpers import ManualClock

from ray_route.client.trust import Trust
from ray_route.model import Link
from ray_route.state.link_cache import LinkCache

S = "chat"
LINK = Link(0, 7, 100, persistent=False, lease_s=1000.0)
STALENESS_S = 10.0


class Process:
    """A near cache with one link in shard 0 and one in shard 1, and its trust."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.near = LinkCache(100, clock=self.clock)
        self.trust = Trust(self.near, STALENESS_S, int, self.clock())
        self.put()

    def put(self) -> None:
        for uid in ("0", "1"):
            self.near.put(S, uid, LINK, self.clock())

    def knows(self) -> list[bool]:
        return [self.near.get(S, uid) is not None for uid in ("0", "1")]

    def beat(self, *unseen: int) -> None:
        self.clock.tick(1.0)
        self.trust.heard(self.clock(), unseen)


@pytest.fixture
def process() -> Process:
    return Process()


def test_without_beats_nothing_is_believed_in_the_end(process: Process) -> None:
    process.clock.tick(STALENESS_S - 0.1)
    assert process.knows() == [True, True]
    process.clock.tick(0.2)
    assert process.knows() == [False, False]


def test_shards_that_nobody_sees_are_believed_for_a_while_and_the_others_on_and_on(
    process: Process,
) -> None:
    process.beat(1)
    assert process.knows() == [True, True]
    for _ in range(20):
        process.beat(1)
        assert process.knows()[0]
    assert process.knows() == [True, False]


def test_no_link_is_believed_for_longer_after_its_shard_was_last_seen(process: Process) -> None:
    seen_at = process.clock()
    for _ in range(20):
        process.beat(1)
        if process.knows()[1]:
            assert process.clock() - seen_at < STALENESS_S
    process.clock.time = seen_at  # whoever hears one beat alone, and then none
    late = Process()
    late.beat(1)
    late.clock.tick(STALENESS_S - 0.9)
    assert late.knows() == [False, False]


def test_nothing_is_kept_of_a_shard_that_nobody_sees_until_it_is_seen_again(
    process: Process,
) -> None:
    for _ in range(20):
        process.beat(1)
    process.clock.tick(0.1)
    process.put()
    assert process.knows() == [True, False]
    process.beat()
    assert process.knows() == [True, False], "it was dropped"
    process.clock.tick(0.1)
    process.put()
    assert process.knows() == [True, True]
