"""Links are read straight from Redis only where what Redis says is to be believed."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from itertools import count
from typing import Any

import pytest
from helpers import eventually, unique_name
from proxy import TcpProxy
from reader import CONFIG, WAIT_S, Process, S
from replicated import Replicated, cluster, one_server, sentinel
from servers import ClusterServers, admin, is_in_step

from ray_route.clock import Deadline
from ray_route.errors import (
    ClosedError,
    DamagedKeyError,
    RouteTimeoutError,
    StoreUnavailableError,
)
from ray_route.model import Link
from ray_route.protocol.welcome import Vouched
from ray_route.runtime import link_reads, waiting
from ray_route.runtime.link_reads import Awaited, Reading
from ray_route.runtime.namespace import Namespace
from ray_route.runtime.waiting import Operation
from ray_route.store.embedded import EmbeddedServer
from ray_route.store.keys import Keys
from ray_route.store.links import Writer
from ray_route.store.scripts import plain_call
from ray_route.store.url import parse_url


@pytest.fixture(params=["valkey", "redis"])
def server_pair(request: pytest.FixtureRequest) -> Iterator[tuple[EmbeddedServer, EmbeddedServer]]:
    """Two servers with one password, of which neither follows the other yet."""
    password = unique_name()
    settings = (f"masterauth {password}", "repl-diskless-sync-delay 0")
    with (
        EmbeddedServer(request.param, password=password, settings=settings) as one,
        EmbeddedServer(request.param, password=password, settings=settings) as other,
    ):
        yield one, other


def follow(replica: EmbeddedServer, primary: EmbeddedServer | None) -> None:
    """Make a server a replica of another, or of none."""
    with closing(admin(replica)) as client:
        client.execute_command(
            "REPLICAOF", *(("127.0.0.1", primary.port) if primary else ("NO", "ONE"))
        )
    if primary is not None:
        eventually(lambda: is_in_step(replica), "the replica is in step")


@pytest.fixture
def process(server: EmbeddedServer) -> Iterator[Process]:
    process = Process(parse_url(server.url), Keys(unique_name(), CONFIG.shards))
    yield process
    process.close()


def test_nothing_is_believed_before_a_router_has_vouched_for_the_server(process: Process) -> None:
    process.link("u", "3:7")
    assert process.read("u") is None
    process.believe()
    assert process.pod_of("u") == 3
    assert process.asked >= 1


def test_what_has_no_link_is_told_as_such_and_a_lost_shard_is_not(process: Process) -> None:
    process.believe()
    reading = process.read("nobody")
    assert isinstance(reading, Reading)
    assert reading.reply.links == [None]
    process.saw_all([(process.keys.shard("nobody"), 5)])  # a write of which Redis knows nothing
    reading = process.read("nobody")
    assert isinstance(reading, Reading)
    assert reading.reply.status == "lost"


def test_a_replica_that_lagged_is_not_believed_when_it_has_become_the_primary(
    server_pair: tuple[EmbeddedServer, EmbeddedServer],
) -> None:
    primary, replica = server_pair
    with TcpProxy(primary.port) as proxy:
        url = parse_url(primary.url.replace(str(primary.port), str(proxy.port)))
        process = Process(url, Keys(unique_name(), CONFIG.shards))
        process.link("u", "0:7")
        follow(replica, primary)
        process.believe()
        assert process.pod_of("u") == 0
        process.link("w", "0:7")
        eventually(lambda: process.pod_of("w") == 0, "the replica has it")
        follow(replica, None)  # from here on it lags
        process.link("u", "1:8")  # which this process has not heard of
        proxy.retarget(replica.port)
        assert process.read("u") is None
        process.believe()
        reading = process.read("u")
        assert isinstance(reading, Reading)
        assert reading.reply.status == "lost", "who is vouched for is told how much there was"
        assert process.pod_of("w") == 0, "what it has not lost is read"
        process.close()


@pytest.mark.slow
@pytest.mark.parametrize("how", [one_server, sentinel, cluster])
def test_after_a_failover_that_lags_a_link_is_never_what_it_was_before(
    how: Callable[[], AbstractContextManager[Replicated]],
) -> None:
    with how() as store:
        name = next(name for name in iter(unique_name, "") if store.fits(name))
        keys = Keys(name, CONFIG.shards)
        uids = (f"u{number}" for number in count())
        uid = next(uid for uid in uids if store.holds(keys.counter(keys.shard(uid))))
        process = Process(parse_url(store.url), keys)
        process.link(uid, "0:7")
        eventually(lambda: is_in_step(store.replica), "the replica is in step", WAIT_S)
        process.believe()
        assert process.pod_of(uid) == 0
        store.cut_off()
        process.link(uid, "1:8")  # which this process has not heard of

        def is_lost() -> bool:
            reading = process.read(uid)
            assert not (isinstance(reading, Reading) and reading.reply.status == "ok")
            return isinstance(reading, Reading)

        store.take_over()
        eventually(is_lost, "its server is vouched for, and has less than the router knows")
        process.close()


def test_a_primary_that_is_demoted_under_an_open_connection_is_not_believed(
    server_pair: tuple[EmbeddedServer, EmbeddedServer],
) -> None:
    primary, other = server_pair
    process = Process(parse_url(primary.url), Keys(unique_name(), CONFIG.shards))
    process.link("u", "0:7")
    process.believe()
    assert process.pod_of("u") == 0
    follow(other, primary)
    follow(other, None)
    follow(primary, other)  # it has all links still
    assert process.read("u") is None
    assert not process.belief.is_ready()
    process.close()


def test_a_connection_that_breaks_ends_belief_and_its_successor_is_vouched_for(
    server: EmbeddedServer,
) -> None:
    with TcpProxy(server.port) as proxy:
        url = parse_url(server.url.replace(str(server.port), str(proxy.port)))
        process = Process(url, Keys(unique_name(), CONFIG.shards))
        process.link("u", "3:7")
        process.believe()
        assert process.pod_of("u") == 3
        proxy.retarget(server.port)
        assert process.read("u") is None
        process.believe()
        assert process.pod_of("u") == 3
        assert process.asked == 2
        process.close()


@pytest.mark.parametrize("end", ["before", "after"])
def test_what_comes_after_belief_has_ended_is_not_believed(
    process: Process, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    process.link("u", "3:7")
    process.believe()
    lane = process.lane()
    process.belief.give_back(lane)
    receive = lane.receive

    def ended_meanwhile() -> Any:
        if end == "before":
            process.belief.end()  # the stream was cut while the answer was on its way
        replies = receive()
        process.belief.end()
        return replies

    monkeypatch.setattr(lane, "receive", ended_meanwhile)
    assert process.read("u") is None


def test_what_was_overtaken_on_its_way_is_not_believed(process: Process) -> None:
    process.link("u", "3:7")
    process.believe()
    part = process.part("u")
    lane = process.lane()
    sent = process.reads._send(lane, [part])
    process.saw_all([(part.shard, process.routers[part.shard] + 1)])  # as a beat says
    assert process.reads._receive(lane, [part.shard], sent) == [None]


def test_belief_that_ended_while_a_router_was_asked_is_not_brought_back_by_its_answer(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = process.vouch

    def interrupted() -> Vouched:
        vouched = compared()
        if process.asked == 1:
            process.belief.end()  # after the comparison
        return vouched

    monkeypatch.setattr(process.belief, "_vouch", interrupted)
    process.believe()
    assert process.asked == 2
    assert process.belief.is_ready()


def test_servers_that_a_beat_does_not_name_are_not_believed(process: Process) -> None:
    process.link("u", "3:7")
    process.believe()
    (server,) = process.vouch().identities
    process.belief.keep_only([server, "another"])
    assert process.pod_of("u") == 3
    process.belief.keep_only(["another"])
    assert process.read("u") is None


def test_a_beat_of_other_servers_voids_what_a_router_is_just_being_asked(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = process.vouch

    def slow_to_arrive() -> Vouched:
        vouched = compared()
        if process.asked == 1:
            process.belief.keep_only(["another"])  # it took over after the comparison
        return vouched

    monkeypatch.setattr(process.belief, "_vouch", slow_to_arrive)
    process.believe()
    assert process.asked == 2, "who it is now was asked again"


def test_what_has_replies_to_come_is_taken_by_nobody(process: Process) -> None:
    process.link("u", "3:7")
    process.believe()
    lane = process.lane()
    process.reads._send(lane, [process.part("u")])
    process.belief.give_back(lane)  # as two interrupts, one after the other, may do
    assert process.read("u") is None
    process.believe()
    assert process.pod_of("u") == 3


def test_a_lane_that_does_not_come_back_is_given_up_and_closed_once(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reader was interrupted with it in his hand, or is very slow."""
    process.link("u", "3:7")
    process.believe()
    monkeypatch.setattr(link_reads, "_WAIT_S", 0.1)
    lane = process.lane()
    assert process.read("u") is None
    pool = process.store._client.connection_pool
    assert lane._connection not in pool._in_use_connections
    process.believe()
    assert process.pod_of("u") == 3
    other = process.lane()
    process.belief.give_back(lane)  # he was only slow
    assert other._connection in pool._in_use_connections, "it is not closed under another's hands"
    process.belief.give_back(other)
    assert process.pod_of("u") == 3


