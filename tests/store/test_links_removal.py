from __future__ import annotations

import pytest
from helpers import eventually
from shardbench import MARGIN_S, NO_TTL, TTL_MS, Shard, owner

from ray_route.store.links import RememberedLink
from ray_route.store.scripts import plain_call


def test_remove_deletes_whoever_holds_each_uid(shard: Shard):
    shard.place("a", "1:7")
    shard.place("b", "2:8", persistent=True)
    reply = shard.do("remove", ["a", "absent", "b"])
    assert reply.links == [None, None, None]
    assert reply.written == [True, False, True]


def test_a_later_link_has_a_higher_epoch_than_the_removed_one(shard: Shard):
    removed = shard.place("u", "1:7")
    shard.remove("u")
    assert shard.place("u", "1:7").epoch > removed.epoch


@pytest.mark.parametrize(("persistent", "mark"), [(False, b":t"), (True, b":p")])
def test_a_delayed_removal_is_a_mark_and_a_shorter_life(shard: Shard, persistent, mark: bytes):
    held = shard.place("u", "1:7", persistent=persistent)
    stored = shard.raw("u")
    link, written = shard.remove("u", after_s=20)
    assert written
    assert (owner(link), link.epoch, link.persistent) == (owner(held), held.epoch, persistent)
    assert shard.raw("u") == stored + mark
    assert 15_000 < shard.pttl("u") <= 20_000


@pytest.mark.parametrize("persistent", [True, False])
def test_a_delayed_removal_takes_place(shard: Shard, persistent):
    shard.place("u", "1:7", persistent=persistent)
    shard.send("remove", ["u"], after_s=0.08)
    eventually(lambda: shard.raw("u") is None, "the link is removed")


def test_a_removal_in_the_far_future_never_lengthens_a_life(shard: Shard):
    shard.place("u", "1:7")
    shard.expire("u", 5_000)
    shard.remove("u", after_s=100)
    assert shard.pttl("u") <= 5_000


def test_of_two_scheduled_removals_the_earlier_one_holds(shard: Shard):
    shard.place("u", "1:7", persistent=True)
    shard.remove("u", after_s=20)
    shard.remove("u", after_s=100)
    assert shard.pttl("u") <= 20_000
    shard.remove("u", after_s=10)
    assert shard.pttl("u") <= 10_000
    assert shard.raw("u").endswith(b":p")


def test_a_link_that_is_to_go_lives_on_if_its_owner_knows_of_that(shard: Shard):
    held = shard.place("u", "1:7")
    shard.remove("u", after_s=1)
    stored = shard.raw("u")
    assert shard.do("refresh", ["u"], [held.epoch]).written == [False]
    assert shard.pttl("u") <= 1_000
    assert shard.do("refresh", ["u"], [held.epoch + 1], ending=True).written == [False]
    assert shard.do("refresh", ["u"], [held.epoch], ending=True).written == [True]
    assert shard.raw("u") == stored
    assert shard.pttl("u") > 2_000


def test_a_scheduled_removal_can_still_be_made_at_once(shard: Shard):
    shard.place("u", "1:7")
    shard.remove("u", after_s=20)
    assert shard.remove("u") == (None, True)
    assert shard.raw("u") is None


def test_caches_get_the_shorter_lease_of_a_link_whose_removal_is_scheduled(shard: Shard):
    shard.place("u", "1:7", persistent=True)
    link, _ = shard.remove("u", after_s=MARGIN_S + 20)
    assert 15 < link.lease_s <= 20
    assert 15 < shard.read("u").links[0].lease_s <= 20
    link, _ = shard.remove("u", after_s=MARGIN_S - 1)
    assert link.lease_s == 0


@pytest.mark.parametrize("delay_s", [1e-9, 0.0004])
def test_a_delay_too_short_for_a_millisecond_is_not_an_immediate_removal(
    shard: Shard, delay_s: float
):
    shard.place("u", "1:7")
    reply = shard.send("remove", ["u"], after_s=delay_s)
    assert owner(reply.links[0]) == (1, 7)
    eventually(lambda: shard.raw("u") is None, "the link is removed")


