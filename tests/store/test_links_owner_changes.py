"""relink, set and try_set: who may take a uid from whom."""

from __future__ import annotations

import pytest
from shardbench import NO_TTL, TTL_MS, Shard, owner

from ray_route.model import Link
from ray_route.store.links import RememberedLink


def test_relink_moves_the_expected_epoch_and_raises_it(shard: Shard):
    before = shard.place("u", "1:7")
    after, written = shard.one("relink", "u", before.epoch, "2:8")
    assert written
    assert owner(after) == (2, 8)
    assert after.epoch > before.epoch


@pytest.mark.parametrize("wrong_by", [-1, 1])
def test_relink_from_another_epoch_changes_nothing_and_tells_the_holder(
    shard: Shard, wrong_by: int
):
    held = shard.place("u", "1:7")
    stored = shard.raw("u")
    link, written = shard.one("relink", "u", held.epoch + wrong_by, "2:8")
    assert (link, written) == (held, False)
    assert shard.raw("u") == stored


def test_relink_takes_no_prefix_of_an_epoch_for_the_epoch(shard: Shard):
    held = shard.place("u", "1:7")
    assert shard.one("relink", "u", held.epoch // 10, "2:8") == (held, False)


def test_of_two_relinks_from_one_epoch_the_first_wins(shard: Shard):
    dead = shard.place("u", "1:7")
    winner, _ = shard.one("relink", "u", dead.epoch, "2:8")
    assert shard.one("relink", "u", dead.epoch, "3:9") == (winner, False)


def test_relink_sets_an_absent_link_as_a_temporary_one(shard: Shard):
    link, written = shard.one("relink", "u", 5, "2:8")
    assert written
    assert owner(link) == (2, 8)
    assert TTL_MS - 5_000 < shard.pttl("u") <= TTL_MS


@pytest.mark.parametrize("persistent", [True, False])
def test_relink_keeps_the_kind_and_gives_a_temporary_link_its_full_ttl(shard: Shard, persistent):
    before = shard.place("u", "1:7", persistent=persistent)
    if not persistent:
        shard.expire("u", 5_000)
    after, _ = shard.one("relink", "u", before.epoch, "2:8")
    assert after.persistent is persistent
    life = shard.pttl("u")
    assert life == NO_TTL if persistent else life > TTL_MS - 5_000


@pytest.mark.parametrize("persistent", [True, False])
def test_relink_clears_a_scheduled_removal_and_brings_the_kind_back(shard: Shard, persistent):
    before = shard.place("u", "1:7", persistent=persistent)
    shard.remove("u", after_s=20)
    after, _ = shard.one("relink", "u", before.epoch, "2:8")
    assert after.persistent is persistent
    assert shard.raw("u") == f"2:8:{after.epoch}:{before.epoch}".encode()


def test_the_same_owner_keeps_its_epoch(shard: Shard):
    held = shard.place("u", "1:7")
    assert shard.one("relink", "u", held.epoch, "1:7") == (held, True)
    assert shard.one("set", "u", "1:7", persistent=False) == (held, True)
    assert shard.one("try_set", "u", "1:7", None, persistent=False) == (held, True)


@pytest.mark.parametrize("verb", ["relink", "set", "try_set"])
def test_a_new_incarnation_of_the_same_pod_gets_a_new_epoch(shard: Shard, verb: str):
    held = shard.place("u", "1:7")
    link, written = {
        "relink": lambda: shard.one("relink", "u", held.epoch, "1:8"),
        "set": lambda: shard.one("set", "u", "1:8", persistent=False),
        "try_set": lambda: shard.one("try_set", "u", "1:8", None, persistent=False),
    }[verb]()
    assert written
    assert owner(link) == (1, 8)
    assert link.epoch > held.epoch


def test_one_relink_call_judges_each_uid_by_itself(shard: Shard):
    moved, kept = shard.place("moved", "1:7"), shard.place("kept", "1:7")
    reply = shard.do(
        "relink",
        ["moved", "kept", "absent"],
        [moved.epoch, kept.epoch + 1, 1],
        ["2:8", "2:8", "0:9"],
    )
    assert [owner(link) for link in reply.links] == [(2, 8), (1, 7), (0, 9)]
    assert reply.written == [True, False, True]


def test_set_takes_a_uid_from_whoever_holds_it(shard: Shard):
    before = shard.place("u", "1:7")
    after, written = shard.one("set", "u", "2:8", persistent=False)
    assert written
    assert owner(after) == (2, 8)
    assert after.epoch > before.epoch


def test_set_decides_the_kind(shard: Shard):
    shard.place("u", "1:7", persistent=False)
    assert shard.place("u", "1:7", persistent=True).persistent
    assert shard.pttl("u") == NO_TTL
    assert not shard.place("u", "1:7", persistent=False).persistent
    assert TTL_MS - 5_000 < shard.pttl("u") <= TTL_MS


def test_set_clears_a_scheduled_removal(shard: Shard):
    held = shard.place("u", "1:7")
    shard.remove("u", after_s=20)
    assert shard.place("u", "1:7") == held
    assert shard.raw("u") == f"1:7:{held.epoch}".encode()
    assert shard.pttl("u") > TTL_MS - 5_000


def test_try_set_links_a_uid_that_nobody_holds(shard: Shard):
    link, written = shard.one("try_set", "u", "0:7", None, persistent=True)
    assert written
    assert owner(link) == (0, 7)
    assert shard.pttl("u") == NO_TTL


def test_try_set_is_refused_where_another_pod_holds_the_uid(shard: Shard):
    held = shard.place("u", "1:7")
    shard.expire("u", 5_000)
    stored = shard.raw("u")
    assert shard.one("try_set", "u", "2:8", None, persistent=True) == (held, False)
    assert shard.raw("u") == stored
    assert shard.pttl("u") <= 5_000


def test_try_set_takes_no_pod_for_another_whose_digits_begin_like_its_own(shard: Shard):
    held = shard.place("u", "10:7")
    assert shard.one("try_set", "u", "1:7", None, persistent=False) == (held, False)


def test_try_set_steals_when_told(shard: Shard):
    held = shard.place("u", "1:7")
    link, written = shard.one("try_set", "u", "2:8", None, persistent=False, steal=True)
    assert written
    assert owner(link) == (2, 8)
    assert link.epoch > held.epoch


def test_try_set_replaces_the_epoch_that_is_known_to_be_dead_and_no_other(shard: Shard):
    held = shard.place("u", "1:7")
    assert shard.one("try_set", "u", "2:8", held.epoch - 1, persistent=False) == (held, False)
    link, written = shard.one("try_set", "u", "2:8", held.epoch, persistent=False)
    assert written
    assert owner(link) == (2, 8)


def test_one_try_set_call_judges_each_uid_by_itself(shard: Shard):
    shard.place("held", "1:7")
    dead = shard.place("dead", "3:7")
    reply = shard.do(
        "try_set",
        ["absent", "held", "dead"],
        ["2:8", "2:8", "2:8"],
        [None, None, dead.epoch],
        persistent=False,
    )
    assert [owner(link) for link in reply.links] == [(2, 8), (1, 7), (2, 8)]
    assert reply.written == [True, False, True]


@pytest.mark.parametrize("verb", ["relink", "set", "hand_over", "regrant"])
def test_a_link_names_the_epoch_that_it_replaced(shard: Shard, verb: str):
    before = shard.place("u", "1:7")
    assert before.replaced == 0
    after, _ = {
        "relink": lambda: shard.one("relink", "u", before.epoch, "2:8"),
        "set": lambda: shard.one("set", "u", "2:8", before.epoch, persistent=False),
        "hand_over": lambda: shard.one("hand_over", "u", before.epoch, "2:8"),
        "regrant": lambda: shard.one("regrant", "u", before.epoch),
    }[verb]()
    assert after.replaced == before.epoch
    assert shard.read("u").links[0].replaced == before.epoch


@pytest.mark.parametrize("verb", ["relink", "set"])
def test_a_link_that_is_made_where_there_was_none_replaced_nothing(shard: Shard, verb: str):
    link, written = {
        "relink": lambda: shard.one("relink", "u", 5, "2:8"),
        "set": lambda: shard.one("set", "u", "2:8", 5, persistent=False),
    }[verb]()
    assert written
    assert link.replaced == 0


def test_hand_over_gives_a_uid_that_has_no_link_to_nobody(shard: Shard):
    assert shard.one("hand_over", "u", 5, "2:8") == (None, False)


@pytest.mark.parametrize("wrong_by", [-1, 1])
def test_hand_over_leaves_another_epoch_alone(shard: Shard, wrong_by: int):
    held = shard.place("u", "1:7")
    assert shard.one("hand_over", "u", held.epoch + wrong_by, "2:8") == (held, False)


@pytest.mark.parametrize("persistent", [True, False])
def test_what_keeps_the_epoch_keeps_what_it_replaced(shard: Shard, persistent: bool):
    before = shard.place("u", "1:7")
    held, _ = shard.one("hand_over", "u", before.epoch, "2:8")
    shard.one("set", "u", "2:8", held.epoch, persistent=persistent)
    shard.one("refresh", "u", held.epoch)
    shard.remove("u", after_s=20)
    found = shard.read("u").links[0]
    assert (found.epoch, found.replaced) == (held.epoch, before.epoch)


def test_who_remembers_a_link_by_its_epoch_alone_takes_nothing_from_it(shard: Shard):
    before = shard.place("u", "1:7")
    held, _ = shard.one("hand_over", "u", before.epoch, "2:8")
    shard.expire("u", 5_000)
    remembered = RememberedLink(Link(2, 8, held.epoch, persistent=False, lease_s=0))
    assert shard.one("restore", "u", remembered, last=True)[1]
    assert shard.read("u").links[0].replaced == before.epoch


def test_a_recovery_writes_back_what_a_link_replaced(shard: Shard):
    before = shard.place("u", "1:7")
    held, _ = shard.one("hand_over", "u", before.epoch, "2:8")
    shard.lose_everything()
    shard.one("restore", "u", RememberedLink(held), last=True)
    assert shard.read("u").links[0].replaced == before.epoch
