"""The pod table: who holds an index, and how that ends."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from ray_route.config import RouteConfig
from ray_route.model import Life, PodRecord, RoutingState
from ray_route.store.connect import Store
from ray_route.store.keys import Keys
from ray_route.store.namespaces import look, restore_meta
from ray_route.store.pods import Identity, PodCalls, parse_table
from ray_route.store.scripts import plain_call, script_call

READY, DENY_NEW = RoutingState.READY, RoutingState.DENY_NEW
ROUTER = 1_000
FIRST = Identity("chat", 0, "process-1", "node-1", "actor-1")
SECOND = FIRST._replace(process="process-2", node="node-2", actor="actor-2")


@dataclass(frozen=True)
class Pods:
    """The pod table of one service."""

    store: Store
    calls: PodCalls

    def claim(self, who: Identity, state: RoutingState = READY) -> int:
        status, number = self.try_claim(who, state)
        assert status == b"ok"
        return number

    def try_claim(self, who: Identity, state: RoutingState = READY) -> tuple[bytes, int]:
        status, number, *_ = self.store.one(self.calls.claim(who, state))
        return status, int(number)

    def renew(self, who: Identity, incarnation: int, load: float = 0.0, seq: int = 0) -> bytes:
        return self.try_to_renew(who, incarnation, load, seq)[0]

    def try_to_renew(
        self, who: Identity, incarnation: int, load: float = 0.0, seq: int = 0
    ) -> list[bytes]:
        call = self.calls.renew(who, incarnation, load, READY, seq, lapsed=False)
        return self.store.one(call)

    def resign(self, who: Identity, incarnation: int) -> bytes:
        return self.store.one(self.calls.resign(who, incarnation))

    def declare_gone(self, pod: PodRecord, *, silent: bool) -> bytes:
        return self.store.one(self.calls.declare_gone("chat", pod, ROUTER, silent=silent))

    def set_state(self, pod: PodRecord, state: RoutingState) -> bytes:
        return self.store.one(self.calls.set_state("chat", pod, state, ROUTER))

    def table(self) -> list[PodRecord]:
        return parse_table(self.store.one(self.calls.table("chat")))

    def record(self) -> PodRecord:
        (record,) = self.table()
        return record

    def lose_everything(self) -> None:
        self.store.one(plain_call("DEL", self.calls.keys.pods("chat")))
        self.store.one(plain_call("DEL", self.calls.keys.services))

    def services(self) -> set[bytes]:
        return set(self.store.one(self.calls.services()))

    def time_us(self) -> int:
        return int(self.store.one(script_call("time", [self.calls.keys.meta], [])))


@pytest.fixture
def pods(store: Store, namespace: str) -> Pods:
    calls = PodCalls(Keys(namespace, 1))
    store.one(plain_call("HSET", calls.keys.meta, "sealed", "this-server"))
    return Pods(store, calls)


def test_a_claim_fills_the_record(pods: Pods):
    before = pods.time_us()
    incarnation = pods.claim(FIRST, state=DENY_NEW)
    record = pods.record()
    assert record == PodRecord(
        pod=0,
        incarnation=incarnation,
        state=DENY_NEW,
        life=Life.ALIVE,
        load=0.0,
        node="node-1",
        process="process-1",
        actor="actor-1",
        heartbeat_us=record.heartbeat_us,
        seq=1,
    )
    assert before <= record.heartbeat_us <= pods.time_us()


def test_the_first_claim_makes_the_service_known(pods: Pods):
    assert pods.services() == set()
    pods.claim(FIRST)
    assert pods.services() == {b"chat"}


def test_a_table_holds_each_pod_by_itself_in_the_order_of_their_indexes(pods: Pods):
    for index in (10, 0, 2):
        pods.claim(FIRST._replace(pod=index, process=f"process-{index}"))
    pods.renew(FIRST._replace(pod=2, process="process-2"), pods.table()[1].incarnation, 2.5)
    assert [(pod.pod, pod.process, pod.load) for pod in pods.table()] == [
        (0, "process-0", 0.0),
        (2, "process-2", 2.5),
        (10, "process-10", 0.0),
    ]


@pytest.mark.parametrize("text", ["with:colon", "a b", "é", ""])
def test_a_record_keeps_any_text(pods: Pods, text: str):
    pods.claim(FIRST._replace(node=text, actor=text))
    assert (pods.record().node, pods.record().actor) == (text, text)


@pytest.mark.parametrize("reply", ["list", "dict"])
def test_a_table_is_read_from_either_shape_of_reply(pods: Pods, reply: str):
    pods.claim(FIRST)
    raw = pods.store.one(pods.calls.table("chat"))
    flat = dict(zip(raw[::2], raw[1::2], strict=True)) if isinstance(raw, list) else raw
    listed = [part for pair in flat.items() for part in pair]
    assert parse_table(flat if reply == "dict" else listed) == [pods.record()]


def test_an_index_is_held_however_old_its_owners_heartbeat_is(pods: Pods):
    """The server's clock may have stepped by an hour: time is no proof that a life has ended."""
    incarnation = pods.claim(FIRST)
    pods.store.one(plain_call("HSET", pods.calls.keys.pods("chat"), "0:heartbeat", "1"))
    status, wait_ms = pods.try_claim(SECOND)
    assert status == b"held"
    assert 0 < wait_ms <= 1_000
    assert (pods.record().process, pods.record().incarnation) == ("process-1", incarnation)
    assert pods.renew(FIRST, incarnation) == b"ok"


