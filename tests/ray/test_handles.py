"""Calls by handles: responses, their order, passing on, cancelling, and what happens unattended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import ray
from helpers import eventually
from ray._private.internal_api import node_stats
from talkers import AsyncTalker, Talker

import ray_route
from ray_route import (
    CallCancelledError,
    InvalidInputError,
    PodUnavailableError,
    RouteTimeoutError,
    UnknownMethodError,
)
from ray_route.client.dispatcher import Dispatcher


@pytest.fixture(params=[Talker, AsyncTalker])
def rooms(
    client: ray_route.RouteClient, talkers: dict[type, str], request: pytest.FixtureRequest
) -> Any:
    return client.service(talkers[request.param], request.param)


@pytest.fixture
def async_rooms(client: ray_route.RouteClient, talkers: dict[type, str]) -> Any:
    return client.service(talkers[AsyncTalker], AsyncTalker)


@pytest.fixture
def u(namespace: str) -> str:
    return namespace


@contextlib.contextmanager
def out_of_date(client: Any, service: str, uid: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Move a uid, and have this process believe for a while that it had not been moved."""
    old = client.compute_linked_pod(uid, service)
    client.move(uid, service, 1 - old.pod)
    near = client._session.near
    real = near.get

    def get(asked: str, one: str, min_epoch: int = 0) -> Any:
        return old if (asked, one, min_epoch) == (service, uid, 0) else real(asked, one, min_epoch)

    with monkeypatch.context() as patch:
        patch.setattr(near, "get", get)
        yield


def elsewhere(client: Any, service: str, uid: str) -> str:
    """Return a uid of another pod: one thread can't wait for itself."""
    owner = client.compute_linked_pod(uid, service).pod
    others = (f"{uid}-{number}" for number in range(100))
    return next(one for one in others if client.compute_linked_pod(one, service).pod != owner)


def dispatcher(client: Any) -> Any:
    return client._session.dispatcher


# Responses.


@pytest.mark.slow
def test_a_response_is_taken_by_result_or_awaited_and_again(rooms: Any, u: str) -> None:
    response = rooms[u].say.remote(u, "hi", loudly=True)
    assert response.result() == ["hi!"]
    assert response.result(timeout_s=5) == ["hi!"]
    assert response.done()

    async def awaited() -> Any:
        return await response, await rooms[u].echo.remote(1, timeout=2, idempotent=3, uid=4)

    assert asyncio.run(awaited()) == (
        ["hi!"],
        ((1,), {"timeout": 2, "idempotent": 3, "uid": 4}),
    )


def test_arguments_arrive_as_they_are(rooms: Any, u: str) -> None:
    there = ray.put("there")
    args = ((1, 2), {"k": (3,), 4: {5}}, [6], b"x", None, 2**70, slice(1), [there])
    assert rooms[u].echo.remote(*args).result() == (args, {})
    assert rooms[u].echo.remote(*args, key=(7,)).result() == (args, {"key": (7,)})
    assert rooms[u].echo.remote(there, *args).result() == (("there", *args), {})
    assert rooms[u].echo.remote().result() == ((), {})


def test_what_the_users_code_raises_keeps_its_type(rooms: Any, u: str) -> None:
    with pytest.raises(KeyError, match="my fault"):
        rooms[u].fail.remote("my fault").result()
    with pytest.raises(ray_route.UnpicklableError):
        rooms[u].lock.remote().result()


def test_an_error_of_ours_that_the_users_code_met_is_an_outcome(rooms: Any, u: str) -> None:
    response = rooms[u].fail_of_ours.remote()
    for _ in range(2):
        with pytest.raises(ray_route.NestedCallError, match="another") as caught:
            response.result()
        assert isinstance(caught.value.error, RouteTimeoutError)
        assert (caught.value.uid, caught.value.may_have_run) == (u, True)
        assert response._call.certain


