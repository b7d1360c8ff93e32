"""One damaged key: nobody suffers but those it names, and `doctor` says how to mend it.

A table of every kind of key by every kind of damage, done by plain commands on real servers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest
from damagebench import CONFIG, OPTIONS, OTHER, SERVICE, USERS, Bench, Pod
from helpers import unique_name

from ray_route.errors import (
    DamagedKeyError,
    PartialBatchError,
    RouteError,
    RouterUnavailableError,
)
from ray_route.model import Link, RoutingState
from ray_route.protocol.changes import BEAT
from ray_route.protocol.commands import Refreshed
from ray_route.store.connect import Store
from ray_route.store.links import Writer
from ray_route.store.namespaces import look_up_namespace, open_namespace
from ray_route.store.owner_codes import FAILED, NO_LINK
from ray_route.store.scripts import Call, plain_call

pytestmark = pytest.mark.slow

Harm = Callable[[Bench], None]
Scenario = Callable[[Bench], Awaitable[None]]

UID = USERS[0]
READY = RoutingState.READY
GARBAGE = {
    "text": b"garbage",
    "nothing": b"",
    "bytes": b"\xff\xfe\x00'\n",
    "NaN": b"nan",
    "negative": b"-5:-7:-9",
    "huge": b"1:7:99999999999999999999999",
    "beyond-2^53": b"1:7:9999999999999999",
    "missing-field": b"0:7",
    "one-too-many": b"0:7:8:t:x",
    "two-replaced": b"0:7:8:6:5",
    "replaced-beyond-2^53": b"0:7:8:9999999999999999",
    "JSON": b'{"pod": 0}',
    "blanks": b" 0:7: 8",
    "underscores": b"0:7:1_000",
}
FOREIGN = {
    "list": ("RPUSH", "x", "y"),
    "hash": ("HSET", "x", "y"),
    "set": ("SADD", "x", "y"),
    "stream": ("XADD", "1-1", "x", "y"),
    "string": ("SET", "x"),
    "sorted-set": ("ZADD", "1", "x"),
}


def foreign_to(own: str) -> list[str]:
    return [kind for kind in FOREIGN if kind != own]


def link_key(bench: Bench, uid: str = UID) -> str:
    return bench.keys.link(bench.keys.shard(uid), SERVICE, uid)


def counter_key(bench: Bench) -> str:
    return bench.keys.counter(bench.keys.shard(UID))


def text(name: str, value: object) -> Harm:
    """Put a text in the place of a link or a counter."""
    key = {"link": link_key, "counter": counter_key}[name]
    return lambda bench: bench.put("SET", key(bench), value)


def other_type(key: Callable[[Bench], str], kind: str) -> Harm:
    return lambda bench: bench.swap(key(bench), *FOREIGN[kind])


LINKS = {
    **{name: text("link", value) for name, value in GARBAGE.items()},
    **{f"a-{kind}": other_type(link_key, kind) for kind in foreign_to("string")},
}
COUNTERS = {
    **{name: text("counter", value) for name, value in GARBAGE.items()},
    **{f"a-{kind}": other_type(counter_key, kind) for kind in foreign_to("string")},
    "huge-router": text("counter", "5:99999999999999999999"),
    "router-that-never-was": text("counter", "4000000000000000:4000000000000000"),
    "infinite": text("counter", "inf:inf"),
    "gone": lambda bench: bench.put("DEL", counter_key(bench)),
}


def field(name: str, value: object | None) -> Harm:
    """Damage an attribute of pod 1."""

    def harm(bench: Bench) -> None:
        if value is None:
            bench.put("HDEL", bench.keys.pods(SERVICE), f"1:{name}")
        else:
            bench.put("HSET", bench.keys.pods(SERVICE), f"1:{name}", value)

    return harm


_VALUES = {
    "garbage": b"garbage",
    "nothing": b"",
    "bytes": b"\xff\x00\n",
    "NaN": b"nan",
    "infinite": b"inf",
    "negative": b"-1",
    "huge": b"99999999999999999999",
    "missing": None,
}
_NUMBERS = ("incarnation", "heartbeat", "seq", "load")
_WORDS = ("life", "state", "process", "node", "actor", "lapsed")
ATTRIBUTES = {
    f"{name}-{kind}": field(name, value)
    for name in (*_NUMBERS, *_WORDS)
    for kind, value in _VALUES.items()
}


def stray(name: bytes) -> Harm:
    return lambda bench: bench.put("HSET", bench.keys.pods(SERVICE), name, "world")


STRAYS = {
    name: stray(value)
    for name, value in {
        "word": b"hello",
        "nothing": b"",
        "bytes": b"\xff:load",
        "negative-pod": b"-1:load",
        "huge-pod": b"99999999999:load",
        "zero-before": b"01:load",
        "NaN-pod": b"nan:load",
    }.items()
}


def meta(name: str, value: object | None) -> Harm:
    def harm(bench: Bench) -> None:
        if value is None:
            bench.put("HDEL", bench.keys.meta, name)
        else:
            bench.put("HSET", bench.keys.meta, name, value)

    return harm


_OPTIONS = {
    "list": b"[]",
    "unknown-option": b'{"shards": 2, "colour": 1}',
    "wrong-type": b'{"shards": 2, "ttl_s": "long"}',
    "not-finite": b'{"shards": 2, "ttl_s": Infinity}',
    "other-shards": b'{"shards": 7}',
    "deep": b"[" * 100_000,
}
META = {
    **{f"options-{name}": meta("options", value) for name, value in (_VALUES | _OPTIONS).items()},
    **{f"shards-{name}": meta("shards", value) for name, value in _VALUES.items()},
    **{f"layout-{name}": meta("layout", value) for name, value in _VALUES.items()},
    **{f"a-{kind}": other_type(lambda b: b.keys.meta, kind) for kind in foreign_to("hash")},
}
# Only routers read these, and write them anew.
META_OF_ROUTERS = {
    f"{name}-{kind}": meta(name, value)
    for name in ("router", "sealed", "home", "replay", "looked")
    for kind, value in _VALUES.items()
}
SERVICES = {
    **{f"a-{kind}": other_type(lambda b: b.keys.services, kind) for kind in foreign_to("set")},
    "bytes": lambda bench: bench.put("SADD", bench.keys.services, b"\xff\n"),
    "braces": lambda bench: bench.put("SADD", bench.keys.services, "a{b}"),
    "nothing": lambda bench: bench.put("SADD", bench.keys.services, ""),
    "gone": lambda bench: bench.put("DEL", bench.keys.services),
}
TABLES = {
    f"a-{kind}": other_type(lambda b: b.keys.pods(SERVICE), kind) for kind in foreign_to("hash")
}
LOGS = {
    **{f"a-{kind}": other_type(lambda b: b.keys.log, kind) for kind in foreign_to("stream")},
    "ids-used-up": lambda b: b.put("XADD", b.keys.log, f"{2**64 - 1}-{2**64 - 1}", "x", "y"),
}


@dataclass
class Seen:
    """What users of both services see."""

    links: dict[str, dict[str, Link | RouteError]]

    def problems(self) -> dict[tuple[str, str], RouteError]:
        return {
            (service, uid): answer
            for service, answers in self.links.items()
            for uid, answer in answers.items()
            if isinstance(answer, RouteError)
        }


async def seen(bench: Bench) -> Seen:
    return Seen({service: await bench.look_up(service) for service in (SERVICE, OTHER)})


def with_each(store: Store, harms: dict[str, Harm], scenario: Scenario) -> None:
    """Play a scenario after each harm, each time in a namespace of its own.

    On the old server, whose errors are worded in its own way, for keys of another type alone.
    """
    is_old = "valkey" not in str(store.infos()[0].get("server_name"))
    for name, harm in harms.items():
        if not is_old or name.startswith("a-"):
            asyncio.run(_play(store, name, harm, scenario))


async def _play(store: Store, name: str, harm: Harm, scenario: Scenario) -> None:
    async with Bench(store, unique_name()).running() as bench:
        harm(bench)
        try:
            await scenario(bench)
        except BaseException:
            print(f"after the harm {name!r}:")
            raise


async def as_before(bench: Bench) -> None:
    """Everybody is where they were, under their old epochs, and nothing is damaged."""
    assert (await seen(bench)).links == bench.placed
    assert await bench.examine() == []


async def mended(bench: Bench, key: str) -> None:
    """What `doctor` finds is that key, and its commands put everything right."""
    found = await bench.examine()
    assert {damage.key for damage in found} == {key}, found
    for damage in found:
        bench.mend(damage)
    for _ in range(2):
        await bench.beat()
    await as_before(bench)


def test_a_damaged_link_is_an_error_for_its_uid_alone(store: Store):
    async def scenario(bench: Bench) -> None:
        await bench.beat()
        view = await seen(bench)
        (problem,) = view.problems().items()
        assert problem[0] == (SERVICE, UID)
        assert isinstance(problem[1], DamagedKeyError)
        assert (problem[1].key, problem[1].uid) == (link_key(bench), UID)
        del view.links[SERVICE][UID], (before := {**bench.placed[SERVICE]})[UID]
        assert view.links == {**bench.placed, SERVICE: before}

        many = bench.read_many(SERVICE)
        assert list(many.codes).count(FAILED) == 1
        assert NO_LINK not in many.codes
        assert many.damaged == (link_key(bench),)
        assert await bench.links.refresh(SERVICE, epochs(bench)) == Refreshed({}, set())
        assert await bench.directory.sweep(SERVICE) == 0
        await mended(bench, link_key(bench))

    with_each(store, LINKS, scenario)


def ending(harm: Harm) -> Harm:
    """Do a harm to a link that leaves it the time that it has."""

    def harm_it(bench: Bench) -> None:
        left_ms = bench.store.one(plain_call("PTTL", link_key(bench)))
        assert left_ms > 0
        harm(bench)
        bench.put("PEXPIRE", link_key(bench), left_ms)

    return harm_it


def test_a_pods_belief_in_a_damaged_link_that_ends_is_not_lengthened_by_a_use_report(store: Store):
    async def scenario(bench: Bench) -> None:
        assert await bench.links.refresh(SERVICE, epochs(bench)) == Refreshed({}, {UID})
        # Where it stays, its uid can be nobody else's, until it is mended.
        bench.put("PERSIST", link_key(bench))
        assert await bench.links.refresh(SERVICE, epochs(bench)) == Refreshed({}, set())

    with_each(store, {name: ending(harm) for name, harm in LINKS.items()}, scenario)


def epochs(bench: Bench) -> dict[str, int]:
    return {
        uid: link.epoch for uid, link in bench.placed[SERVICE].items() if isinstance(link, Link)
    }


def test_no_write_touches_a_damaged_link(store: Store):
    async def scenario(bench: Bench) -> None:
        before = bench.store.one(dump(link_key(bench)))
        shard, owner, epoch = bench.keys.shard(UID), "0:7", 1
        calls, writer = bench.links._calls, bench.shards.writer(shard)
        link = Link(0, 7, 8, persistent=False, lease_s=0)
        at = (writer, shard, SERVICE, [UID])
        for call in (
            calls.set_if_absent(*at, [owner]),
            calls.relink(*at, [epoch], [owner]),
            calls.regrant(*at, [epoch]),
            calls.set(*at, [owner], persistent=False),
            calls.set(*at, [owner], [None], persistent=True),
            calls.try_set(*at, [owner], [None], persistent=False, steal=True),
            calls.remove(*at),
            calls.remove_if(*at, ["0"]),
            calls.refresh(*at, [epoch]),
            calls.readmit(*at, [link]),
        ):
            reply = calls.parse(bench.store.one(call), call)
            assert (reply.status, reply.written) == ("ok", [False])
            assert isinstance(reply.links[0], DamagedKeyError)
            assert reply.links[0].key == link_key(bench)
        assert bench.store.one(dump(link_key(bench))) == before

    with_each(store, LINKS, scenario)


def dump(key: str) -> Call:
    return plain_call("DUMP", key)


@pytest.mark.parametrize("restarts", [False, True], ids=["router-stays", "router-restarts"])
def test_a_damaged_counter_costs_nobody_their_link(store: Store, *, restarts: bool):
    """It is as if Redis had lost the writes to that shard: they are written back."""

    async def scenario(bench: Bench) -> None:
        found = await bench.examine()
        assert {damage.key for damage in found} <= {counter_key(bench)}
        if restarts:
            await bench.restart_router()
        try:
            view = await seen(bench)
        except RouterUnavailableError:  # a router that never was took over: the next is above it
            await bench.restart_router()
            view = await seen(bench)
        assert view.links == bench.placed
        await as_before(bench)

    with_each(store, COUNTERS, scenario)


def test_who_reads_past_a_router_takes_a_damaged_counter_for_a_loss(store: Store):
    async def scenario(bench: Bench) -> None:
        shard = bench.keys.shard(UID)
        calls, seen_counter = bench.links._calls, bench.shards.counters.seen[shard]
        call = calls.read(seen_counter, shard, [(SERVICE, UID)])
        reply = calls.parse(bench.store.one(call), call)
        read = bench.read_many(SERVICE)
        if await bench.examine():  # even who has been told of no write there does
            nobody = Writer(bench.shards.incarnation, 0)
            for told_nothing in (calls.take_over(nobody, shard), calls.read(0, shard, [])):
                assert calls.parse(bench.store.one(told_nothing)).status == "lost"
        if reply.status == "ok":  # it holds what a counter may be
            assert reply.links == [bench.placed[SERVICE][UID]]
        else:
            assert read.lost == {shard}
            assert NO_LINK not in read.codes

    with_each(store, COUNTERS, scenario)


def test_a_damaged_attribute_hides_no_other_pod_and_its_pod_mends_it(store: Store):
    async def scenario(bench: Bench) -> None:
        await bench.failures._look()  # nobody is dead, and every other pod is seen
        records = {(service, pod.pod): pod for service, pod in await bench.membership.refresh_all()}
        assert {(SERVICE, 0), (OTHER, 0)} <= records.keys()
        assert (await seen(bench)).links == bench.placed
        await bench.beat()
        await as_before(bench)
        assert [pod.incarnation for pod in bench.pods] == [
            bench.membership.table.pods(pod.who.service)[pod.who.pod].incarnation
            for pod in bench.pods
        ]

    with_each(store, ATTRIBUTES, scenario)


def test_a_damaged_record_frees_no_index_and_its_command_does(store: Store):
    """Its pod is dead, and writes nothing back: another takes the index once it is mended."""

    async def scenario(bench: Bench) -> None:
        heir = Pod(bench.pods[1].who._replace(process="another-process"), bench.pods[1].calls)
        assert bench.store.one(heir.calls.claim(heir.who, READY))[0] == b"held"
        for damage in await bench.examine():
            assert damage.key == bench.keys.pods(SERVICE)
            bench.mend(damage)
        await bench.recovery.recover()  # what this router knows of the pod is back
        assert await bench.examine() == []
        assert bench.store.one(heir.calls.claim(heir.who, READY))[0] == b"held"
        record = bench.membership.table.pods(SERVICE)[1]
        assert await bench.membership.declare_gone(SERVICE, record, silent=False)
        heir.claim(bench.store)
        assert heir.incarnation > bench.pods[1].incarnation

    named = {name: harm for name, harm in ATTRIBUTES.items() if not name.startswith("l")}
    with_each(store, named, scenario)


def test_a_stray_field_hides_no_pod(store: Store):
    async def scenario(bench: Bench) -> None:
        await bench.beat()
        assert len(await bench.membership.refresh_all()) == len(bench.pods)
        assert (await seen(bench)).links == bench.placed
        await mended(bench, bench.keys.pods(SERVICE))

    with_each(store, STRAYS, scenario)


def test_a_table_of_another_type_concerns_its_service_alone(store: Store):
    async def scenario(bench: Bench) -> None:
        key = bench.keys.pods(SERVICE)
        with pytest.raises(DamagedKeyError) as told:
            await bench.membership.refresh(SERVICE)
        assert told.value.key == key
        assert [pod.renew(bench.store) for pod in bench.pods] == [False, False, True]
        await bench.failures._look()
        assert [service for service, _ in await bench.membership.refresh_all()] == [OTHER]
        assert (await seen(bench)).links == bench.placed  # as far as is remembered
        await mended(bench, key)
        assert [pod.renew(bench.store) for pod in bench.pods] == [True, True, True]

    with_each(store, TABLES, scenario)


def test_the_services_are_named_again_by_their_pods(store: Store):
    async def scenario(bench: Bench) -> None:
        found = await bench.examine()
        await bench.failures._look()
        await bench.beat()
        members = bench.store.one(plain_call("SMEMBERS", bench.keys.services))
        assert {SERVICE.encode(), OTHER.encode()} <= set(members)
        for damage in found:
            assert damage.key == bench.keys.services
            bench.mend(damage)
        await bench.restart_router()
        await bench.beat()
        await as_before(bench)

    with_each(store, SERVICES, scenario)


def test_a_change_stream_that_takes_no_entry_is_made_anew(store: Store):
    async def scenario(bench: Bench) -> None:
        await asyncio.wait_for(bench.changes.append(BEAT), 10)
        await asyncio.wait_for(bench.changes.append(BEAT), 10)
        assert len(bench.store.one(plain_call("XRANGE", bench.keys.log, "-", "+"))) == 2
        await as_before(bench)

    with_each(store, LOGS, scenario)


@pytest.mark.parametrize("restarts", [False, True], ids=["router-stays", "router-restarts"])
def test_a_router_writes_a_damaged_meta_anew(store: Store, *, restarts: bool):
    async def scenario(bench: Bench) -> None:
        assert (await seen(bench)).links == bench.placed
        if restarts:
            await bench.restart_router()
        for _ in range(2):
            await bench.beat()
        assert open_namespace(store, bench.keys.namespace, OPTIONS) == CONFIG
        await bench.membership.note_look(settled=True)
        await as_before(bench)

    some = list({**META, **META_OF_ROUTERS}.items())
    with_each(store, dict(some[:: 3 if restarts else 1]), scenario)


def test_without_a_router_a_damaged_meta_is_refused_and_mended_as_printed(store: Store):
    async def scenario(bench: Bench) -> None:
        found = await bench.examine()
        if not found:  # what is missing is fixed by the first client, as it was
            assert open_namespace(store, bench.keys.namespace, OPTIONS) == CONFIG
            return
        for options in ({}, OPTIONS):
            with pytest.raises(DamagedKeyError) as told:
                open_namespace(store, bench.keys.namespace, options)
            assert told.value.key == bench.keys.meta
        (damage,) = found
        assert damage.key == bench.keys.meta
        bench.mend(damage)
        held = look_up_namespace(store, bench.keys.namespace)
        assert held is not None
        assert held[0] == bench.keys  # as many shards as before: nobody's link is elsewhere
        assert await bench.examine() == []

    with_each(store, META, scenario)


def test_a_link_to_a_life_that_no_pod_has_had_is_found(store: Store):
    async def scenario(bench: Bench) -> None:
        await mended(bench, link_key(bench))

    def harm(bench: Bench) -> None:
        bench.put("SET", link_key(bench), "7:5:1795724626184742")

    with_each(store, {"another life": harm}, scenario)


def test_a_batch_names_the_keys_that_are_damaged() -> None:
    error = PartialBatchError(
        address="a", reason="r", shards={1: "why"}, partial=None, damaged=["rr:{n:1}:l:s:u"]
    )
    assert error.damaged == ["rr:{n:1}:l:s:u"]
