"""Look-ups of many uids, by this process and by tasks; and placement of many."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import ray
from helpers import end_router, router_handle, unique_name
from proxy import TcpProxy

import ray_route
from ray_route.client import batch
from ray_route.errors import InvalidInputError, PartialBatchError, RouteTimeoutError
from ray_route.model import LinkedPods
from ray_route.store.embedded import EmbeddedServer
from ray_route.store.scripts import plain_call

Client = ray_route.RouteClient
LookUp = Callable[..., LinkedPods]


@pytest.fixture(params=["here", "tasks"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have batches read by this process, or by tasks of 100 uids."""
    monkeypatch.setattr(batch, "IN_PROCESS", 0 if request.param == "tasks" else 10**9)
    monkeypatch.setattr(batch, "_UIDS_PER_TASK", 100)
    monkeypatch.setattr(batch, "_UIDS_PER_READ", 100)
    return str(request.param)


@pytest.fixture(params=["sync", "async"])
def look_up(request: pytest.FixtureRequest, client: Client, way: str) -> LookUp:
    if request.param == "sync":
        return client.batch_get_linked_pod

    def look_up_async(*args: Any, **kwargs: Any) -> LinkedPods:
        async def ask() -> LinkedPods:
            other = await ray_route.connect_async(client.namespace)
            try:
                return await other.batch_get_linked_pod(*args, **kwargs)
            finally:
                other.close()

        return asyncio.run(ask())

    return look_up_async


@pytest.fixture
def placed(client: Client, svc: ray_route.Deployment) -> dict[str, int]:
    """Three hundred uids with the pods that they are on."""
    prefix = unique_name()
    uids = [f"{prefix}-{number}" for number in range(300)]
    return {uid: link.pod for uid, link in client.compute_linked_pods(uids, "svc").items()}


def by_pod(uids: list[str], pods: dict[str, int]) -> dict[int, list[str]]:
    grouped: dict[int, list[str]] = {}
    for uid in uids:
        if uid in pods:
            grouped.setdefault(pods[uid], []).append(uid)
    return grouped


@pytest.mark.slow
def test_every_uid_is_under_its_pod_or_missing_in_the_order_given(
    look_up: LookUp, placed: dict[str, int]
):
    missing = [unique_name() for _ in range(50)]
    uids = [*placed, *missing, *list(placed)[:40], missing[0]]
    random.Random(1).shuffle(uids)
    found = look_up(uids, "svc")
    assert dict(found) == by_pod(uids, placed)
    assert found.missing == [uid for uid in uids if uid not in placed]
    assert found.unroutable == frozenset()


def test_no_uids_have_no_pods(look_up: LookUp):
    found = look_up([], "svc")
    assert (dict(found), found.missing) == ({}, [])


def test_uids_of_any_text_are_found(client: Client, look_up: LookUp, svc: ray_route.Deployment):
    end = unique_name()
    strange = ["\0", "\n", "a\0b", "é", "🙂", "\xff", "a:b", "{x}", "$3\r\nabc", "x" * 400]
    uids = [f"{text}{end}" for text in strange]
    links = client.compute_linked_pods(uids, "svc")
    assert dict(look_up(uids, "svc")) == by_pod(uids, {uid: links[uid].pod for uid in uids})


def test_any_iterable_is_taken_and_one_string_is_not(look_up: LookUp, placed: dict[str, int]):
    assert sum(map(len, look_up(iter(placed), "svc").values())) == len(placed)
    with pytest.raises(InvalidInputError, match="uids"):
        look_up("user-1", "svc")


@pytest.mark.parametrize("bad", ["", "x" * 513, "\ud800", 7, None])
def test_a_bad_uid_among_good_ones_is_named(look_up: LookUp, placed: dict[str, int], bad: object):
    with pytest.raises(InvalidInputError) as caught:
        look_up([*placed, bad], "svc")
    assert caught.value.argument == "uid"


@pytest.mark.parametrize(
    "option",
    [
        {"num_cpus": -1},
        {"num_cpus": "1"},
        {"max_in_flight": 0},
        {"max_in_flight": 1.5},
        {"progress": 3},
    ],
)
def test_a_bad_option_is_named(look_up: LookUp, option: dict[str, Any]):
    with pytest.raises(InvalidInputError) as caught:
        look_up(["u"], "svc", **option)
    assert [caught.value.argument] == list(option)