def test_an_index_is_free_at_once_when_its_owner_resigned(pods: Pods):
    previous = pods.claim(FIRST)
    assert pods.resign(FIRST, previous) == b"ok"
    assert pods.record().life is Life.RESIGNED
    assert pods.claim(SECOND) > previous


def test_an_index_is_free_at_once_when_its_owner_was_declared_gone(pods: Pods):
    previous = pods.claim(FIRST)
    assert pods.declare_gone(pods.record(), silent=False) == b"ok"
    assert pods.record().life is Life.GONE
    assert pods.claim(SECOND) > previous
    assert pods.record().life is Life.ALIVE


def test_the_same_process_may_claim_anew_and_gets_a_higher_incarnation(pods: Pods):
    incarnations = [pods.claim(FIRST) for _ in range(3)]
    assert incarnations == sorted(set(incarnations))


def test_incarnations_are_at_least_redis_time_with_all_their_digits(pods: Pods):
    before = pods.time_us()
    assert before < pods.claim(FIRST) <= pods.time_us()


def test_incarnations_grow_on_a_slow_clock_too(pods: Pods):
    ahead = pods.time_us() + 3_600_000_000
    pods.claim(FIRST)
    pods.store.one(plain_call("HSET", pods.calls.keys.pods("chat"), "0:incarnation", ahead))
    assert [pods.claim(FIRST) for _ in range(2)] == [ahead + 1, ahead + 2]


def test_a_renewal_moves_the_heartbeat_and_reports_the_load(pods: Pods):
    incarnation = pods.claim(FIRST)
    claimed = pods.record()
    assert pods.renew(FIRST, incarnation, 3.25) == b"ok"
    renewed = pods.record()
    assert renewed.load == 3.25
    assert renewed.heartbeat_us > claimed.heartbeat_us
    assert renewed.seq == claimed.seq + 1
    as_before = {"load": 0.0, "heartbeat_us": claimed.heartbeat_us, "seq": claimed.seq}
    assert replace(renewed, **as_before) == claimed


def test_a_renewal_does_not_undo_a_routing_state_that_an_operator_set(pods: Pods):
    incarnation = pods.claim(FIRST)
    assert pods.set_state(pods.record(), DENY_NEW) == b"ok"
    pods.renew(FIRST, incarnation)
    assert pods.record().state is DENY_NEW


@pytest.mark.parametrize("ending", ["gone", "resigned"])
def test_a_life_that_has_ended_can_not_be_renewed(pods: Pods, ending: str):
    incarnation = pods.claim(FIRST)
    if ending == "gone":
        pods.declare_gone(pods.record(), silent=False)
    else:
        pods.resign(FIRST, incarnation)
    ended = pods.record()
    assert pods.renew(FIRST, incarnation, 9.0) == b"gone"
    assert pods.record() == ended


def test_a_renewal_of_a_replaced_incarnation_changes_nothing(pods: Pods):
    old = pods.claim(FIRST)
    pods.resign(FIRST, old)
    pods.claim(SECOND)
    current = pods.record()
    assert pods.renew(FIRST, old, 9.0) == b"superseded"
    assert pods.record() == current


def test_a_record_that_was_lost_is_written_back_whole(pods: Pods):
    incarnation = pods.claim(FIRST)
    before = pods.record()
    pods.lose_everything()
    assert pods.renew(FIRST, incarnation, 3.5, before.seq) == b"ok"
    after = pods.record()
    fresh = {"load": 3.5, "heartbeat_us": after.heartbeat_us, "seq": before.seq + 1}
    assert after == replace(before, **fresh)
    assert after.heartbeat_us > before.heartbeat_us
    assert pods.services() == {b"chat"}
    assert pods.try_claim(SECOND)[0] == b"held"


