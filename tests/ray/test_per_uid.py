"""One object per user, one call of it at a time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from helpers import eventually, unique_name
from peruid import AsyncRoom, Reader, Room, Shared, is_known, is_to_leave

import ray_route

Rooms = ray_route.ServiceHandle[Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rooms")


@pytest.fixture(scope="module")
def deployed(client: ray_route.RouteClient, folder: Path) -> Iterator[ray_route.Deployment]:
    args = (str(folder), client.service("rooms"))
    options: dict[str, Any] = {"namespace": client.namespace, "service": "rooms", "args": args}
    with ray_route.deploy(Room, replicas=2, per_uid=True, **options) as deployment:
        yield deployment


@pytest.fixture(scope="module")
def rooms(client: ray_route.RouteClient, deployed: ray_route.Deployment) -> Rooms:
    return client.service(deployed.service, Room)


@pytest.fixture(scope="module")
def loops(client: ray_route.RouteClient) -> Iterator[Rooms]:
    options: dict[str, Any] = {"namespace": client.namespace, "service": "loops", "replicas": 1}
    with ray_route.deploy(AsyncRoom, per_uid=True, **options):
        yield client.service("loops", AsyncRoom)


@pytest.fixture(scope="module")
def shared(client: ray_route.RouteClient) -> Iterator[Rooms]:
    options: dict[str, Any] = {"namespace": client.namespace, "service": "shared", "replicas": 1}
    with ray_route.deploy(Shared, turns=True, args=(client.service("shared"),), **options):
        yield client.service("shared", Shared)


@pytest.fixture(scope="module")
def plain(client: ray_route.RouteClient) -> Iterator[Rooms]:
    """One whose calls run one by one, so that none begins while a hook does."""
    options: dict[str, Any] = {"namespace": client.namespace, "service": "plain", "replicas": 1}
    with ray_route.deploy(Shared, args=(client.service("plain"),), **options):
        yield client.service("plain", Shared)


@pytest.fixture
def ann() -> str:
    return unique_name()


@pytest.fixture(params=["rooms", "loops"])
def either(request: pytest.FixtureRequest) -> Rooms:
    found: Rooms = request.getfixturevalue(request.param)
    return found


def call_at_once(uid: Any, number: int, seconds: float) -> list[Any]:
    return [uid.say.remote(n, seconds) for n in range(number)]


def test_each_uid_has_an_object_of_its_own(either: Rooms, ann: str) -> None:
    bob = unique_name()
    assert either[ann].say.remote("hello").result() == 1
    assert either[ann].say.remote("again").result() == 2
    assert either[bob].say.remote("hi").result() == 1
    assert either[ann].all_said.remote().result() == ["hello", "again"]


def test_calls_of_a_uid_run_one_at_a_time_in_the_order_sent(either: Rooms, ann: str) -> None:
    responses = call_at_once(either[ann], 40, 0.002)
    assert [one.result() for one in responses] == list(range(1, 41))
    assert either[ann].all_said.remote().result() == list(range(40))
    assert not either[ann].trouble.remote().result()


def test_more_than_may_wait_keep_their_order_too(either: Rooms, ann: str) -> None:
    responses = call_at_once(either[ann], 400, 0.0)
    assert [one.result() for one in responses] == list(range(1, 401))
    assert not either[ann].trouble.remote().result()


def test_callers_take_turn_about(rooms: Rooms, folder: Path, ann: str) -> None:
    held = rooms[ann].hold.remote(ann)
    eventually((folder / f"{ann}-begun").exists, "it runs")
    order: list[str] = []

    def one(name: str) -> None:  # a caller of its own, as one that is called in another turn is
        with ray_route.in_chain((hash(name) & 0xFFFF | 1,)):
            responses = [rooms[ann].say.remote(f"{name}{n}") for n in range(5)]
            for response in responses:
                response.result()

    threads = [threading.Thread(target=one, args=(name,)) for name in "xy"]
    for thread in threads:
        thread.start()
        eventually(lambda: not order, "one after the other")
    (folder / ann).touch()
    held.result()
    for thread in threads:
        thread.join()
    said: list[str] = rooms[ann].all_said.remote().result()
    assert [text for text in said if text[0] == "x"] == [f"x{n}" for n in range(5)]
    assert [text for text in said if text[0] == "y"] == [f"y{n}" for n in range(5)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rooms", "loops", "shared"])
def test_a_slow_uid_keeps_no_other_waiting(
    request: pytest.FixtureRequest, kind: str, folder: Path, ann: str
) -> None:
    """Calls of one uid wait, far more than there are threads; others go on meanwhile."""
    service: Rooms = request.getfixturevalue(kind)

    def of(uid: str, *args: Any) -> tuple[Any, ...]:
        return (uid, *args) if kind == "shared" else args

    held = service[ann].hold.remote(*of(ann, str(folder / ann)))
    waiting = [service[ann].say.remote(*of(ann, n)) for n in range(100)]
    others = {uid: of(uid, "hi") for uid in (unique_name() for _ in range(20))}
    assert set(service.map("say", others).values()) == {1}
    assert not held.done()
    (folder / ann).touch()
    assert [one.result() for one in waiting] == list(range(1, 101))


def test_a_call_whose_caller_gives_up_names_what_has_the_turn(
    rooms: Rooms, folder: Path, ann: str
) -> None:
    held = rooms[ann].hold.remote(ann)
    eventually((folder / f"{ann}-begun").exists, "it runs")

    def hears_why() -> bool:  # that takes its way back, for which 0.1 s is left
        with pytest.raises(ray_route.RouteTimeoutError) as raised:
            rooms[ann].options(timeout_s=2).say.remote("late").result()
        return not raised.value.may_have_run and "the turn has hold, for" in str(raised.value)

    eventually(hears_why, "the caller hears what has the turn", within_s=60)
    (folder / ann).touch()
    held.result()
    assert rooms[ann].all_said.remote().result() == []


def test_an_interleaved_method_does_not_wait(rooms: Rooms, folder: Path, ann: str) -> None:
    held = rooms[ann].hold.remote(ann)
    eventually((folder / f"{ann}-begun").exists, "it runs")
    assert rooms[ann].peek.remote().result() == 0
    assert not held.done()
    (folder / ann).touch()
    held.result()


def test_cycles_come_back_in(rooms: Rooms, ann: str) -> None:
    cycle = [unique_name() for _ in range(3)]
    asked = rooms[ann].options(timeout_s=60).call_me_back.remote([*cycle, ann, cycle[0], ann])
    assert asked.result() == [ann, *cycle, ann, cycle[0], ann]


def test_more_cycles_than_threads_all_come_back(rooms: Rooms) -> None:
    uids = [unique_name() for _ in range(40)]
    with_time = rooms.options(timeout_s=90)
    asked = [
        with_time[uid].call_me_back.remote([uids[n - 1] + "b", uid]) for n, uid in enumerate(uids)
    ]
    for uid, response in zip(uids, asked, strict=True):
        assert response.result()[-1] == uid


def test_threads_and_tasks_take_the_chain_along(rooms: Rooms, ann: str) -> None:
    assert rooms[ann].from_a_thread.remote().result() == 1
    assert rooms[ann].from_a_task.remote().result() == 2


def test_a_cycle_through_two_services_comes_back_in(rooms: Rooms, shared: Rooms, ann: str) -> None:
    steps = [(shared, unique_name()), (rooms, unique_name()), (shared, unique_name()), (rooms, ann)]
    assert rooms[ann].options(timeout_s=60).relay.remote(steps).result() == 1


def test_two_that_call_each_other_at_once_end_by_the_shorter_deadline(
    rooms: Rooms, ann: str
) -> None:
    bob = unique_name()
    gives_up = rooms[ann].options(timeout_s=60).meet.remote(bob, 1.0)
    waits = rooms[bob].options(timeout_s=60).meet.remote(ann, 60.0)
    with pytest.raises(ray_route.NestedCallError, match="RouteTimeoutError"):
        gives_up.result()
    assert waits.result() == 1
    assert rooms[bob].say.remote("free").result() == 1  # ann's call has not run late


def test_a_call_that_is_cancelled_while_it_waits_does_not_run_and_holds_up_nobody(
    rooms: Rooms, folder: Path, ann: str
) -> None:
    held = rooms[ann].hold.remote(ann)
    first, second, third = call_at_once(rooms[ann], 3, 0.0)
    eventually((folder / f"{ann}-begun").exists, "it runs")
    second.cancel()
    with pytest.raises(ray_route.CallCancelledError):
        second.result()  # though the turn has not come
    assert not held.done()
    (folder / ann).touch()
    assert [first.result(), third.result()] == [1, 2]
    assert rooms[ann].all_said.remote().result() == [0, 2]


def test_a_uid_moves_only_after_its_interleaved_calls(
    client: ray_route.RouteClient, rooms: Rooms, folder: Path, ann: str
) -> None:
    watching = rooms[ann].watch.remote(ann)
    eventually((folder / f"{ann}-begun").exists, "it runs")
    pod = client.compute_linked_pod(ann, "rooms").pod
    moving = threading.Thread(target=client.move, args=(ann, "rooms", 1 - pod))
    moving.start()
    said = rooms[ann].say.remote("here or there")
    assert not (folder / f"released-{ann}").exists()
    (folder / ann).touch()
    assert watching.result() == ann
    moving.join()
    assert said.result() == 1
    assert (folder / f"released-{ann}").exists()


def test_two_that_come_back_at_once_do_not_overlap(rooms: Rooms, ann: str) -> None:
    assert rooms[ann].ask_itself_twice.remote().result() is False


def test_a_stream_has_the_turn_to_its_end(either: Rooms, ann: str) -> None:
    with either[ann].count.remote(3) as items:
        assert next(items) == 0
        said = either[ann].say.remote("after")
        assert list(items) == [1, 2]
    assert said.result() == 4


def test_a_stream_whose_reader_has_died_gives_its_turn_back(either: Rooms, ann: str) -> None:
    reader = Reader.remote(either)
    assert ray.get(reader.read_one.remote(ann)) == 0
    said = either[ann].options(timeout_s=60).say.remote("after")
    ray.kill(reader)
    assert said.result() > 1


@pytest.mark.slow
def test_calls_that_wait_when_the_service_ends_have_not_run(
    client: ray_route.RouteClient, folder: Path, ann: str
) -> None:
    options: dict[str, Any] = {"namespace": client.namespace, "service": ann, "replicas": 1}
    deployed = ray_route.deploy(Room, per_uid=True, args=(str(folder),), **options)
    room = client.service(ann, Room).options(timeout_s=6)[ann]
    held = room.hold.remote(ann)
    eventually((folder / f"{ann}-begun").exists, "it runs")
    waiting = call_at_once(room, 5, 0.0)
    deployed.shutdown(grace_s=1.0)
    (folder / ann).touch()
    for response in [held, *waiting]:
        with pytest.raises(ray_route.RouteError) as raised:
            response.result()
        may_have_run = getattr(raised.value, "may_have_run", False)
        assert may_have_run == (response is held), raised.value


def test_a_constructor_that_fails_is_tried_again(rooms: Rooms, folder: Path) -> None:
    uid = f"poison{unique_name()}"
    for _ in range(2):
        with pytest.raises(LookupError, match="not yet"):
            rooms[uid].say.remote("hello").result()
    (folder / uid).touch()
    assert rooms[uid].say.remote("hello").result() == 1


def test_a_uid_moves_between_two_turns_with_its_state_and_in_order(
    client: ray_route.RouteClient, rooms: Rooms, folder: Path, ann: str
) -> None:
    assert rooms[ann].say.remote("hello").result() == 1
    held = rooms[ann].hold.remote(ann)
    eventually((folder / f"{ann}-begun").exists, "it runs")
    link = client.compute_linked_pod(ann, "rooms")
    moving = threading.Thread(target=client.move, args=(ann, "rooms", 1 - link.pod))
    moving.start()
    waiting = call_at_once(rooms[ann], 20, 0.0)
    assert not (folder / f"released-{ann}").exists()
    (folder / ann).touch()
    held.result()
    moving.join()
    assert [one.result() for one in waiting] == list(range(2, 22))  # here or there, in order
    assert rooms[ann].all_said.remote().result() == ["hello", *range(20)]
    assert (folder / f"released-{ann}").exists()
    assert client.compute_linked_pod(ann, "rooms").pod == 1 - link.pod


@pytest.mark.parametrize("begun", [True, False])
def test_calls_within_a_turn_are_admitted_while_its_uid_is_to_move(
    client: ray_route.RouteClient, rooms: Rooms, folder: Path, ann: str, begun: bool
) -> None:
    other = unique_name()
    held = rooms[other].hold.remote(other)
    eventually((folder / f"{other}-begun").exists, "the other one runs")
    cycle = rooms[ann].options(timeout_s=60).call_me_back.remote([other, ann])  # waits for it
    eventually(lambda: client.get_linked_pod(ann, "rooms"), "it has a pod")
    link = client.compute_linked_pod(ann, "rooms")
    moving = threading.Thread(target=client.move, args=(ann, "rooms", 1 - link.pod))
    asked = client.actor(ann, "rooms").__ray_call__.remote
    if begun:
        eventually(lambda: ray.get(asked(is_known, ann)), "its call has come")
    moving.start()
    if begun:
        eventually(lambda: ray.get(asked(is_to_leave, ann)), "its move has begun")
    (folder / other).touch()
    held.result()
    assert cycle.result() == [ann, other, ann]
    moving.join()


def test_one_whose_removal_falls_due_as_it_is_moved_takes_its_state_along(
    client: ray_route.RouteClient, rooms: Rooms, folder: Path, ann: str
) -> None:
    """The move takes the removal back."""
    assert rooms[ann].say.remote("hi").result() == 1
    held = rooms[ann].hold.remote(ann)
    eventually((folder / f"{ann}-begun").exists, "it is busy")
    link = client.compute_linked_pod(ann, "rooms")
    asked = client.actor(ann, "rooms").__ray_call__.remote
    assert client.remove(ann, "rooms", after_s=0.5)
    due_at = time.monotonic() + 0.5
    moving = threading.Thread(target=client.move, args=(ann, "rooms", 1 - link.pod))
    moving.start()
    eventually(lambda: ray.get(asked(is_to_leave, ann)), "its move has begun")
    eventually(lambda: time.monotonic() > due_at, "its removal is due")
    (folder / ann).touch()
    assert held.result() == ann
    moving.join()
    assert rooms[ann].say.remote("ho").result() == 2
    assert client.compute_linked_pod(ann, "rooms").pod == 1 - link.pod


def test_a_shutdown_waits_for_no_state_that_nobody_takes(
    client: ray_route.RouteClient, folder: Path, ann: str
) -> None:
    """Not for that of a persistent link either, which outlives its pods."""
    how: dict[str, Any] = {"replicas": 1, "per_uid": True, "args": (str(folder),)}
    with ray_route.deploy(Room, namespace=client.namespace, service="leaves", **how) as deployment:
        link = client.set_linked_pod_if_absent(ann, "leaves", 0, persistent=True)
        assert link.persistent
        assert client.service("leaves", Room)[ann].say.remote("hi").result() == 1
        begun = time.monotonic()
        deployment.shutdown(grace_s=60.0)
        assert time.monotonic() < begun + 30
        assert (folder / f"released-{ann}").exists()


def test_one_object_per_pod_can_have_turns_too(shared: Rooms, ann: str) -> None:
    responses = [shared[ann].say.remote(ann, n, 0.002) for n in range(30)]
    assert [one.result() for one in responses] == list(range(1, 31))
    assert shared[ann].all_said.remote(ann).result() == list(range(30))


@pytest.mark.parametrize("service", ["shared", "plain"])
def test_a_hook_that_calls_its_own_uid_hears_so_at_once(
    request: pytest.FixtureRequest, service: str
) -> None:
    rooms, uid = request.getfixturevalue(service), f"loop{unique_name()}"
    with pytest.raises(ray_route.NestedCallError, match="call of its own"):
        rooms[uid].options(timeout_s=60).say.remote(uid, "hello").result()


def test_async_clients_and_batches_take_turns(loops: Rooms, ann: str) -> None:
    async def ask() -> list[int]:
        return list(await asyncio.gather(*[loops[ann].say.remote(n, 0.001) for n in range(20)]))

    assert asyncio.run(ask()) == list(range(1, 21))


@pytest.mark.parametrize(
    ("cls", "args", "reason"),
    [
        (Room, (), "can't be made for a uid"),
        (Shared, (None,), "has on_acquire"),
    ],
)
def test_a_class_that_can_not_serve_a_uid_is_refused(
    client: ray_route.RouteClient, cls: type, args: tuple[Any, ...], reason: str
) -> None:
    options: dict[str, Any] = {"namespace": client.namespace, "service": "no", "replicas": 1}
    with pytest.raises(ray_route.InvalidInputError, match=reason):
        ray_route.deploy(cls, per_uid=True, args=args, **options)
