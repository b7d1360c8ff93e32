"""A look-up that has an answer never goes through the router."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import ray
from helpers import end_router, eventually, unique_name

import ray_route
from ray_route.client import operations
from ray_route.client.lookups import Found
from ray_route.client.session import Session
from ray_route.clock import Deadline, now
from ray_route.runtime.metrics import LOOKUPS
from ray_route.runtime.waiting import run
from ray_route.store.connect import Store
from ray_route.store.scripts import plain_call

TTL_S = 3.0
OPTIONS = {"ttl_s": TTL_S, "margin_s": 0.5, "heartbeat_s": 0.3, "staleness_s": 60.0}


@pytest.fixture(scope="module")
def client(ray_session: None) -> Iterator[ray_route.RouteClient]:
    """Links with short lives, and a client that may go on for long without a router."""
    namespace = unique_name()
    with ray_route.connect(namespace, **OPTIONS) as connected:
        yield connected
    end_router(namespace)


@pytest.fixture
def session(client: ray_route.RouteClient, svc: ray_route.Deployment) -> Session:
    """The client's session, which may read from Redis."""
    eventually(client._session.may_read, "a router has vouched for the server")
    return client._session


def forget(session: Session) -> None:
    """Forget all links, and that what was asked for last was new."""
    session.near.flush()
    session.new_uids.note("svc", 1, 1)


def in_peace(attempt: Callable[[], None]) -> None:
    """Make an attempt, and another if it failed and took so long that leases may have run out."""

    def made() -> bool:
        began_at = now()
        try:
            attempt()
        except AssertionError:
            if now() - began_at < TTL_S / 3:
                raise
            return False
        return True

    eventually(made, "an attempt in peace")


def answered(client: Any, source: str) -> int:
    counts = client._session.meter.counts
    return sum(
        count
        for (name, labels), count in list(counts.items())
        if name == LOOKUPS.name and labels[0] == source
    )


def ways(client: Any) -> dict[str, Callable[[list[str]], dict[str, Any]]]:
    """Every way to look uids up; each returns their pods."""
    aclient = ray_route.AsyncRouteClient(client._session)

    async def gathered(uids: list[str]) -> dict[str, int]:
        links = await asyncio.gather(*(aclient.compute_linked_pod(uid, "svc") for uid in uids))
        return {uid: link.pod for uid, link in zip(uids, links, strict=True)}

    async def many(uids: list[str]) -> dict[str, int]:
        links = await aclient.compute_linked_pods(uids, "svc")
        return {uid: link.pod for uid, link in links.items()}

    def in_threads(uids: list[str]) -> dict[str, int]:
        with ThreadPoolExecutor(16) as pool:
            links = list(pool.map(lambda uid: client.compute_linked_pod(uid, "svc"), uids))
        return {uid: link.pod for uid, link in zip(uids, links, strict=True)}

    def by_call_many(uids: list[str]) -> dict[str, int]:
        places = client.call_many([(uid, ()) for uid in uids], "svc", "where")
        return {uid: place[0] for uid, place in zip(uids, places, strict=True)}

    return {
        "compute": lambda uids: {u: client.compute_linked_pod(u, "svc").pod for u in uids},
        "get": lambda uids: {u: client.get_linked_pod(u, "svc").pod for u in uids},
        "call": lambda uids: {u: client.call(u, "svc", "where")[0] for u in uids},
        "call_many": by_call_many,
        "compute many": lambda uids: {
            u: link.pod for u, link in client.compute_linked_pods(uids, "svc").items()
        },
        "threads": in_threads,
        "tasks": lambda uids: asyncio.run(gathered(uids)),
        "many, awaited": lambda uids: asyncio.run(many(uids)),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "way",
    ["compute", "get", "call", "call_many", "compute many", "threads", "tasks", "many, awaited"],
)
def test_links_are_read_by_the_process_that_asks(client: Any, session: Session, way: str) -> None:
    def attempt() -> None:
        uids = [f"{unique_name()}-{number}" for number in range(40)]
        pods = {uid: link.pod for uid, link in client.compute_linked_pods(uids, "svc").items()}
        forget(session)
        by_router, by_redis = answered(client, "router"), answered(client, "redis")
        assert ways(client)[way](uids) == pods
        assert answered(client, "router") == by_router
        assert answered(client, "redis") == by_redis + len(uids)

    in_peace(attempt)