def test_a_pod_that_is_only_silent_is_not_ended_once_its_heartbeat_moved(pods: Pods):
    incarnation = pods.claim(FIRST)
    seen = pods.record()
    pods.renew(FIRST, incarnation)
    assert pods.declare_gone(seen, silent=True) == b"renewed"
    assert pods.record().life is Life.ALIVE
    assert pods.renew(FIRST, incarnation) == b"ok"


def test_a_pod_whose_heartbeat_stood_still_is_ended(pods: Pods):
    incarnation = pods.claim(FIRST)
    assert pods.declare_gone(pods.record(), silent=True) == b"ok"
    assert pods.renew(FIRST, incarnation) == b"gone"


def test_a_process_that_is_known_to_have_ended_is_ended_whatever_its_heartbeat(pods: Pods):
    incarnation = pods.claim(FIRST)
    seen = pods.record()
    pods.renew(FIRST, incarnation)
    assert pods.declare_gone(seen, silent=False) == b"ok"
    assert pods.record().life is Life.GONE


def test_ending_a_life_twice_is_no_error_and_keeps_the_first_reason(pods: Pods):
    incarnation = pods.claim(FIRST)
    pods.resign(FIRST, incarnation)
    assert pods.declare_gone(pods.record(), silent=True) == b"ok"
    assert pods.record().life is Life.RESIGNED


def test_a_successor_is_never_ended_in_place_of_its_predecessor(pods: Pods):
    old = pods.claim(FIRST)
    seen = pods.record()
    pods.resign(FIRST, old)
    successor = pods.claim(SECOND)
    assert pods.declare_gone(seen, silent=False) == b"superseded"
    assert pods.resign(FIRST, old) == b"superseded"
    assert pods.renew(SECOND, successor) == b"ok"


def test_an_absent_record_is_not_a_dead_pod(pods: Pods):
    incarnation = pods.claim(FIRST)
    seen = pods.record()
    pods.lose_everything()
    assert pods.declare_gone(seen, silent=False) == b"absent"
    assert pods.table() == []
    assert pods.renew(FIRST, incarnation) == b"ok"


def test_a_routing_state_is_set_on_the_living_incarnation_alone(pods: Pods):
    first = pods.claim(FIRST)
    seen = pods.record()
    pods.resign(FIRST, first)
    assert pods.set_state(seen, DENY_NEW) == b"gone"
    pods.claim(SECOND)
    assert pods.set_state(seen, DENY_NEW) == b"superseded"
    assert pods.record().state is READY
    pods.lose_everything()
    assert pods.set_state(seen, DENY_NEW) == b"absent"
    assert pods.table() == []


def test_a_renewal_brings_back_a_claim_that_redis_has_lost(pods: Pods):
    """A promoted replica may know the life before only, even that it is gone."""
    pods.claim(FIRST)
    older = pods.store.one(plain_call("HGETALL", pods.calls.keys.pods("chat")))
    pods.resign(FIRST, pods.record().incarnation)
    claimed = pods.claim(SECOND)
    pods.lose_everything()
    flat = [part for pair in older.items() for part in pair] if isinstance(older, dict) else older
    pods.store.one(plain_call("HSET", pods.calls.keys.pods("chat"), *flat))
    assert pods.renew(SECOND, claimed, load=3.0) == b"ok"
    assert (pods.record().incarnation, pods.record().process) == (claimed, SECOND.process)
    assert pods.record().life is Life.ALIVE


def test_what_a_router_knows_of_pods_is_written_back(pods: Pods):
    pods.claim(FIRST)
    record = replace(pods.record(), state=DENY_NEW, load=4.0)
    pods.lose_everything()
    assert pods.store.one(pods.calls.restore("chat", record, ROUTER)) == b"written"
    assert pods.record() == replace(record, seq=record.seq + 1)
    assert pods.services() == {b"chat"}
    assert pods.store.one(pods.calls.restore("chat", record, ROUTER)) == b"known"


def test_a_death_that_redis_has_forgotten_is_written_back(pods: Pods):
    pods.claim(FIRST)
    gone = replace(pods.record(), life=Life.GONE)
    assert pods.store.one(pods.calls.restore("chat", gone, ROUTER)) == b"written"
    assert pods.record().life is Life.GONE
    assert (
        pods.store.one(pods.calls.restore("chat", replace(gone, life=Life.ALIVE), ROUTER))
        == b"known"
    )
    assert pods.record().life is Life.GONE


def test_a_younger_life_stays_when_an_older_one_is_written_back(pods: Pods):
    pods.claim(FIRST)
    older = pods.record()
    pods.resign(FIRST, older.incarnation)
    pods.claim(SECOND)
    assert pods.store.one(pods.calls.restore("chat", older, ROUTER)) == b"known"
    assert pods.record().process == SECOND.process