def test_where_no_thread_can_be_started_the_router_is_asked_and_later_it_can(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", full)
        assert process.belief.take("", 0) is None
        with pytest.raises(RuntimeError):
            process.belief.renewed().result(0)

    def believed() -> bool:
        process.belief.renewed().exception(WAIT_S)
        return process.belief.is_ready()

    eventually(believed, "the system has threads again")


def test_an_idle_connection_asks_whether_its_server_is_there(process: Process) -> None:
    process.believe()
    lane = process.lane()
    assert lane._socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert lane._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 20
    process.belief.give_back(lane)


def test_a_fork_reads_nothing_by_its_parents_connections(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    process.link("u", "3:7")
    process.believe()
    monkeypatch.setattr("ray_route.runtime.belief.os.getpid", lambda: -1)
    assert process.read("u") is None


def test_what_many_ask_while_others_read_is_read_in_one_round_trip(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a pod's uids are confirmed after a lapse: each is asked for by a call of its own."""
    uids = {f"u{number}": number for number in range(60)}
    for uid, pod in uids.items():
        process.link(uid, f"{pod}:7")
    process.believe()
    busy, trips = threading.Event(), []
    read = process.reads.read
    monkeypatch.setattr(
        process.reads, "read", lambda parts: trips.append(len(parts)) or read(parts)
    )
    process.worker.put(busy.wait)
    asked = {uid: process.reads.ask([process.part(uid)]) for uid in uids}
    busy.set()
    told = {}
    for uid, future in asked.items():
        (reading,) = future.result(WAIT_S)
        assert isinstance(reading, Reading)
        (link,) = reading.reply.links
        assert isinstance(link, Link)
        told[uid] = link.pod
    assert told == uids
    assert trips == [60]
    asked = {uid: process.reads.ask([process.part(uid)]) for uid in [*uids, *uids]}
    assert all(future.result(WAIT_S) for future in asked.values())


class Pod:
    """What a pod reads by, and a router that says that nothing is lost."""

    def __init__(self, process: Process) -> None:
        self.reads, self.url, self.recovered = process.reads, process.url, 0
        self.belief, self._heard_of = process.belief, ""
        self.store = process.store

    def check_here(self) -> None:
        pass

    def recover(self, _: list[int]) -> Operation[None]:
        self.recovered += 1
        yield from ()

    def believe(self, _: int) -> Operation[None]:
        yield Awaited(self.belief.renewed(), "a router")


def test_a_server_that_has_lost_what_a_router_finds_there_is_not_asked_again(
    process: Process,
) -> None:
    """It is another than the router compares: cut off, and its successor has all."""
    process.link("u", "3:7")
    process.believe()
    lane = process.lane()
    process.belief.give_back(lane)
    shard = process.keys.shard("u")
    behind, counter = Pod(process), process.seen[shard]
    process.seen[shard] = counter + 10**6  # as a beat says
    operation = Namespace.read(behind, shard, [(S, "u")])  # type: ignore[arg-type]
    with pytest.raises(RouteTimeoutError):
        waiting.run(operation, Deadline.after(1.0))
    assert not lane.is_believed
    assert process.asked >= 2, "it was asked for who is the primary now"


def test_a_pod_that_hears_of_other_servers_believes_those_no_more(process: Process) -> None:
    process.link("u", "3:7")
    process.believe()
    pod: Any = Pod(process)
    (server,) = process.vouch().identities
    Namespace.hear_of_servers(pod, "")
    Namespace.hear_of_servers(pod, server)
    assert process.pod_of("u") == 3
    term = process.belief._term
    Namespace.hear_of_servers(pod, server)
    assert process.belief._term == term, "what a router is just being asked is not voided by it"
    Namespace.hear_of_servers(pod, "another")
    assert process.read("u") is None


def test_after_the_end_nobody_waits_for_belief(process: Process) -> None:
    process.believe()
    process.belief.close()
    with pytest.raises(ClosedError):
        process.belief.renewed().result(0)


@pytest.mark.parametrize("asked", ["before", "after"])
def test_after_the_end_nobody_waits_for_what_nobody_reads_any_more(
    process: Process, asked: str
) -> None:
    busy = threading.Event()
    process.worker.put(busy.wait)  # as one that waits for a server
    if asked == "before":
        reading = process.reads.ask([process.part("u")])
    process.reads.close(ClosedError(what="the namespace"))
    process.worker.stop(0)
    if asked == "after":
        reading = process.reads.ask([process.part("u")])
    with pytest.raises(ClosedError):
        reading.result(0)
    busy.set()


def test_belief_comes_back_however_often_nobody_could_vouch(process: Process) -> None:
    process.belief._renewals._failures = 5_000
    process.believe()
    assert process.belief.is_ready()


def test_a_damaged_link_is_an_error_of_its_own_and_ends_no_belief(process: Process) -> None:
    process.link("u", "3:7")
    process.link("v", "3:7")
    process.believe()
    process.store.one(plain_call("SET", process.keys.link(process.keys.shard("v"), S, "v"), "!"))
    readings = process.reads.ask([process.part("v"), process.part("u")]).result(WAIT_S)
    damaged, good = readings
    assert isinstance(damaged, Reading)
    assert isinstance(good, Reading)
    (error,) = damaged.reply.links
    assert isinstance(error, DamagedKeyError)
    assert (error.service, error.uid) == (S, "v")
    assert isinstance(good.reply.links[0], Link)
    assert process.belief.is_ready()


def test_a_damaged_counter_is_a_loss_and_ends_no_belief(process: Process) -> None:
    process.link("u", "3:7")
    process.believe()
    process.store.one(plain_call("SET", process.keys.counter(process.keys.shard("u")), "!"))
    reading = process.read("u")
    assert isinstance(reading, Reading)
    assert reading.reply.status == "lost"
    assert process.belief.is_ready()


def test_a_link_whose_removal_is_scheduled_is_told_apart(process: Process) -> None:
    epoch = process.link("u", "3:7")
    shard = process.keys.shard("u")
    writer = Writer(1, process.routers[shard])
    ending = process.calls.remove_if(writer, shard, S, ["u"], [f"3:7:{epoch}"], after_s=60)
    process.store.one(ending)
    process.believe()
    reading = process.read("u")
    assert isinstance(reading, Reading)
    assert reading.ending == [True]


def test_scripts_that_a_server_has_forgotten_are_sent_whole(process: Process) -> None:
    process.link("u", "3:7")
    process.believe()
    process.store.one(plain_call("SCRIPT", "FLUSH"))
    assert process.pod_of("u") == 3


def test_in_a_cluster_a_slot_that_has_moved_is_vouched_for_where_it_is() -> None:
    with ClusterServers("valkey", masters=2) as cluster:
        process = Process(cluster.store_url(), Keys(unique_name(), CONFIG.shards))
        uids = [f"u{number}" for number in range(16)]
        for uid in uids:
            process.link(uid, "3:7")
        process.believe()
        assert [process.pod_of(uid) for uid in uids] == [3] * len(uids)
        slot = cluster.slot(process.keys.counter(process.keys.shard("u0")))
        to = next(node for node in cluster.nodes if node is not cluster.owner(slot))
        source = cluster.begin_move(slot, to)
        while cluster.move_keys(slot, source, to, 10):
            assert process.read("u0") is None  # on its way, which is no one's fault
        assert process.belief.is_ready()
        cluster.end_move(slot, to)
        assert process.read("u0") is None
        eventually(
            lambda: all(process.pod_of(uid) == 3 for uid in uids), "both are vouched for again", 20
        )
        process.close()


def test_in_a_cluster_a_server_is_believed_of_what_it_held_when_it_was_vouched_for() -> None:
    """What comes there later may have lost writes on its way, and was compared by nobody."""
    with ClusterServers("valkey", masters=2) as cluster:
        process = Process(cluster.store_url(), Keys(unique_name(), CONFIG.shards))
        process.link("u0", "3:7")
        process.believe()
        slot = cluster.slot(process.keys.counter(process.keys.shard("u0")))
        to = next(node for node in cluster.nodes if node is not cluster.owner(slot))
        source = cluster.begin_move(slot, to)
        while cluster.move_keys(slot, source, to, 10):
            pass
        cluster.end_move(slot, to)
        process.store.primaries()  # this process hears of it, by whatever else it asks
        asked = process.asked
        assert process.read("u0") is None
        eventually(lambda: process.pod_of("u0") == 3, "it is vouched for there")
        assert process.asked > asked
        process.close()


@pytest.mark.slow
def test_in_a_cluster_one_master_that_is_lost_costs_the_others_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ClusterServers("valkey", in_part=True) as cluster:
        process = Process(cluster.store_url(), Keys(unique_name(), CONFIG.shards))
        uids = [f"u{number}" for number in range(32)]
        for uid in uids:
            process.link(uid, "3:7")
        process.believe()
        slot = cluster.slot(process.keys.counter(process.keys.shard("u0")))
        cluster.owner(slot).stop()
        parts = [process.part(uid) for uid in uids]
        first = process.reads.ask(parts).result(WAIT_S)
        assert first[0] is None
        others = [uid for uid, reading in zip(uids, first, strict=True) if reading is not None]
        assert others
        assert process.belief.renewed().exception(WAIT_S) is not None
        process.belief._renewals._failed_at -= WAIT_S  # it is some time later, and is tried again
        process.belief.end()  # the stream was cut for a moment
        compared, asked = process.vouch, process.asked

        def cut_again_meanwhile() -> Vouched:
            vouched = compared()
            if process.asked == asked + 1:
                process.belief.end()
            return vouched

        monkeypatch.setattr(process.belief, "_vouch", cut_again_meanwhile)
        with pytest.raises(StoreUnavailableError):
            process.believe()
        assert [process.pod_of(uid) for uid in others] == [3] * len(others)
        assert not process.reads.believes(process.keys.shard("u0"))
        assert process.reads.believes(process.keys.shard(others[0]))
        process.close()
