from __future__ import annotations

import asyncio
from collections import Counter as Tally
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import ray
from helpers import end_router, eventually
from services import AsyncCounter, Counter

import ray_route
from ray_route import Link

UIDS = [f"user-{number}" for number in range(100)]


def test_a_uid_is_placed_once_and_found_by_every_way(client: Any, u: str) -> None:
    link = client.compute_linked_pod(u, "svc")

    assert client.compute_linked_pod(u, "svc") == link
    assert client.get_linked_pod(u, "svc") == link
    assert client.get_linked_in_cache(u, "svc") == link
    assert client.get_linked_pod_not_cache(u, "svc") == link
    assert client.get_link_service(u) == {"svc": link}
    assert client.compute_linked_pods([u], "svc") == {u: link}
    assert client.batch_get_linked_pod([u], "svc") == {link.pod: [u]}


def test_a_hit_checks_what_it_was_given(client: Any, u: str) -> None:
    link = client.compute_linked_pod(u, "svc")
    for look_up in (
        client.compute_linked_pod,
        client.get_linked_pod,
        client.get_linked_pod_in_cache_or_if_persist,
    ):
        assert look_up(u, "svc", timeout=60) == link
        for timeout in (0, -1, "1", True):
            with pytest.raises(ray_route.InvalidInputError, match="timeout"):
                look_up(u, "svc", timeout=timeout)
        for uid in ([u], 7, ""):
            with pytest.raises(ray_route.InvalidInputError, match="uid"):
                look_up(uid, "svc")


def test_a_near_hit_asks_nobody(client: Any, u: str, monkeypatch: pytest.MonkeyPatch) -> None:
    link = client.compute_linked_pod(u, "svc")
    session = client._session
    for way in ("computing", "finding"):
        monkeypatch.setattr(session, way, None)
    for way in ("store", "_router"):
        monkeypatch.setattr(session.namespace, way, None)
    later = client.compute_linked_pod(u, "svc")
    assert client.get_linked_pod(u, "svc") == later == link
    assert later.lease_s < link.lease_s


def test_a_uid_without_a_link_is_none_and_stays_so(client: Any, u: str) -> None:

    assert client.get_linked_pod("nobody", "svc") is None
    assert client.get_linked_pod_not_cache("nobody", "svc") is None
    assert client.get_linked_in_cache("nobody", "svc") is None
    assert client.get_linked_pod_in_cache_or_if_persist("nobody", "svc") is None
    assert client.get_link_service("nobody") == {}
    assert client.batch_get_linked_pod(["nobody"], "svc").missing == ["nobody"]


def test_the_async_client_answers_the_same(client: Any, u: str) -> None:
    link = client.compute_linked_pod(u, "svc")

    async def ask() -> None:
        async with await ray_route.connect_async(client.namespace) as aclient:
            assert await aclient.compute_linked_pod(u, "svc") == link
            assert await aclient.get_linked_pod(u, "svc") == link
            assert await aclient.get_linked_pod_not_cache(u, "svc") == link
            assert aclient.get_linked_in_cache(u, "svc") == link
            assert await aclient.get_link_service(u) == {"svc": link}
            assert await aclient.compute_linked_pods([u], "svc") == {u: link}
            assert await aclient.batch_get_linked_pod([u], "svc") == {link.pod: [u]}
            assert await aclient.call(u, "svc", "add", u) == 1
            assert await aclient.call_many([(u, (u,))], "svc", "add") == [2]
            assert await aclient.cache_expired(u, "svc") == link
            assert await aclient.get_linked_pod("nobody", "svc") is None
            assert set(await aclient.pods("svc")) == {0, 1, 2}
            assert (await aclient.explain(u, "svc")).link == link
            assert await aclient.actor(u, "svc") == client.actor(u, "svc")
            assert await aclient.set_linked_pod_if_absent(f"{u}-v", "svc", 0) == (
                await aclient.get_linked_pod(f"{u}-v", "svc")
            )

    asyncio.run(ask())


