"""regrant: who has given a uid up gets it back under a new epoch, never under the old one."""

from __future__ import annotations

import pytest
from shardbench import NO_KEY, NO_TTL, TTL_MS, Shard, owner

KINDS = pytest.mark.parametrize("persistent", [True, False])


@KINDS
def test_its_owner_gets_it_under_a_higher_epoch(shard: Shard, persistent: bool):
    before = shard.place("u", "1:7", persistent=persistent)
    after, written = shard.one("regrant", "u", before.epoch)
    assert written
    assert owner(after) == owner(before)
    assert after.epoch > before.epoch
    assert after.persistent is persistent


def test_what_was_sent_for_the_old_epoch_meets_nothing_any_more(shard: Shard):
    given_up = shard.place("u", "1:7")
    back, _ = shard.one("regrant", "u", given_up.epoch)
    assert shard.one("relink", "u", given_up.epoch, "2:8") == (back, False)
    assert shard.one("regrant", "u", given_up.epoch) == (back, False)
    assert shard.one("remove_if", "u", f"1:7:{given_up.epoch}") == (back, False)


@pytest.mark.parametrize("wrong_by", [-1, 1])
def test_another_epoch_is_left_alone(shard: Shard, wrong_by: int):
    held = shard.place("u", "1:7")
    stored = shard.raw("u")
    assert shard.one("regrant", "u", held.epoch + wrong_by) == (held, False)
    assert shard.raw("u") == stored


def test_a_uid_without_a_link_stays_without(shard: Shard):
    assert shard.one("regrant", "u", 5) == (None, False)
    assert shard.pttl("u") == NO_KEY


@KINDS
def test_it_lives_as_long_as_a_new_one(shard: Shard, persistent: bool):
    before = shard.place("u", "1:7", persistent=persistent)
    if not persistent:
        shard.expire("u", 5_000)
    shard.one("regrant", "u", before.epoch)
    life = shard.pttl("u")
    assert life == NO_TTL if persistent else life > TTL_MS - 5_000


@KINDS
def test_a_removal_that_is_scheduled_still_comes(shard: Shard, persistent: bool):
    before = shard.place("u", "1:7", persistent=persistent)
    shard.remove("u", after_s=20)
    after, written = shard.one("regrant", "u", before.epoch)
    assert written
    assert after.epoch > before.epoch
    assert 0 < shard.pttl("u") <= 20_000
    stored = shard.raw("u")
    assert stored is not None
    assert stored.endswith(b":p" if persistent else b":t")
