"""Recovery after Redis has lost writes."""

from __future__ import annotations

import pytest
from shardbench import NO_TTL, TTL_MS, Shard

from ray_route.model import Link
from ray_route.store.links import RememberedLink
from ray_route.store.scripts import plain_call


def a_link(pod: int, epoch: int, *, persistent: bool = False) -> RememberedLink:
    return RememberedLink(Link(pod, 7, epoch, persistent, 100.0))


def kept(links: list[Link | None]) -> list[RememberedLink]:
    return [RememberedLink(link) for link in links if link is not None]


def test_lost_links_come_back_as_they_were(shard: Shard):
    lost = [a_link(1, 41), a_link(0, 42, persistent=True)]
    reply = shard.do("restore", ["a", "b"], lost, last=True)
    assert kept(reply.links) == lost
    assert reply.written == [True, True]
    assert shard.raw("a") == b"1:7:41"
    assert TTL_MS - 5_000 < shard.pttl("a") <= TTL_MS
    assert shard.pttl("b") == NO_TTL


def test_a_newer_link_stays(shard: Shard):
    newer = shard.place("u", "2:8")
    assert shard.one("restore", "u", a_link(1, newer.epoch - 1), last=True) == (newer, False)
    assert shard.raw("u") == f"2:8:{newer.epoch}".encode()


def test_an_older_link_gives_way(shard: Shard):
    older = shard.place("u", "2:8", persistent=True)
    newer = a_link(1, older.epoch + 1)
    assert shard.one("restore", "u", newer, last=True) == (newer.link, True)


def test_replay_in_any_order_ends_with_the_highest_epoch(shard: Shard):
    epochs = [43, 41, 44, 42]
    for epoch in epochs:
        shard.one("restore", "u", a_link(epoch - 40, epoch), last=False)
    assert shard.raw("u") == b"4:7:44"


def test_epochs_are_compared_as_numbers_not_as_text(shard: Shard):
    shard.one("restore", "u", a_link(1, 100), last=True)
    assert shard.one("restore", "u", a_link(2, 99), last=True)[0].epoch == 100


def test_a_link_that_is_still_there_is_lengthened(shard: Shard):
    held = shard.place("u", "1:7")
    shard.expire("u", 5_000)
    assert shard.one("restore", "u", RememberedLink(held), last=True) == (held, True)
    assert shard.pttl("u") > TTL_MS - 5_000


def test_a_longer_life_is_never_shortened(shard: Shard):
    held = shard.place("u", "1:7")
    shard.expire("u", 10 * TTL_MS)
    shard.one("restore", "u", RememberedLink(held), last=True)
    assert shard.pttl("u") > 9 * TTL_MS


def test_a_persistent_link_stays_persistent(shard: Shard):
    held = shard.place("u", "1:7", persistent=True)
    shard.one("restore", "u", a_link(1, held.epoch), last=True)
    assert shard.pttl("u") == NO_TTL


@pytest.fixture
def counter_ahead(shard: Shard) -> int:
    """A counter that is an hour ahead of the server's clock: a slow clock after a failover."""
    counter = shard.time_us() + 3_600_000_000
    shard.set_counter(counter)
    return counter


def test_all_others_are_refused_until_the_replay_is_through(shard: Shard, counter_ahead: int):
    lost = shard.do("set_if_absent", ["a", "b"], ["1:7", "2:8"])
    shard.lose_everything()
    router = shard.seen_by(1, seen=lost.counter)
    router.do("restore", ["a"], kept(lost.links[:1]), last=False)
    assert router.do("set_if_absent", ["b"], ["3:9"]).status == "lost"
    assert router.read("a", seen=lost.counter).status == "lost"
    assert router.read("a", seen=lost.links[0].epoch).status == "lost"
    router.do("restore", ["b"], kept(lost.links[1:]), first=False)
    assert router.do("set_if_absent", ["a", "b"], ["3:9", "3:9"]).links == lost.links
    assert router.read("a", "b", seen=lost.counter).links == lost.links


def test_until_the_last_part_the_counter_holds_the_token(shard: Shard):
    shard.one("restore", "u", a_link(1, 41), token=17, last=False)
    assert shard.counter() == (17, 1)
    shard.one("restore", "v", a_link(1, 42), token=17, first=False, last=False)
    assert shard.counter() == (17, 1)
    shard.one("restore", "w", a_link(1, 43), token=17, first=False)
    assert shard.counter()[0] > 43


