from __future__ import annotations

from helpers import eventually
from shardbench import NO_TTL, TTL_MS, Shard, owner


def test_an_absent_uid_gets_the_given_owner_and_the_full_ttl(shard: Shard):
    link, written = shard.one("set_if_absent", "u", "3:7")
    assert written
    assert owner(link) == (3, 7)
    assert not link.persistent
    assert TTL_MS - 5_000 < shard.pttl("u") <= TTL_MS


def test_pod_0_is_an_owner_like_any_other(shard: Shard):
    assert owner(shard.one("set_if_absent", "u", "0:7")[0]) == (0, 7)
    assert owner(shard.one("set_if_absent", "u", "1:7")[0]) == (0, 7)


def test_a_persistent_link_has_no_ttl(shard: Shard):
    link, _ = shard.one("set_if_absent", "u", "3:7", persistent=True)
    assert link.persistent
    assert shard.pttl("u") == NO_TTL


def test_a_live_link_wins_and_the_loser_is_told_the_winner(shard: Shard):
    winner, _ = shard.one("set_if_absent", "u", "1:7")
    stored = shard.raw("u")
    link, written = shard.one("set_if_absent", "u", "2:8")
    assert (link, written) == (winner, False)
    assert shard.raw("u") == stored


def test_one_call_answers_for_each_uid_in_the_order_asked(shard: Shard):
    held = shard.place("held", "1:7")
    reply = shard.do("set_if_absent", ["new", "held", "newer"], ["2:8", "2:8", "0:5"])
    assert [owner(link) for link in reply.links] == [(2, 8), (1, 7), (0, 5)]
    assert reply.links[1] == held
    assert reply.written == [True, False, True]


def test_a_uid_named_twice_in_one_call_gets_one_owner(shard: Shard):
    reply = shard.do("set_if_absent", ["u", "u"], ["1:7", "2:8"])
    assert reply.links[0] == reply.links[1]
    assert reply.written == [True, False]


def test_five_hundred_uids_fit_in_one_call(shard: Shard):
    uids = [f"u{number}" for number in range(500)]
    reply = shard.do("set_if_absent", uids, [f"{number % 4}:7" for number in range(500)])
    assert [link.pod for link in reply.links] == [number % 4 for number in range(500)]
    assert len({link.epoch for link in reply.links}) == 500


def test_a_live_temporary_link_is_refreshed_to_the_full_ttl(shard: Shard):
    placed = shard.place("u", "1:7")
    shard.expire("u", 5_000)
    link, _ = shard.one("set_if_absent", "u", "2:8")
    assert link == placed
    assert shard.pttl("u") > TTL_MS - 5_000
    # The lease of the answer is the refreshed one: no copy of it outlives the link.
    assert link.lease_s <= shard.pttl("u") / 1000


def test_a_refresh_never_shortens_a_life(shard: Shard):
    shard.place("u", "1:7")
    shard.expire("u", 10 * TTL_MS)
    shard.one("set_if_absent", "u", "1:7")
    assert shard.pttl("u") > 9 * TTL_MS


def test_a_live_temporary_link_is_never_upgraded_or_deleted(shard: Shard):
    placed = shard.place("u", "1:7")
    link, written = shard.one("set_if_absent", "u", "1:7", persistent=True)
    assert (link, written) == (placed, False)
    assert 0 < shard.pttl("u") <= TTL_MS


def test_a_persistent_link_is_never_shortened(shard: Shard):
    placed = shard.place("u", "1:7", persistent=True)
    assert shard.one("set_if_absent", "u", "2:8") == (placed, False)
    assert shard.pttl("u") == NO_TTL


def test_an_expired_link_is_absent_and_its_successor_has_a_higher_epoch(shard: Shard):
    before = shard.place("u", "1:7")
    shard.expire("u", 50)
    eventually(lambda: shard.raw("u") is None, "the link expires")
    after, written = shard.one("set_if_absent", "u", "1:7")
    assert written
    assert after.epoch > before.epoch


def test_refresh_lengthens_the_life_of_the_expected_epoch_alone(shard: Shard):
    mine, other = shard.place("mine", "1:7"), shard.place("other", "1:7")
    shard.expire("mine", 5_000)
    shard.expire("other", 5_000)
    expected = [mine.epoch, other.epoch - 1, 5]
    reply = shard.do("refresh", ["mine", "other", "absent"], expected)
    assert reply.links == [mine, other, None]
    assert reply.written == [True, False, False]
    assert shard.pttl("mine") > TTL_MS - 5_000
    assert shard.pttl("other") <= 5_000


def test_refresh_never_shortens_a_life(shard: Shard):
    link = shard.place("u", "1:7")
    shard.expire("u", 10 * TTL_MS)
    assert shard.one("refresh", "u", link.epoch) == (link, False)
    assert shard.pttl("u") > 9 * TTL_MS


def test_refresh_gives_a_persistent_link_no_ttl(shard: Shard):
    link = shard.place("u", "1:7", persistent=True)
    assert shard.one("refresh", "u", link.epoch) == (link, False)
    assert shard.pttl("u") == NO_TTL