def test_progress_is_told_until_all_is_done(look_up: LookUp, placed: dict[str, int]):
    told: list[tuple[int, int]] = []
    look_up(placed, "svc", progress=lambda done, total: told.append((done, total)))
    assert told == [(100, 300), (200, 300), (300, 300)]


def test_what_progress_raises_ends_the_batch(look_up: LookUp, placed: dict[str, int]):
    def stop(done: int, total: int) -> None:
        raise KeyError(done, total)

    with pytest.raises(KeyError):
        look_up(placed, "svc", progress=stop)
    assert sum(map(len, look_up(placed, "svc").values())) == len(placed)


class Tasks:
    """Stands before the real task, and notes what is asked of Ray."""

    def __init__(self) -> None:
        self.options_seen: list[dict[str, Any]] = []
        self.refs: list[Any] = []
        self.taken = 0
        self.most_under_way = 0
        self._task = batch._read_slice

    def options(self, **options: Any) -> Tasks:
        self.options_seen.append(options)
        self._task = batch_task.options(**options)
        return self

    def remote(self, *args: Any) -> Any:
        self.refs.append(self._task.remote(*args))
        self.most_under_way = max(self.most_under_way, len(self.refs) - self.taken)
        return self.refs[-1]

    def take(self, _done: int, _total: int) -> None:
        self.taken += 1


batch_task = batch._read_slice


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> Tasks:
    noting = Tasks()
    monkeypatch.setattr(batch, "IN_PROCESS", 0)
    monkeypatch.setattr(batch, "_UIDS_PER_TASK", 30)
    monkeypatch.setattr(batch, "_UIDS_PER_READ", 30)
    monkeypatch.setattr(batch, "_read_slice", noting)
    return noting


@pytest.mark.parametrize(("limit", "most"), [(1, 1), (3, 3), (100, 10)])
def test_no_more_tasks_are_under_way_than_allowed(
    client: Client, placed: dict[str, int], tasks: Tasks, limit: int, most: int
):
    options = {"max_in_flight": limit, "num_cpus": 0.25, "progress": tasks.take}
    found = client.batch_get_linked_pod(placed, "svc", **options)
    assert dict(found) == by_pod(list(placed), placed)
    assert len(tasks.refs) == 10
    assert tasks.most_under_way == most
    assert tasks.options_seen == [{"num_cpus": 0.25, "scheduling_strategy": "SPREAD"}]


def test_tasks_that_no_node_can_ever_run_are_cancelled(
    client: Client, placed: dict[str, int], tasks: Tasks
):
    with pytest.raises(RouteTimeoutError):
        client.batch_get_linked_pod(placed, "svc", num_cpus=10_000, timeout=0.3)
    assert tasks.refs
    for ref in tasks.refs:
        with pytest.raises(ray.exceptions.TaskCancelledError):
            ray.get(ref, timeout=10)


def test_tasks_that_are_late_are_not_cancelled_and_end_by_themselves(
    client: Client, placed: dict[str, int], tasks: Tasks, monkeypatch: pytest.MonkeyPatch
):
    """A cancelled task that is just getting its worker ends the calling process."""
    cancelled: list[Any] = []
    monkeypatch.setattr(ray, "cancel", cancelled.append)
    with pytest.raises(RouteTimeoutError):
        client.batch_get_linked_pod(placed, "svc", timeout=0.001)
    assert cancelled == []
    assert ray.wait(tasks.refs, num_returns=len(tasks.refs), timeout=20)[1] == []


@dataclass
class Apart:
    """A namespace on a server of its own, and 300 uids with links to a pod that nobody knows."""

    client: Client
    server: EmbeddedServer
    proxy: TcpProxy
    uids: list[str]


@contextlib.contextmanager
def set_apart() -> Iterator[Apart]:
    with EmbeddedServer() as server, TcpProxy(server.port) as proxy:
        url = server.url.replace(f":{server.port}/", f":{proxy.port}/")
        with ray_route.connect(unique_name(), url, shards=8) as client:
            store, keys = client._session.namespace.store, client._session.namespace.keys
            uids = [f"user-{number}" for number in range(300)]
            links = [keys.link(keys.shard(uid), "svc", uid) for uid in uids]
            store.run([plain_call("SET", key, "1:7:100") for key in links])
            yield Apart(client, server, proxy, uids)
            end_router(client.namespace)