@pytest.mark.parametrize("last", [False, True])
def test_a_second_loss_in_the_midst_of_a_replay_is_noticed(shard: Shard, last):
    shard.one("restore", "u", a_link(1, 41), token=17, last=False)
    shard.lose_everything()
    reply = shard.do("restore", ["v"], [a_link(1, 42)], token=17, first=False, last=last)
    assert reply.status == "lost"
    assert shard.dump() == {}


def test_the_next_part_of_another_replay_is_refused(shard: Shard):
    shard.one("restore", "u", a_link(1, 41), token=17, last=False)
    shard.one("restore", "u", a_link(1, 41), token=18, last=False)
    assert shard.do("restore", [], [], token=17, first=False).status == "lost"
    assert shard.do("restore", [], [], token=18, first=False).status == "ok"


def test_a_removal_that_redis_has_forgotten_is_taken_back(shard: Shard):
    held = shard.place("u", "1:7")
    assert shard.one("restore", "u", RememberedLink(held, 0.0)) == (None, True)
    assert shard.raw("u") is None


def test_a_removal_never_takes_a_newer_link(shard: Shard):
    older = shard.place("u", "1:7")
    newer = shard.place("u", "2:8")
    assert shard.one("restore", "u", RememberedLink(older, 0.0)) == (newer, False)


def test_a_removal_of_what_is_not_there_changes_nothing(shard: Shard):
    assert shard.one("restore", "u", RememberedLink(a_link(1, 41).link, 0.0)) == (None, False)


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("lost", [False, True])
def test_a_scheduled_removal_comes_back_with_what_was_left_of_it(shard: Shard, persistent, lost):
    held = shard.place("u", "1:7", persistent=persistent)
    if lost:
        shard.lose_everything()
    shard.do("restore", ["u"], [RememberedLink(held, 20.0)])
    mark = b":p" if persistent else b":t"
    assert shard.raw("u") == f"1:7:{held.epoch}".encode() + mark
    assert 15_000 < shard.pttl("u") <= 20_000
    assert shard.do("restore", ["u"], [RememberedLink(held)]).written == [False]


def test_epochs_go_on_growing_after_a_replay(shard: Shard, counter_ahead: int):
    before = shard.place("u", "1:7")
    shard.lose_everything()
    router = shard.seen_by(1, seen=shard.time_us())
    restored = router.do("restore", ["u"], [RememberedLink(before)], last=True)
    assert restored.counter > before.epoch > counter_ahead
    assert router.place("u", "2:8").epoch > before.epoch
    assert router.place("new", "2:8").epoch > before.epoch


def test_epochs_exceed_the_counter_that_the_replayer_remembers(shard: Shard, counter_ahead: int):
    shard.lose_everything()
    router = shard.seen_by(1, seen=counter_ahead)
    assert router.do("restore", ["u"], [a_link(1, 41)], last=True).counter > counter_ahead
    assert router.place("u", "2:8").epoch > counter_ahead


def test_a_replay_may_carry_nothing_but_the_counter(shard: Shard, counter_ahead: int):
    shard.lose_everything()
    router = shard.seen_by(1, seen=counter_ahead)
    assert router.do("restore", [], [], last=True).counter > counter_ahead
    assert router.do("set_if_absent", ["u"], ["1:7"]).links[0].epoch > counter_ahead


def test_a_lagging_failover_is_replayed_over_what_is_left(shard: Shard):
    shard.place("u", "1:7")
    lagging = [
        plain_call("SET", shard.key("u"), shard.raw("u"), "PX", TTL_MS),
        plain_call("SET", shard.calls.keys.counter(0), f"{shard.counter()[0]}:1"),
    ]
    moved = shard.place("u", "2:8")
    shard.store.run(lagging)
    router = shard.seen_by(1, seen=moved.epoch)
    assert router.do("set_if_absent", ["u"], ["3:9"]).status == "lost"
    assert router.one("restore", "u", RememberedLink(moved), last=True) == (moved, True)
    assert router.one("set_if_absent", "u", "3:9") == (moved, False)