def test_unknown_methods_are_errors_at_once_that_name_the_known(rooms: Any, u: str) -> None:
    with pytest.raises(UnknownMethodError, match=r"'sey' is no method of .*Talker.*say"):
        _ = rooms[u].sey
    assert not hasattr(rooms[u], "sey")
    with pytest.raises(AttributeError, match=r"called for a uid, \[uid\].say.remote"):
        rooms.say.remote("hello")
    assert {"say", "echo", "options"} <= set(dir(rooms[u]))
    with pytest.raises(TypeError, match="remote"):
        rooms[u].say("hello")
    with pytest.raises(InvalidInputError):
        rooms[""]
    with pytest.raises(InvalidInputError, match="must be a dict"):
        rooms.map("say", [u])


def test_a_method_has_options_too(rooms: Any, u: str) -> None:
    late = rooms[u].say.options(timeout_s=1e-9, idempotent=True).remote(u, "late")
    with pytest.raises(RouteTimeoutError):
        late.result()
    assert list(rooms[u].count.options(stream=True).remote(3)) == [0, 1, 2]
    with pytest.raises(TypeError, match=r"options\(stream=True\)"):
        list(rooms[u].count.options(stream=False).remote(3))


def test_a_result_that_is_late_can_still_be_had(async_rooms: Any, u: str, tmp_path: Path) -> None:
    response = async_rooms[u].wait_for.remote(str(tmp_path / "go"))
    with pytest.raises(RouteTimeoutError, match="wait_for on the pod"):
        response.result(timeout_s=0.1)
    with pytest.raises(RouteTimeoutError):
        response.result(timeout_s=0)
    assert not response.done()
    (tmp_path / "go").touch()
    assert response.result() == str(tmp_path / "go")


def test_many_at_once_by_one_call_for_each_pod(rooms: Any, u: str) -> None:
    uids = [f"{u}-{number}" for number in range(50)]
    expected = {uid: [uid] for uid in uids}
    assert rooms.map("say", {uid: (uid, uid) for uid in uids}) == expected
    again = asyncio.run(rooms.map_async("fail", {u: ("my fault",)}))
    assert isinstance(again[u], KeyError)


# Order.


def test_calls_of_a_uid_start_in_the_order_made(rooms: Any, u: str) -> None:
    responses = [rooms[u].say.remote(u, number) for number in range(200)]  # a miss goes first
    assert responses[-1].result() == list(range(200))
    assert [len(response.result()) for response in responses] == list(range(1, 201))


def test_an_argument_that_is_awaited_is_not_overtaken(rooms: Any, u: str, tmp_path: Path) -> None:
    @ray.remote(num_cpus=0)
    def slow(path: str) -> str:
        eventually(Path(path).exists, "let go on", within_s=60)
        return "slow"

    rooms[u].say.remote(u, "first").result()
    rooms[u].say.remote(u, slow.remote(str(tmp_path / "go")))
    last = rooms[u].say.remote(u, "last")
    with pytest.raises(RouteTimeoutError):
        last.result(timeout_s=1)  # long enough to be overtaken
    (tmp_path / "go").touch()
    assert last.result() == ["first", "slow", "last"]


@pytest.mark.slow
def test_an_argument_that_does_not_come_in_time_holds_up_nobody_for_longer(
    rooms: Any, u: str, tmp_path: Path
) -> None:
    @ray.remote(num_cpus=0)
    def slow(path: str) -> str:
        eventually(Path(path).exists, "let go on", within_s=60)
        return "slow"

    argument = slow.remote(str(tmp_path / "go"))
    late = rooms[u].options(timeout_s=3).say.remote(u, argument)
    given_up = rooms[u].say.remote(u, argument)
    behind = rooms[u].say.remote(u, "behind")
    for number in range(4):  # of each pod some
        assert rooms[f"{u}-{number}"].echo.remote().result(timeout_s=2.5) == ((), {})
    assert not behind.done()
    given_up.cancel()
    assert behind.result() == ["behind"], "and Ray has no gap where the others would have been"
    with pytest.raises(RouteTimeoutError) as caught:
        late.result()
    assert caught.value.may_have_run is False
    (tmp_path / "go").touch()
    assert ray.get(argument) == "slow"
    assert rooms[u].say.remote(u, "last").result() == ["behind", "last"], "it never began"