def test_pod_0_is_a_pod_like_any_other(client: Any, deploy: Any, u: str) -> None:
    one = deploy(replicas=1).service
    link = client.compute_linked_pod(u, one)

    assert link.pod == 0
    assert client.get_linked_pod(u, one).pod == 0
    assert client.get_linked_in_cache(u, one).pod == 0
    assert client.get_linked_pod_not_cache(u, one).pod == 0
    assert client.set_linked_pod_if_absent("v", one, 0).pod == 0
    assert client.batch_get_linked_pod([u, "v"], one) == {0: [u, "v"]}
    assert client.call(u, one, "where")[0] == 0


def test_set_if_absent_returns_the_winners_link(client: Any, u: str) -> None:
    first = client.set_linked_pod_if_absent(u, "svc", 2)
    second = client.set_linked_pod_if_absent(u, "svc", 1)

    assert first.pod == 2
    assert second == first
    assert not first.persistent


def test_a_persistent_link_is_found_without_a_cache(client: Any, u: str) -> None:
    link = client.set_linked_pod_if_absent(u, "svc", 2, persistent=True)
    client.set_linked_pod_if_absent(f"{u}-t", "svc", 1)
    client.cache_expired(u, "svc")
    client.cache_expired(f"{u}-t", "svc")

    assert link.persistent
    assert client.get_linked_pod_in_cache_or_if_persist(u, "svc") == link
    assert client.get_linked_in_cache(u, "svc") == link
    assert client.get_linked_pod_in_cache_or_if_persist(f"{u}-t", "svc") is None


def test_cache_expired_empties_both_caches_and_nothing_else(client: Any, u: str) -> None:
    link = client.compute_linked_pod(u, "svc")

    assert client.cache_expired(u, "svc") == link
    assert client.get_linked_in_cache(u, "svc") is None
    assert client.cache_expired(u, "svc") is None
    assert client.get_linked_pod(u, "svc") == link


def test_set_cache_believes_the_directory_and_not_its_caller(client: Any, u: str) -> None:
    link = client.compute_linked_pod(u, "svc")
    client.cache_expired(u, "svc")
    forged = Link(link.pod, link.incarnation, link.epoch + 1, persistent=True, lease_s=1e6)

    assert client.set_cache(u, "svc", forged) is None
    assert client.get_linked_in_cache(u, "svc") is None
    longer = Link(link.pod, link.incarnation, link.epoch, link.persistent, lease_s=1e6)
    client.set_cache(u, "svc", longer)
    cached = client.get_linked_in_cache(u, "svc")
    assert cached == link
    assert cached.lease_s <= 240
    assert client.set_cache(u, "svc", link) == link


def test_a_uid_in_two_services_has_two_links(client: Any, deploy: Any) -> None:
    deploy(service="a-b", replicas=1)
    deploy(service="a", replicas=1)
    one = client.compute_linked_pod("c", "a-b")
    other = client.compute_linked_pod("b-c", "a")

    assert client.get_linked_in_cache("b-c", "a") == other
    assert client.get_linked_in_cache("c", "a") is None
    assert client.get_link_service("c") == {"a-b": one}
    client.compute_linked_pod("c", "a")
    assert set(client.get_link_service("c")) == {"a-b", "a"}


def test_many_uids_get_one_outcome_each_and_spread_evenly(client: Any, deploy: Any) -> None:
    service = deploy(replicas=4).service
    links = client.compute_linked_pods(UIDS, service)

    assert list(links) == UIDS
    assert sorted(Tally(link.pod for link in links.values()).values()) == [25, 25, 25, 25]
    assert client.compute_linked_pods(iter(UIDS), service) == links