@pytest.mark.parametrize("verb", ["remove", "remove_if"])
def test_a_removal_in_a_links_last_millisecond_is_no_error(shard: Shard, verb: str):
    # In that millisecond PTTL is 0 and the key still there. Some of so many removals meet it.
    uids = [f"u{number}" for number in range(400)]
    meant = [["1"]] if verb == "remove_if" else []
    for _ in range(2):
        shard.do("set", uids, ["1:7"] * len(uids), persistent=False)
        ending = [plain_call("PEXPIRE", shard.key(uid), 4) for uid in uids]
        removals = [shard.call(verb, [uid], *meant, after_s=5) for uid in uids]
        replies = shard.store.run([*ending, *removals])
        assert [reply for reply in replies if isinstance(reply, Exception)] == []


@pytest.mark.parametrize("persistent", [True, False])
def test_no_use_of_a_link_undoes_its_scheduled_removal(shard: Shard, persistent):
    held = shard.place("u", "1:7", persistent=persistent)
    shard.remove("u", after_s=20)
    marked = shard.raw("u")
    shard.one("refresh", "u", held.epoch)
    shard.one("set_if_absent", "u", "1:7")
    shard.one("set_if_absent", "u", "2:8", persistent=True)
    shard.one("relink", "u", held.epoch - 1, "2:8")
    shard.one("try_set", "u", "2:8", None, persistent=True)
    shard.one("restore", "u", RememberedLink(held), last=True)
    assert shard.raw("u") == marked
    assert shard.pttl("u") <= 20_000


def test_a_marked_link_still_belongs_to_its_owner(shard: Shard):
    held = shard.place("u", "1:7")
    shard.remove("u", after_s=20)
    link, written = shard.one("set_if_absent", "u", "2:8")
    assert not written
    assert (owner(link), link.epoch) == (owner(held), held.epoch)


@pytest.mark.parametrize("exactness", [1, 2, 3])
def test_remove_if_removes_the_link_that_was_meant(shard: Shard, exactness: int):
    held = shard.place("u", "1:7")
    meant = ":".join(f"1:7:{held.epoch}".split(":")[:exactness])
    assert shard.one("remove_if", "u", meant) == (None, True)
    assert shard.raw("u") is None


@pytest.mark.parametrize("meant", ["2", "1:8", "7", "1:7:5", "0", ""])
def test_remove_if_keeps_a_link_that_was_not_meant(shard: Shard, meant: str):
    held = shard.place("u", "1:7")
    assert shard.one("remove_if", "u", meant) == (held, False)
    assert 0 < shard.pttl("u") <= TTL_MS


@pytest.mark.parametrize("digits", [1, 15])
def test_remove_if_takes_no_prefix_of_digits_for_the_number(shard: Shard, digits: int):
    held = shard.place("u", "12:70")
    for meant in ("1", "12:7", f"12:70:{str(held.epoch)[:digits]}"):
        assert shard.one("remove_if", "u", meant) == (held, False)


def test_one_remove_if_call_judges_each_uid_by_itself(shard: Shard):
    for uid, holder in (("one", "1:7"), ("ten", "10:7"), ("twelve", "12:7")):
        shard.place(uid, holder)
    reply = shard.do("remove_if", ["ten", "one", "absent", "twelve"], ["1", "1", "1", "12:7"])
    assert reply.written == [False, True, False, True]
    assert [link and link.pod for link in reply.links] == [10, None, None, None]


def test_remove_if_can_be_delayed_and_meets_a_marked_link_too(shard: Shard):
    held = shard.place("u", "1:7", persistent=True)
    link, written = shard.one("remove_if", "u", f"1:7:{held.epoch}", after_s=20)
    assert written
    assert link.epoch == held.epoch
    assert shard.raw("u").endswith(b":p")
    assert shard.one("remove_if", "u", f"1:7:{held.epoch}") == (None, True)


def test_a_removal_leaves_a_link_that_was_not_meant_without_a_mark(shard: Shard):
    shard.place("u", "1:7", persistent=True)
    stored = shard.raw("u")
    shard.one("remove_if", "u", "2", after_s=20)
    assert shard.raw("u") == stored
    assert shard.pttl("u") == NO_TTL