def test_a_move_in_between_keeps_the_order(client: Any, rooms: Any, u: str) -> None:
    service = rooms._connection.service
    first = client.compute_linked_pod(u, service)
    mover = threading.Thread(target=client.move, args=(u, service, 1 - first.pod))
    responses = [rooms[u].say.remote(u, number) for number in range(20)]
    responses[0].result()
    mover.start()
    responses += [rooms[u].say.remote(u, number) for number in range(20, 300)]
    mover.join()
    responses += [rooms[u].say.remote(u, number) for number in range(300, 310)]
    heard = [response.result() for response in responses]
    before = [number for number, said in enumerate(heard) if said[0] == 0]
    after = [number for number, said in enumerate(heard) if said[0] != 0]
    assert before + after == list(range(310))
    assert heard[-1] == after
    assert heard[before[-1]] == before


def test_a_long_call_holds_up_nobody_behind_one_that_never_came(
    async_rooms: Any, u: str, tmp_path: Path
) -> None:
    @ray.remote(num_cpus=0)
    def broken(path: str) -> str:
        eventually(Path(path).exists, "let fail", within_s=60)
        raise OSError("no file")

    path = str(tmp_path / "go")
    long = async_rooms[u].wait_for.remote(path)
    began = lambda: async_rooms[u].began.remote(path).result()  # noqa: E731
    eventually(began, "it runs")
    never_comes = async_rooms[u].say.remote(u, broken.remote(str(tmp_path / "fail")))
    behind = async_rooms[u].say.remote(u, "behind")
    (tmp_path / "fail").touch()
    assert behind.result() == ["behind"]
    with pytest.raises(OSError, match="no file"):
        never_comes.result()
    assert not long.done()
    (tmp_path / "go").touch()
    assert long.result() == path


def test_a_refused_call_does_not_wait_for_one_that_has_begun(
    async_rooms: Any, u: str, tmp_path: Path
) -> None:
    path = str(tmp_path / "go")
    long = async_rooms[u].wait_for.remote(path)
    began = lambda: async_rooms[u].began.remote(path).result()  # noqa: E731
    eventually(began, "it runs")
    with pytest.raises(ray_route.FencedError, match="lapsed"):
        async_rooms[u].lapse.remote().result()
    assert async_rooms[u].say.remote(u, "refused at first").result() == ["refused at first"]
    assert not long.done()
    (tmp_path / "go").touch()
    assert long.result() == path


def test_a_call_that_is_waited_for_has_its_place_among_others(
    client: Any, rooms: Any, u: str, tmp_path: Path
) -> None:
    @ray.remote(num_cpus=0)
    def slow(path: str) -> str:
        eventually(Path(path).exists, "let go on", within_s=60)
        return "slow"

    service = rooms._connection.service

    async def given_up() -> None:
        async with await ray_route.connect_async(client.namespace) as one:
            await asyncio.wait_for(one.call(u, service, "say", u, "given up"), 0.5)

    rooms[u].say.remote(u, slow.remote(str(tmp_path / "go")))
    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(given_up())  # behind the slow one, and never sent
    with pytest.raises(RouteTimeoutError) as caught:
        client.call(u, service, "say", u, "late", timeout=0.5)
    assert caught.value.may_have_run is False
    (tmp_path / "go").touch()
    assert client.call(u, service, "say", u, "third") == ["slow", "third"]


def test_calls_that_are_awaited_have_theirs_though_their_uid_is_new(
    client: Any, rooms: Any, u: str
) -> None:
    service = rooms._connection.service

    async def mixed() -> Any:
        async with await ray_route.connect_async(client.namespace) as one:
            made: list[Any] = []
            for n in range(0, 20, 2):
                made.append(asyncio.ensure_future(one.call(u, service, "say", u, n)))
                await asyncio.sleep(0)  # until it has begun
                made.append(rooms[u].say.remote(u, n + 1))
            return [await one for one in made][-1]

    assert asyncio.run(mixed()) == list(range(20))


# Unattended.


