from __future__ import annotations

import pytest
from shardbench import Shard

# Lua's own number formats print 14 digits: from 1e14 on neighbours would be the same bytes.
FAR_AHEAD = [1_954_839_223_499_990, 9_000_000_000_000_000, 2**53 - 100]
UIDS = [f"u{number}" for number in range(10)]


@pytest.mark.parametrize("counter", FAR_AHEAD)
def test_neighbouring_epochs_differ_in_their_stored_bytes(shard: Shard, counter: int):
    shard.set_counter(counter)
    shard.do("set_if_absent", UIDS, ["1:7"] * len(UIDS))
    expected = [f"1:7:{counter + step}".encode() for step in range(1, len(UIDS) + 1)]
    assert [shard.raw(uid) for uid in UIDS] == expected


@pytest.mark.parametrize("counter", FAR_AHEAD)
def test_the_stored_counter_keeps_all_its_digits(shard: Shard, counter: int):
    shard.set_counter(counter)
    for step in range(1, 6):
        router = shard.seen_by(1, seen=counter + step - 1)
        assert router.do("set", ["u"], [f"{step}:7"], persistent=False).counter == counter + step
        assert shard.counter()[0] == counter + step


@pytest.mark.parametrize("counter", FAR_AHEAD)
@pytest.mark.parametrize("missing", [1, 2])
def test_a_counter_that_is_short_by_one_is_noticed_at_any_height(
    shard: Shard, counter: int, missing: int
):
    shard.set_counter(counter)
    assert shard.seen_by(1, seen=counter).do("remove", ["u"]).status == "ok"
    assert shard.seen_by(1, seen=counter + missing).do("remove", ["u"]).status == "lost"
    assert shard.read("u", seen=counter).status == "ok"
    assert shard.read("u", seen=counter + missing).status == "lost"


@pytest.mark.parametrize("epoch", FAR_AHEAD)
def test_relink_tells_neighbouring_epochs_apart(shard: Shard, epoch: int):
    shard.set_counter(epoch - 1)
    held = shard.place("u", "1:7")
    assert held.epoch == epoch
    for near in (epoch - 1, epoch + 1):
        assert shard.one("relink", "u", near, "2:8") == (held, False)
    assert shard.one("relink", "u", epoch, "2:8")[0].epoch == epoch + 1


@pytest.mark.parametrize("epoch", FAR_AHEAD)
def test_a_scheduled_removal_keeps_the_epochs_digits(shard: Shard, epoch: int):
    shard.set_counter(epoch - 1)
    shard.place("u", "1:7")
    shard.remove("u", after_s=20)
    assert shard.raw("u") == f"1:7:{epoch}:t".encode()


@pytest.mark.parametrize("router", FAR_AHEAD)
def test_neighbouring_routers_are_told_apart(shard: Shard, router: int):
    shard.seen_by(router).place("u", "1:7")
    assert shard.counter()[1] == router
    assert shard.seen_by(router - 1).do("remove", ["u"]).status == "superseded"
    assert shard.seen_by(router).do("remove", ["u"]).status == "ok"


def test_epochs_are_at_least_redis_time(shard: Shard):
    before = shard.time_us()
    epoch = shard.place("u", "1:7").epoch
    assert before < epoch <= shard.time_us()


def test_epochs_exceed_a_counter_that_is_behind_the_clock(shard: Shard):
    shard.set_counter(1_700_000_000_000_000)
    before = shard.time_us()
    assert shard.place("u", "1:7").epoch > before


def test_no_two_links_of_a_shard_ever_share_an_epoch(shard: Shard):
    epochs = []
    for turn in range(20):
        reply = shard.do("set", UIDS, [f"{turn}:7"] * len(UIDS), persistent=False)
        epochs += [link.epoch for link in reply.links]
        shard.do("remove", UIDS[:5])
    assert epochs == sorted(set(epochs))
