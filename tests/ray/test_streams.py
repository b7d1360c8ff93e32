"""Calls that answer item by item: whole or an error, never ahead of their readers for long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import eventually
from talkers import AsyncTalker, SlowToAcquire, Talker

import ray_route
from ray_route import (
    FencedError,
    InvalidInputError,
    NestedCallError,
    PodUnavailableError,
    ResponseStream,
    RouteTimeoutError,
)
from ray_route.client import streamed_call


@pytest.fixture(params=[Talker, AsyncTalker])
def rooms(
    client: ray_route.RouteClient, talkers: dict[type, str], request: pytest.FixtureRequest
) -> Any:
    return client.service(talkers[request.param], request.param)


@pytest.fixture
def u(namespace: str) -> str:
    return namespace


def in_turn(stream: Any) -> list[Any]:
    return list(stream)


def awaited(stream: Any) -> list[Any]:
    async def run() -> list[Any]:
        return [item async for item in stream]

    return asyncio.run(run())


ways = pytest.mark.parametrize("read", [in_turn, awaited])
Read = Callable[[Any], list[Any]]


@ways
def test_items_come_one_by_one_to_the_end(rooms: Any, u: str, read: Read) -> None:
    assert read(rooms[u].count.remote(100)) == list(range(100))  # a miss goes first
    assert read(rooms[u].count.remote(0)) == []
    said = rooms[u].say.remote(u, "hi")
    assert read(rooms[u].options(stream=True).counting.remote(3)) == [0, 1, 2]
    assert said.result() == ["hi"]


def test_a_method_streams_if_its_class_or_its_caller_says_so(
    client: Any, rooms: Any, u: str
) -> None:
    unknown = client.service(rooms._connection.service)
    with pytest.raises(InvalidInputError, match=r"is a generator.*options\(stream=True\)"):
        unknown[u].count.remote(3).result()
    assert list(unknown[u].options(stream=True).count.remote(3)) == [0, 1, 2]
    with pytest.raises(InvalidInputError, match=r"say.*no generator"):
        list(rooms[u].options(stream=True).say.remote(u, "hi"))
    with pytest.raises(InvalidInputError, match="is no method"):
        list(unknown[u].options(stream=True).sey.remote())


def test_a_response_is_an_argument_of_a_stream(rooms: Any, u: str) -> None:
    number = rooms[u].echo.remote()
    with pytest.raises(TypeError):
        list(rooms[u].count.remote(number))  # a tuple
    length = rooms[u + "2"].options(stream=True).counting
    assert list(length.remote(rooms[u].three.remote())) == [0, 1, 2]


def test_a_stream_follows_its_uid_until_it_has_begun(
    client: Any, rooms: Any, u: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = rooms._connection.service
    old = client.compute_linked_pod(u, service)
    client.move(u, service, 1 - old.pod)
    near = client._session.near
    real = near.get

    def get(asked: str, uid: str, min_epoch: int = 0) -> Any:
        return old if (uid, min_epoch) == (u, 0) else real(asked, uid, min_epoch)

    monkeypatch.setattr(near, "get", get)
    assert list(rooms[u].count.remote(3)) == [0, 1, 2]


@ways
def test_what_the_users_code_raises_ends_the_stream(rooms: Any, u: str, read: Read) -> None:
    stream = rooms[u].break_off.remote(3, "my fault")
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="my fault") as caught:
        read(stream)
    assert "_ray_route" not in str(caught.value)
    first_frame = str(caught.value).splitlines()[1]
    assert first_frame.startswith("  File"), "the user's own"
    assert "talkers.py" in first_frame
    assert read(rooms[u].count.remote(2)) == [0, 1]


@ways
def test_a_refusal_that_the_users_code_raises_is_the_users(rooms: Any, u: str, read: Read) -> None:
    again = rooms[u].options(idempotent=True)
    for raises in (lambda: read(again.refuse_after.remote(2)), again.refuse.remote().result):
        with pytest.raises(NestedCallError, match="the user says so") as caught:
            raises()
        assert isinstance(caught.value.error, FencedError)
        assert caught.value.uid == u


@pytest.mark.slow
@ways
def test_the_death_of_a_pod_is_an_error_and_no_end(
    client: Any, deploy: Any, u: str, read: Read
) -> None:
    for cls in (Talker, AsyncTalker):
        rooms = client.service(deploy(cls, replicas=2).service, cls)
        with pytest.raises(PodUnavailableError) as caught:
            read(rooms[u].break_off.remote(3, "exit"))
        assert caught.value.may_have_run is True
        assert read(rooms[u].count.remote(2)) == [0, 1]


@pytest.mark.slow
@ways
def test_a_stream_whose_pod_may_serve_no_more_is_an_error_and_no_end(
    rooms: Any, u: str, read: Read
) -> None:
    stream = rooms[u].lapse_after.remote(3)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(FencedError, match="lapsed") as caught:
        read(stream)
    assert caught.value.may_have_run is True
    assert read(rooms[u].count.remote(2)) == [0, 1], "the pod serves again"


@pytest.mark.slow
def test_what_is_due_before_its_uid_is_acquired_does_not_begin(
    client: Any, deploy: Any, tmp_path: Path
) -> None:
    uid = str(tmp_path / "go")
    rooms = client.service(deploy(SlowToAcquire, replicas=1).service, SlowToAcquire)
    with pytest.raises(NestedCallError, match=r"on_acquire.*the user says so"):  # and not followed
        rooms["refused"].say.remote("hi").result()
    hasty = rooms[uid].options(timeout_s=1.0)
    stream = hasty.count.remote(3)  # kept: one that is dropped is cancelled
    with pytest.raises(RouteTimeoutError):
        next(stream)
    with pytest.raises(RouteTimeoutError):
        hasty.say.remote("late").result()
    (tmp_path / "go").touch()
    assert rooms[uid].say.remote("in time").result() == ["in time"]
    # Unless the pod had told that it gave up, which ended the stream, before its caller did.
    with pytest.raises((RouteTimeoutError, StopIteration)) as caught:
        next(stream)
    assert not getattr(caught.value, "may_have_run", False)


def left_early(stream: ResponseStream[int]) -> None:
    for item in stream:
        if item == 3:
            break
    del stream


def left_early_by_a_task(stream: ResponseStream[int]) -> None:
    async def run() -> None:
        async for item in stream:
            if item == 3:
                break

    asyncio.run(run())


def closed(stream: ResponseStream[int]) -> None:
    assert next(stream) == 0
    stream.close()
    assert list(stream) == []


def left_by_with(stream: ResponseStream[int]) -> None:
    with stream as entered:
        assert next(entered) == 0


@pytest.mark.parametrize("leave", [left_early, left_early_by_a_task, closed, left_by_with])
def test_a_stream_that_is_left_is_closed_at_its_pod(
    rooms: Any, u: str, tmp_path: Path, leave: Callable[[Any], None]
) -> None:
    leave(rooms[u].drip.remote(str(tmp_path), 10_000))
    eventually((tmp_path / "closed").exists, "its generator was closed")
    # Once nobody reads, Ray holds it back no more, until it hears of that.
    assert int((tmp_path / "at").read_text()) < 5_000, "long before its end"


def test_a_stream_that_nobody_reads_does_not_run_ahead_and_is_closed(
    rooms: Any, u: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed_call, "IDLE_S", 1.0)
    stream = rooms[u].drip.remote(str(tmp_path), 10_000)
    assert next(stream) == 0
    eventually((tmp_path / "closed").exists, "its generator was closed")
    assert int((tmp_path / "at").read_text()) < 4 * streamed_call.AHEAD
    with pytest.raises(RouteTimeoutError, match="to be taken") as caught:
        next(stream)
    assert caught.value.may_have_run is True


def test_a_stream_counts_as_running(client: Any, rooms: Any, u: str, tmp_path: Path) -> None:
    service = rooms._connection.service
    stream = rooms[u].drip.remote(str(tmp_path), 10_000)
    assert next(stream) == 0
    owner = client.compute_linked_pod(u, service)
    with pytest.raises(PodUnavailableError, match="did not end in time"):
        client.move(u, service, 1 - owner.pod, timeout=2)
    assert [next(stream) for _ in range(3)] == [1, 2, 3]
    stream.close()
    assert client.move(u, service, 1 - owner.pod).pod == 1 - owner.pod


@pytest.mark.slow
def test_a_drain_waits_for_a_stream_within_its_deadline(
    client: Any, deploy: Any, u: str, tmp_path: Path
) -> None:
    service = deploy(AsyncTalker, replicas=2).service
    rooms = client.service(service, AsyncTalker)
    stream = rooms[u].drip.remote(str(tmp_path), 10_000)
    assert next(stream) == 0
    owner = client.compute_linked_pod(u, service).pod
    *_, last = client.drain(service, owner, deadline_s=2)
    assert last.problem, "the stream outlasts it"
    assert next(stream) == 1, "the pod serves what it has left"
    drain = client.drain(service, owner, deadline_s=60)
    assert not next(drain).done, "it waits for the stream"
    assert next(stream) == 2
    stream.close()
    *_, last = drain
    assert not last.problem
    assert client.compute_linked_pod(u, service).pod == 1 - owner
    assert list(rooms[u].count.remote(3)) == [0, 1, 2]