def test_a_refused_call_follows_its_uid_though_nobody_waits(
    client: Any, rooms: Any, u: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = rooms._connection.service
    with out_of_date(client, service, u, monkeypatch):
        for number in range(3):
            rooms[u].say.remote(u, number)
        on_its_way = dispatcher(client)
        gone = lambda: not len(on_its_way.untaken) and not len(on_its_way.lanes)  # noqa: E731
        eventually(gone, "nothing is on its way")
    assert client.call(u, service, "say", u, "last") == [0, 1, 2, "last"]


def test_what_nobody_takes_is_no_leak_and_a_failure_is_logged_once(
    client: Any, rooms: Any, u: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "ray_route.client.dispatcher")
    for _ in range(200):
        rooms[u].echo.remote()
    rooms[u].fail.remote("nobody cares")
    with pytest.raises(KeyError):
        rooms[u].fail.remote("somebody does").result()
    on_its_way = dispatcher(client)
    gone = lambda: not len(on_its_way.untaken) and not len(on_its_way.lanes)  # noqa: E731
    eventually(gone, "nothing is on its way")
    # It is on its way no more just before that is told.
    eventually(lambda: caplog.messages, "the failure is logged")
    logged = caplog.messages
    assert len(logged) == 1
    assert "nobody cares" in logged[0]
    assert u in logged[0]


@pytest.mark.slow
def test_thousands_in_flight_from_one_thread_keep_their_order_and_leave_nothing(
    client: Any, rooms: Any, u: str
) -> None:
    uids = [f"{u}-{number}" for number in range(100)]
    rooms.map("say", {uid: (uid, -1) for uid in uids})
    before = resident_bytes()
    responses = {uid: [] for uid in uids}
    for number in range(50):
        for uid in uids:
            responses[uid].append(rooms[uid].say.remote(uid, number))
    each = (resident_bytes() - before) / 5_000
    assert each < 40_000, "bytes of a call, with what Ray and a heap that is new take"
    for uid in uids:
        heard = [len(response.result()) for response in responses[uid]]
        assert heard == list(range(2, 52)), "each has run in its turn"
        assert responses[uid][-1].result() == list(range(-1, 50))
    responses.clear()
    on_its_way = dispatcher(client)
    gone = lambda: not len(on_its_way.untaken) and not len(on_its_way.lanes)  # noqa: E731
    eventually(gone, "nothing is on its way")


# Passing on.


def test_a_response_is_an_argument_of_other_calls(rooms: Any, u: str) -> None:
    said = rooms[u].say.remote(u, "hi")
    told = rooms[u + "2"].echo.remote(said, again=said)
    assert told.result() == ((["hi"],), {"again": ["hi"]})
    failed = rooms[u + "2"].echo.remote(rooms[u].fail.remote("upstream"))
    with pytest.raises(KeyError, match="upstream"):
        failed.result()


def test_a_large_value_that_is_passed_on_is_stored_once_and_never_comes_to_the_caller(
    client: Any, talkers: dict[type, str], u: str
) -> None:
    rooms, size = client.service(talkers[Talker], Talker), 100_000_000
    other = elsewhere(client, talkers[Talker], u)
    stored_before, held_before = stored_bytes(), resident_bytes()
    big = rooms[u].big.remote(size)
    assert rooms[other].size.remote(big).result() == size
    assert rooms[u].size.remote(big).result() == size
    assert size <= stored_bytes() - stored_before < 1.5 * size
    assert resident_bytes() - held_before < size / 2


def stored_bytes() -> int:
    """Return how much Ray's object store on this node holds."""
    (node,) = (node for node in ray.nodes() if node["Alive"])
    where = node["NodeManagerAddress"], node["NodeManagerPort"]
    stats = node_stats(*where, include_memory_info=False)
    return int(stats.store_stats.object_store_bytes_used)


def resident_bytes() -> int:
    """Return how much memory this process has of its own."""
    _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def test_a_response_is_an_argument_of_calls_that_are_waited_for(
    client: Any, rooms: Any, u: str
) -> None:
    service = rooms._connection.service
    said = rooms[u].say.remote(u, "hi")
    assert client.call(u + "2", service, "echo", said, again=said) == ((["hi"],), {"again": ["hi"]})
    calls = [(u, (said,)), (u + "2", (1,)), (u + "3", (), {"key": rooms[u].fail.remote("mine")})]
    first, second, failed = client.call_many(calls, service, "echo")
    assert (first, second) == (((["hi"],), {}), ((1,), {}))
    assert isinstance(failed, KeyError)


def test_a_refused_argument_is_sent_again_and_then_its_call(
    client: Any, rooms: Any, u: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with out_of_date(client, rooms._connection.service, u, monkeypatch):
        told = rooms[u + "2"].echo.remote(rooms[u].say.remote(u, "hi"))
        assert told.result() == ((["hi"],), {})


def test_a_refused_argument_and_its_call_may_be_of_one_uid(
    client: Any, rooms: Any, u: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with out_of_date(client, rooms._connection.service, u, monkeypatch):
        said = rooms[u].say.remote(u, "hi")
        told = rooms[u].options(timeout_s=20).echo.remote(said)
        again = rooms[u].options(timeout_s=20).echo.remote(told, said)
        assert again.result() == ((((["hi"],), {}), ["hi"]), {})  # the last is taken first
        assert told.result() == ((["hi"],), {})


def test_plain_tasks_take_a_reference_that_is_certain(
    client: Any, rooms: Any, u: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    @ray.remote(num_cpus=0)
    def length(thing: Any) -> int:
        return len(thing)

    with out_of_date(client, rooms._connection.service, u, monkeypatch):
        ref = rooms[u].say.remote(u, "hi").ref()
        assert ray.get(length.remote(ref)) == 1
        again = asyncio.run(rooms[u].say.remote(u, "ho").ref_async())
        assert ray.get(length.remote(again)) == 2
    with pytest.raises(TypeError, match=r"\.ref\(\)"):
        length.remote([rooms[u].say.remote(u, "no")])


def test_handles_go_to_tasks_and_to_other_pods(rooms: Any, u: str) -> None:
    @ray.remote(num_cpus=0)
    def say(room: Any, handle: Any, uid: str) -> Any:
        return (
            room.say.remote(uid, "from a task").result() + handle[uid].say.remote(uid, 2).result()
        )

    assert ray.get(say.remote(rooms[u], rooms, u)) == ["from a task", "from a task", 2]
    copied = pickle.loads(pickle.dumps(rooms[u].say))
    assert copied.remote(u, "again").result() == ["from a task", 2, "again"]


@pytest.mark.slow
def test_handles_go_to_ray_data(client: Any, talkers: dict[type, str], u: str) -> None:
    data = pytest.importorskip("ray.data", reason="what Ray Data needs is not installed")
    rooms = client.service(talkers[Talker], Talker)

    def say(batch: Any) -> Any:
        numbers = [int(number) for number in batch["id"]]
        answers = [rooms[f"{u}-{number}"].three.remote() for number in numbers]
        return {"id": numbers, "answer": [answer.result() for answer in answers]}

    data.DataContext.get_current().enable_progress_bars = False
    rows = data.range(40, override_num_blocks=2).map_batches(say, batch_size=20).take_all()
    assert sorted((row["id"], row["answer"]) for row in rows) == [(n, 3) for n in range(40)]


# Deadlines.


def test_a_call_whose_caller_has_given_up_does_not_begin(
    client: Any, talkers: dict[type, str], u: str, tmp_path: Path
) -> None:
    service = talkers[Talker]
    rooms = client.service(service, Talker)
    rooms[u].say.remote(u, "first").result()
    running = rooms[u].wait_for.remote(str(tmp_path / "go"))
    behind = [
        rooms[u].options(timeout_s=0.3).say.remote(u, "by a handle"),
        rooms[u].say.remote(u, "in time"),
    ]
    with pytest.raises(RouteTimeoutError):
        client.call(u, service, "say", u, "by call", timeout=0.3)
    (many,) = client.call_many([(u, (u, "many"))], service, "say", timeout=0.3) or [None]
    assert isinstance(many, RouteTimeoutError)
    with pytest.raises(RouteTimeoutError):
        behind[0].result()
    (tmp_path / "go").touch()
    assert running.result()
    assert behind[1].result() == ["first", "in time"]
    out = dispatcher(client).untaken._out
    eventually(lambda: behind[0]._call not in out, "the answer came")
    with pytest.raises(RouteTimeoutError, match="not begun") as caught:
        behind[0].result()
    assert caught.value.may_have_run is False


def test_what_is_left_of_the_time_is_known_and_inherited(client: Any, rooms: Any, u: str) -> None:
    assert 0 < rooms[u].options(timeout_s=50).remaining.remote().result() <= 50
    other = elsewhere(client, rooms._connection.service, u)
    nested = rooms[u].options(timeout_s=50).remaining_of_nested
    rooms[other].echo.remote().result()
    assert 30 < nested.remote(rooms, other, None).result() <= 50
    assert nested.remote(rooms, other, 5.0).result() <= 5


# Cancelling, and the end of pods.


def test_a_call_that_waits_is_cancelled_at_once(rooms: Any, u: str, tmp_path: Path) -> None:
    @ray.remote(num_cpus=0)
    def slow(path: str) -> str:
        eventually(Path(path).exists, "let go on", within_s=60)
        return "slow"

    rooms[u].say.remote(u, slow.remote(str(tmp_path / "go")))
    second = rooms[u].say.remote(u, "second")
    third = rooms[u].say.remote(u, "third")
    second.cancel()
    with pytest.raises(CallCancelledError) as caught:
        second.result()
    assert caught.value.may_have_run is False
    (tmp_path / "go").touch()
    assert third.result() == ["slow", "third"]


def test_a_coroutine_sees_that_it_is_cancelled(async_rooms: Any, u: str, tmp_path: Path) -> None:
    path = str(tmp_path / "never")
    response = async_rooms[u].wait_for.remote(path)
    began = lambda: async_rooms[u].began.remote(path).result()  # noqa: E731
    eventually(began, "it runs")
    response.cancel()
    with pytest.raises(CallCancelledError, match="may have run"):
        response.result()
    seen = lambda: async_rooms[u].was_cancelled.remote(path).result()  # noqa: E731
    eventually(seen, "its method was told")


@pytest.mark.slow
def test_the_death_of_a_pod_is_told_or_survived(client: Any, deploy: Any, u: str) -> None:
    rooms = client.service(deploy(Talker).service, Talker)
    rooms[u].say.remote(u, "hi").result()
    dying = rooms[u].exit.remote()
    behind = rooms[u].say.remote(u, "behind")
    passed_on = rooms[u + "2"].echo.remote(dying)
    repeated = rooms[u].options(idempotent=True).say.remote(u, "repeated")
    for response in (dying, behind, passed_on):
        with pytest.raises(PodUnavailableError) as caught:
            response.result()
        assert caught.value.may_have_run is True
    assert repeated.result() == ["repeated"]


def test_what_comes_back_to_a_client_that_has_left_says_so(
    client: Any, rooms: Any, u: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms[u].echo.remote().result()  # its pod's handle is known, so that the next is sent at once
    with out_of_date(client, rooms._connection.service, u, monkeypatch):
        refused = rooms[u].say.remote(u, "hi")
        dispatcher(client).close()
        client._session.dispatcher = Dispatcher(client._session)  # the next test's is another
        with pytest.raises(ray_route.ClosedError, match="session of namespace"):
            refused.result()


def test_a_client_that_has_left_sends_nothing(ray_session: None, namespace: str) -> None:
    client = ray_route.connect(namespace)
    rooms = client.service("rooms")
    response = rooms["ann"].say.remote()
    with pytest.raises(ray_route.NoAvailablePodError):
        response.result()
    client.close()
    with pytest.raises(ray_route.ClosedError, match="session of namespace"):
        rooms["ann"].say.remote()
    ray.kill(ray.get_actor(f"ray_route:{namespace}:router", namespace="ray_route"))