@pytest.fixture(scope="module")
def apart_for_module(ray_session: None) -> Iterator[Apart]:
    with set_apart() as made:
        yield made


@pytest.fixture
def apart(apart_for_module: Apart, way: str) -> Iterator[Apart]:
    """One that its tests share: whoever troubles it waits until it is whole again."""
    made = apart_for_module
    assert made.client.batch_get_linked_pod(made.uids, "svc") == {1: made.uids}
    yield made
    made.proxy.heal()


@pytest.fixture
def doomed(ray_session: None, way: str) -> Iterator[Apart]:
    """One of the test's own, whose server may end."""
    with set_apart() as made:
        assert made.client.batch_get_linked_pod(made.uids, "svc") == {1: made.uids}
        yield made


@pytest.mark.slow
def test_a_lost_shard_is_waited_for_and_the_others_are_answered(apart: Apart):
    session, lost = apart.client._session, 3
    session.namespace.saw(lost, session.namespace.seen(lost) + 1_000_000_000)
    pid, _ = ray.get(router_handle(apart.client.namespace).whereabouts.remote())
    os.kill(pid, signal.SIGSTOP)  # so that nobody can replay it
    try:
        with pytest.raises(RouteTimeoutError) as caught:
            apart.client.batch_get_linked_pod(apart.uids, "svc", timeout=3)
    finally:
        os.kill(pid, signal.SIGCONT)
    error = caught.value
    of_shard = [uid for uid in apart.uids if session.namespace.keys.shard(uid) == lost]
    assert error.unanswered == of_shard
    assert error.partial == {1: [uid for uid in apart.uids if uid not in of_shard]}
    assert error.partial.missing == []
    assert error.partial.unroutable == {1}, "nobody knows pod 1"
    assert apart.client.batch_get_linked_pod(apart.uids, "svc") == {1: apart.uids}


def test_a_server_that_is_gone_is_an_error_for_every_uid_and_no_miss(doomed: Apart):
    doomed.server.stop()
    with pytest.raises(PartialBatchError) as caught:
        doomed.client.batch_get_linked_pod(doomed.uids, "svc", timeout=20)
    assert caught.value.unanswered == doomed.uids
    assert caught.value.partial.missing == []
    assert sorted(caught.value.shards) == list(range(8))


def test_a_server_that_does_not_answer_is_given_up_at_the_deadline(apart: Apart):
    apart.proxy.stall()
    begun = time.monotonic()
    with pytest.raises((RouteTimeoutError, PartialBatchError)) as caught:
        apart.client.batch_get_linked_pod(apart.uids, "svc", timeout=1)
    assert time.monotonic() - begun < 20
    assert caught.value.unanswered == apart.uids
    assert caught.value.partial.missing == []
    apart.proxy.heal()
    assert apart.client.batch_get_linked_pod(apart.uids, "svc") == {1: apart.uids}


def test_tasks_that_get_no_cpu_are_given_up_at_the_deadline(
    client: Client, placed: dict[str, int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(batch, "IN_PROCESS", 0)
    begun = time.monotonic()
    with pytest.raises(RouteTimeoutError) as caught:
        client.batch_get_linked_pod(placed, "svc", num_cpus=10_000, timeout=0.5)
    assert time.monotonic() - begun < 20
    assert caught.value.unanswered == list(placed)
    assert dict(caught.value.partial) == {}


def test_many_uids_are_placed_in_calls_of_some_and_answered_one_by_one(
    client: Client, svc: ray_route.Deployment
):
    prefix = unique_name()
    uids = [f"{prefix}-{number}" for number in range(2_500)]
    answers = client.compute_linked_pods([*uids, *uids[:10]], "svc")
    assert list(answers) == uids
    assert all(isinstance(answer, ray_route.Link) for answer in answers.values())
    found = client.batch_get_linked_pod(uids, "svc")
    assert dict(found) == by_pod(uids, {uid: link.pod for uid, link in answers.items()})
    loads = [len(some) for some in found.values()]
    assert max(loads) - min(loads) < 500, "the crowd is spread"