def test_known_uids_are_found_by_who_can_ask_no_router(
    client: Any, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    uids = [f"{unique_name()}-{number}" for number in range(20)]
    links = client.compute_linked_pods(uids, "svc")
    monkeypatch.setattr(session.namespace, "_router", None)
    forget(session)
    for uid in uids:
        assert client.compute_linked_pod(uid, "svc") == links[uid]
    forget(session)
    assert client.compute_linked_pods(uids, "svc") == links


def test_a_burst_of_new_uids_is_one_call_to_the_router(
    client: Any, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    deciding = session.computing.deciding
    send = deciding._send

    def noted(service: str, wanted: dict[str, int], done: Any) -> None:
        sent.append(len(wanted))
        send(service, wanted, done)

    monkeypatch.setattr(deciding, "_send", noted)
    aclient = ray_route.AsyncRouteClient(session)

    async def burst() -> list[Any]:
        uids = [f"{unique_name()}-{number}" for number in range(500)]
        return await asyncio.gather(*(aclient.compute_linked_pod(uid, "svc") for uid in uids))

    def attempt() -> None:
        sent.clear()
        assert len(asyncio.run(burst())) == 500
        assert sent == [500]

    in_peace(attempt)


def test_where_all_is_new_nobody_reads_in_vain_for_long(
    client: Any, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(session)
    reads: list[int] = []
    read_here = session.namespace.reads.read_here

    def noted(part: Any) -> Any:
        reads.append(1)
        return read_here(part)

    monkeypatch.setattr(session.namespace.reads, "read_here", noted)
    for _ in range(112):
        client.compute_linked_pod(unique_name(), "svc")
    assert 32 <= len(reads) <= 40


def test_a_link_that_has_moved_is_never_found_where_it_was(client: Any, session: Session) -> None:
    uid = unique_name()
    link = client.compute_linked_pod(uid, "svc")
    for _ in range(20):
        moved = client.move(uid, "svc", (link.pod + 1) % 3)
        forget(session)
        link = client.compute_linked_pod(uid, "svc")
        assert link == moved


def test_one_look_is_enough_to_lengthen_a_life(client: Any, session: Session) -> None:
    uid = unique_name()
    link = client.compute_linked_pod(uid, "svc")
    store, keys = Store(session.namespace.url), session.namespace.keys
    left = plain_call("PTTL", keys.link(keys.shard(uid), "svc", uid))
    eventually(lambda: store.one(left) < 800 * TTL_S, "a part of its life has passed")
    forget(session)
    by_redis = answered(client, "redis")
    assert client.compute_linked_pod(uid, "svc") == link
    assert answered(client, "redis") == by_redis + 1
    eventually(lambda: store.one(left) > 850 * TTL_S, "it was reported as used", TTL_S)
    store.close()


@pytest.mark.slow
def test_links_in_use_are_read_again_before_their_leases_end(client: Any, session: Session) -> None:
    """For five leases nobody meets a miss who looks them up and never calls; others are let go."""
    used = [f"{unique_name()}-{number}" for number in range(100)]
    unused = [f"{unique_name()}-{number}" for number in range(10)]
    links = client.compute_linked_pods([*used, *unused], "svc")
    five_s = 5 * session.namespace.config.lease_s
    until = now() + five_s

    def steady() -> bool:
        # Where nothing is read again, each lease has its misses. Where something is, a miss takes a
        # machine that stalls: of so short a lease few tenths of a second are left for a use report,
        # the router and the next read. Then five leases are begun anew.
        nonlocal until
        met = {uid: client.get_linked_in_cache(uid, "svc") for uid in used}
        assert all(link in {None, links[uid]} for uid, link in met.items())
        if None in met.values():
            links.update(client.compute_linked_pods(used, "svc"))
            until = now() + five_s
        return now() > until

    eventually(steady, "five leases have passed without a miss", 200)
    assert not any(client.get_linked_in_cache(uid, "svc") for uid in unused)


def found_one(session: Session) -> tuple[str, Found]:
    uid = unique_name()
    lease_s = session.namespace.config.lease_s
    record = next(iter(session.table.pods("svc").values()))
    link = ray_route.Link(record.pod, record.incarnation, 1, persistent=False, lease_s=lease_s)
    return uid, Found({uid: link}, {}, {}, set(), 1)


def test_what_was_read_is_kept_for_as_long_as_it_was_true_when_it_was_asked_for(
    session: Session,
) -> None:
    uid, found = found_one(session)

    def kept() -> Any:
        """Keep it again: nothing is kept that was asked for before the cache was emptied last."""
        session.keep_found("svc", found, now() - 1)
        return session.near.get("svc", uid)

    link = eventually(kept, "what was read is kept")
    assert link.lease_s <= session.namespace.config.lease_s - 1
    asked_at = now()
    session.near.drop("svc", uid)
    session.keep_found("svc", found, asked_at)
    assert session.near.get("svc", uid) is None


def test_nothing_is_read_while_the_stream_is_not_heard(session: Session) -> None:
    def refused() -> bool:  # again, if a beat has just come
        session.near.trusted_until = now()
        return not session.may_read()

    eventually(refused, "it reads nothing")
    eventually(session.may_read, "it is heard again", 60)


@pytest.mark.parametrize("how", ["ahead", "many"])
def test_what_was_read_is_not_kept_if_the_stream_has_not_been_heard_meanwhile(
    client: Any, session: Session, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    uids = [f"{unique_name()}-{number}" for number in range(20)]
    links = client.compute_linked_pods(uids, "svc")
    forget(session)
    read, heard = session.namespace.reads.read, session.may_read

    def read_and_hear_no_more(parts: Any) -> Any:
        readings = read(parts)
        monkeypatch.setattr(session, "may_read", lambda: False)
        return readings

    monkeypatch.setattr(session.namespace.reads, "read", read_and_hear_no_more)
    by_redis = answered(client, "redis")
    if how == "ahead":
        session._read_again("svc", uids)
        assert not any(session.near.get("svc", uid) for uid in uids)
    else:
        assert client.compute_linked_pods(uids, "svc") == links
    assert answered(client, "redis") == by_redis
    monkeypatch.setattr(session, "may_read", heard)


def test_a_uid_that_is_to_end_ends_though_it_is_looked_up(client: Any, session: Session) -> None:
    uid = unique_name()
    link = client.compute_linked_pod(uid, "svc")
    how = {"after_s": 1.0, "timeout_s": 10.0}
    assert ray.get(session.namespace.router.remove_link.remote("svc", uid, None, **how))
    end = now() + 1.0 + 2 * TTL_S

    def ended() -> bool:
        assert now() < end, "it outlived its removal"
        return client.compute_linked_pod(uid, "svc").epoch != link.epoch

    eventually(ended, "the link has ended and another was made")


def test_who_was_refused_asks_the_router(client: Any, session: Session) -> None:
    uid = unique_name()
    client.compute_linked_pod(uid, "svc")
    forget(session)
    by_router, by_redis = answered(client, "router"), answered(client, "redis")
    run(operations.compute(session, uid, "svc", 1), Deadline.after(60))
    assert (answered(client, "router"), answered(client, "redis")) == (by_router + 1, by_redis)