def test_an_index_is_claimed_in_a_sealed_namespace_only(pods: Pods):
    pods.store.one(plain_call("DEL", pods.calls.keys.meta))
    assert pods.try_claim(FIRST)[0] == b"unsealed"
    assert pods.table() == []


def test_every_write_of_a_record_counts_it_up(pods: Pods):
    incarnation = pods.claim(FIRST)
    writes = [
        lambda: pods.renew(FIRST, incarnation),
        lambda: pods.set_state(pods.record(), DENY_NEW),
        lambda: pods.store.one(
            pods.calls.restore("chat", replace(pods.record(), state=READY), ROUTER)
        ),
        lambda: pods.declare_gone(pods.record(), silent=True),
    ]
    for count, write in enumerate(writes, start=2):
        write()
        assert pods.record().seq == count


def test_a_renewal_tells_its_number_the_newest_router_and_whether_anything_was_lost(pods: Pods):
    incarnation = pods.claim(FIRST)
    pods.store.one(plain_call("HSET", pods.calls.keys.meta, "router", "1234567890123456"))
    told = [b"ok", b"2", b"1234567890123456"]
    assert pods.try_to_renew(FIRST, incarnation, seq=1) == [*told, b"0"]
    # A replica that lacks the last renewals has become the primary.
    assert pods.try_to_renew(FIRST, incarnation, seq=7) == [b"ok", b"8", told[2], b"1"]
    pods.lose_everything()
    assert pods.try_to_renew(FIRST, incarnation, seq=8) == [b"ok", b"9", told[2], b"1"]


def test_a_claim_tells_the_records_number_and_the_newest_router(pods: Pods):
    claim = pods.calls.claim(FIRST, READY)
    assert pods.store.one(claim)[2:] == [b"1", b"0"]
    pods.store.one(plain_call("HSET", pods.calls.keys.meta, "router", "17"))
    assert pods.store.one(claim)[2:] == [b"2", b"17"]


def test_what_is_written_back_is_younger_than_what_anybody_knows(pods: Pods):
    pods.claim(FIRST)
    known = replace(pods.record(), seq=40)
    pods.lose_everything()
    pods.store.one(pods.calls.restore("chat", known, ROUTER))
    assert pods.record().seq == 41


def test_a_record_without_a_number_is_older_than_any_that_has_one(pods: Pods):
    incarnation = pods.claim(FIRST)
    pods.store.one(plain_call("HDEL", pods.calls.keys.pods("chat"), "0:seq"))
    assert pods.record().seq == 0
    assert pods.declare_gone(pods.record(), silent=True) == b"ok"
    assert pods.renew(FIRST, incarnation) == b"gone"


def test_a_router_that_has_been_deposed_decides_over_no_life(pods: Pods):
    incarnation = pods.claim(FIRST)
    pods.store.one(plain_call("HSET", pods.calls.keys.meta, "router", ROUTER + 1))
    before = pods.record()
    address = ("chat", 0, incarnation)
    for call in [
        pods.calls.declare_gone("chat", before, ROUTER, silent=False),
        pods.calls.declare_gone("chat", before, ROUTER, silent=True),
        pods.calls.set_state("chat", before, RoutingState.SHUTDOWN, ROUTER),
        pods.calls.restore("chat", replace(before, life=Life.GONE), ROUTER),
        pods.calls.vouch(address, before.seq, ROUTER),
    ]:
        assert pods.store.one(call) == b"deposed"
    assert pods.store.one(look(pods.calls.keys, ROUTER)) == [b"deposed"]
    assert pods.store.one(restore_meta(pods.calls.keys, RouteConfig(), ROUTER, 1)) == b"deposed"
    assert pods.record() == before
    assert pods.resign(FIRST, incarnation) == b"ok", "a pod asks nobody"


def test_only_another_life_serves_after_a_shutdown(pods: Pods):
    pods.claim(FIRST)
    pods.set_state(pods.record(), RoutingState.SHUTDOWN)
    assert pods.set_state(pods.record(), READY) == b"gone"
    known = replace(pods.record(), state=READY)
    assert pods.store.one(pods.calls.restore("chat", known, ROUTER)) == b"known"
    assert pods.record().state is RoutingState.SHUTDOWN
    pods.claim(FIRST)
    assert pods.record().state is READY


def test_looks_are_noted_with_the_time_since_the_last(pods: Pods):
    keys = pods.calls.keys
    assert pods.store.one(look(keys, ROUTER)) == [b"ok", b"-1"]
    looked = int(pods.store.one(plain_call("HGET", keys.meta, "looked")))
    assert abs(looked - pods.time_us()) < 5_000_000
    status, since = pods.store.one(look(keys, ROUTER))
    assert status == b"ok"
    assert 0 < int(since) < 5_000_000