@pytest.mark.parametrize("size", [300, 12_000], ids=["in process", "by tasks"])
def test_a_batch_keeps_input_order_duplicates_and_misses(client: Any, u: str, size: int) -> None:
    links = client.compute_linked_pods(UIDS, "svc")
    asked = [*UIDS[::-1], "nobody", UIDS[0]] * (size // 100)

    answer = client.batch_get_linked_pod(asked, "svc")

    for pod, uids in answer.items():
        assert uids == [uid for uid in asked if uid != "nobody" and links[uid].pod == pod]
    assert answer.missing == ["nobody"] * (size // 100)
    assert answer.unroutable == frozenset()


def test_calls_reach_the_pod_that_holds_the_uid(client: Any, u: str) -> None:
    for expected in (1, 2, 3):
        assert client.call(u, "svc", "add", u) == expected
    link = client.compute_linked_pod(u, "svc")
    assert client.call(u, "svc", "where") == (link.pod, link.epoch)
    assert client.call(u, "svc", "add", u, amount=10) == 13


def test_the_plain_handle_is_that_pods_actor(client: Any, u: str) -> None:
    handle = client.actor(u, "svc")
    assert ray.get(handle.pid.remote()) == client.call(u, "svc", "pid")


def test_errors_of_the_users_code_are_its_own(client: Any, u: str) -> None:
    with pytest.raises(KeyError, match="my fault"):
        client.call(u, "svc", "fail", "my fault")


def test_many_calls_have_one_outcome_each_in_order(client: Any, u: str) -> None:
    uids = [f"{u}-{number}" for number in range(100)]
    calls = [(uid, (uid, 2)) for uid in uids for _ in range(3)]
    assert client.call_many(calls, "svc", "add") == [2, 4, 6] * 100
    outcomes = client.call_many([("a", ("x",)), ("b", ("y",))], "svc", "fail")
    assert all(isinstance(outcome, KeyError) for outcome in outcomes)


def test_threads_share_one_answer(client: Any, u: str) -> None:
    with ThreadPoolExecutor(20) as pool:
        links = list(pool.map(lambda _: client.compute_linked_pod(u, "svc"), range(200)))
    assert len(set(links)) == 1


@pytest.mark.parametrize("cls", [Counter, AsyncCounter])
def test_on_acquire_runs_once_per_uid_before_its_first_call(
    client: Any, deploy: Any, cls: type
) -> None:
    one = deploy(cls, replicas=1).service
    with ThreadPoolExecutor(8) as pool:
        futures = [
            pool.submit(client.call, f"u{n % 4}", one, "add", f"u{n % 4}") for n in range(40)
        ]
        results = [future.result() for future in futures]

    assert sorted(results) == sorted(list(range(1, 11)) * 4)
    assert sorted(client.call("u0", one, "acquisitions")) == ["u0", "u1", "u2", "u3"]


def test_async_pods_run_the_calls_of_a_batch_at_once(client: Any, deploy: Any) -> None:
    one = deploy(AsyncCounter, replicas=1).service
    calls = [("u", (3,)) for _ in range(3)]
    assert client.call_many(calls, one, "meet") == [3, 3, 3]


def test_explain_says_where_and_why(client: Any, u: str) -> None:
    link = client.compute_linked_pod(u, "svc")
    explanation = client.explain(u, "svc")

    assert explanation.link == link
    assert explanation.pod.incarnation == link.incarnation
    assert 0 <= explanation.age_s < 60
    assert f"placed: pod {link.pod}" in str(explanation)
    assert "has no link" in str(client.explain("nobody", "svc"))


def test_pods_show_state_load_and_links(client: Any, u: str) -> None:
    before = sum(pod.links for pod in client.pods("svc").values())
    client.compute_linked_pods([f"{u}-{number}" for number in range(100)], "svc")
    pods = client.pods("svc")

    assert set(pods) == {0, 1, 2}
    assert sum(pod.links for pod in pods.values()) == before + 100
    assert all(pod.state is ray_route.RoutingState.READY for pod in pods.values())
    assert all(pod.heartbeat_age_s < 30 for pod in pods.values())
    assert all(pod.actor.endswith(f":svc:{index}") for index, pod in pods.items())


@pytest.mark.slow
def test_a_cached_link_ends_with_its_lease(ray_session: None, namespace: str) -> None:
    """Watched from outside the cache: whoever asks it for a link has that link in use."""
    with ray_route.connect(namespace, ttl_s=4.0, margin_s=2.0) as client:
        options = {"namespace": namespace, "service": "svc", "replicas": 1}
        with ray_route.deploy(Counter, **options):
            near = client._session.near
            link = client.compute_linked_pod("u", "svc")
            assert 0 < link.lease_s <= 2.0
            assert list(near.links())
            eventually(lambda: not list(near.links()), "the lease ends")
            assert client.get_linked_in_cache("u", "svc") is None
            assert client.get_linked_pod_not_cache("u", "svc") == link
            eventually(lambda: client.get_linked_pod_not_cache("u", "svc") is None, "the link ends")
    end_router(namespace)
