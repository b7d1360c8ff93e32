"""Who may write a shard, and what its counter says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from shardbench import Shard

from ray_route.model import Link
from ray_route.store.links import RememberedLink, ShardReply
from ray_route.store.scripts import script_call

Verb = Callable[[Shard, Link], ShardReply]

# Every verb on links, in a form that changes "u" (held under `held`) where it is allowed to.
MUTATIONS: dict[str, Verb] = {
    "set_if_absent": lambda shard, _: shard.do("set_if_absent", ["u", "new"], ["2:8", "2:8"]),
    "relink": lambda shard, held: shard.do("relink", ["u"], [held.epoch], ["2:8"]),
    "set": lambda shard, _: shard.do("set", ["u"], ["2:8"], persistent=True),
    "set to the same owner": lambda shard, _: shard.do("set", ["u"], ["1:7"], persistent=False),
    "try_set": lambda shard, _: shard.do("try_set", ["u"], ["1:8"], [None], persistent=False),
    "steal": lambda shard, _: shard.do(
        "try_set", ["u"], ["2:8"], [None], persistent=False, steal=True
    ),
    "remove": lambda shard, _: shard.do("remove", ["u"]),
    "remove later": lambda shard, _: shard.do("remove", ["u"], after_s=5),
    "remove_if": lambda shard, _: shard.do("remove_if", ["u"], ["1:7"]),
    "refresh": lambda shard, held: shard.do("refresh", ["u"], [held.epoch]),
    "take_over": lambda shard, _: shard.calls.parse(
        shard.store.one(shard.calls.take_over(shard.writer, 0))
    ),
}
RESTORE: dict[str, Verb] = {
    "restore more": lambda shard, _: shard.do("restore", ["u"], [_newer(shard)], last=False),
    "restore last": lambda shard, _: shard.do("restore", ["u"], [_newer(shard)], last=True),
}


def _newer(shard: Shard) -> RememberedLink:
    return RememberedLink(Link(2, 8, shard.time_us() + 10**9, True, 0.0))


def each(verbs: dict[str, Verb]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("verb", verbs.values(), ids=verbs)


@pytest.fixture
def held(shard: Shard) -> Link:
    """A link that router 5 wrote, with little of its life left."""
    link = shard.seen_by(5).place("u", "1:7")
    shard.expire("u", 100_000)
    return link


@each(MUTATIONS | RESTORE)
def test_a_superseded_router_changes_nothing(shard: Shard, held: Link, verb: Verb):
    before = shard.dump()
    assert verb(shard.seen_by(4), held).status == "superseded"
    assert shard.dump() == before


@each(MUTATIONS | RESTORE)
def test_the_present_router_does_change_something(shard: Shard, held: Link, verb: Verb):
    before = shard.dump()
    assert verb(shard.seen_by(5), held).status == "ok"
    assert shard.dump() != before


@each(MUTATIONS)
def test_a_shard_that_has_lost_writes_is_not_changed(shard: Shard, held: Link, verb: Verb):
    before, counter = shard.dump(), shard.counter()[0]
    reply = verb(shard.seen_by(5, seen=counter + 1), held)
    assert (reply.status, reply.counter) == ("lost", counter)
    assert shard.dump() == before


@each(MUTATIONS)
def test_an_empty_store_is_not_taken_for_one_without_links(shard: Shard, held: Link, verb: Verb):
    counter = shard.counter()[0]
    shard.lose_everything()
    assert verb(shard.seen_by(5, seen=counter), held).status == "lost"
    assert shard.dump() == {}


@each(MUTATIONS)
def test_every_mutation_advances_the_counter_and_replies_it(shard: Shard, held: Link, verb: Verb):
    before = shard.counter()[0]
    reply = verb(shard.seen_by(5, seen=before), held)
    assert reply.counter > before
    assert shard.counter() == (reply.counter, 5)


@each(MUTATIONS)
def test_a_counter_that_is_ahead_of_the_clock_advances_too(shard: Shard, held: Link, verb: Verb):
    ahead = shard.time_us() + 10**9
    shard.set_counter(ahead, 5)
    assert verb(shard.seen_by(5), held).counter > ahead


def test_what_changes_nothing_leaves_the_counter_alone(shard: Shard):
    router = shard.seen_by(5)
    held = router.place("u", "1:7", persistent=True)
    counter = router.counter()
    router.do("set_if_absent", ["u"], ["2:8"])
    router.do("relink", ["u"], [held.epoch - 1], ["2:8"])
    router.do("try_set", ["u"], ["2:8"], [None], persistent=False)
    router.do("remove_if", ["u"], ["2"])
    router.do("remove", ["absent"])
    router.do("refresh", ["u"], [held.epoch])
    assert router.counter() == counter


def test_a_reader_with_a_fresh_memory_reads_and_one_with_a_higher_counter_does_not(
    shard: Shard, held: Link
):
    counter = shard.counter()[0]
    reply = shard.read("u", "absent", seen=counter)
    assert (reply.status, reply.counter, reply.links) == ("ok", counter, [held, None])
    assert shard.read("u", seen=counter + 1).status == "lost"


def test_reading_changes_nothing(shard: Shard, held: Link):
    before = shard.dump()
    shard.read("u", "absent")
    assert shard.dump() == before


def test_a_read_of_a_link_that_is_about_to_end_has_no_lease(shard: Shard, held: Link):
    shard.expire("u", 5_000)
    assert shard.read("u").links == [held]
    assert shard.read("u").links[0].lease_s == 0


def test_taking_over_a_shard_shuts_out_the_router_before(shard: Shard, held: Link):
    younger = shard.seen_by(6)
    assert MUTATIONS["take_over"](younger, held).status == "ok"
    assert MUTATIONS["remove"](shard.seen_by(5), held).status == "superseded"
    assert shard.raw("u") == f"1:7:{held.epoch}".encode()
    assert MUTATIONS["take_over"](younger, held).status == "ok"


def test_a_younger_router_takes_over_with_its_first_write(shard: Shard, held: Link):
    shard.seen_by(6).place("v", "1:7")
    assert MUTATIONS["remove"](shard.seen_by(5), held).status == "superseded"


def test_every_router_gets_a_higher_incarnation(shard: Shard):
    claimed = [_claim_router(shard) for _ in range(3)]
    assert claimed == sorted(set(claimed))
    assert claimed[0] <= shard.time_us() < claimed[0] + 10_000_000


def test_a_router_exceeds_the_incarnation_that_it_was_told_of(shard: Shard):
    ahead = shard.time_us() + 10**9
    assert _claim_router(shard, at_least=ahead) == ahead + 1
    assert _claim_router(shard) == ahead + 2


def _claim_router(shard: Shard, at_least: int = 0) -> int:
    return int(shard.store.one(script_call("claim_router", [shard.calls.keys.meta], [at_least])))
