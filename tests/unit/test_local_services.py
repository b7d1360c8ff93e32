"""Services without Ray: their pods keep the rules of real ones, since they are made of the same."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest
import ray
from helpers import eventually

import ray_route
from ray_route import testing
from ray_route.clock import Deadline
from ray_route.errors import (
    CallCancelledError,
    FencedError,
    InvalidInputError,
    PodUnavailableError,
    RouteTimeoutError,
    StateNotMovedError,
    UnknownMethodError,
    UnpicklableError,
)
from ray_route.protocol.commands import Count
from ray_route.store.connect import Store
from ray_route.testing.local_mailbox import Mailbox


class Stuck:
    """What nobody can pickle: locks are taught to be by some libraries, once they are imported."""

    def __reduce__(self) -> Any:
        raise TypeError("it stays where it is")


class Room:
    """One object for each uid; `diary` is the test's."""

    def __init__(self, room: str, diary: list[Any]) -> None:
        self.room, self.said = room, list[Any]()
        self.held = False
        Room.diary = diary

    diary: ClassVar[list[Any]] = []
    gate = threading.Event()

    def __getstate__(self) -> Any:
        return {"room": self.room, "said": self.said, "held": False}

    def say(self, text: Any) -> int:
        self.said.append(text)
        return len(self.said)

    def all(self) -> list[Any]:
        return self.said

    def wait(self) -> str:
        """Wait until the test lets go; fail if another call of the uid runs meanwhile."""
        assert not self.held
        self.held = True
        Room.diary.append(("began", self.room))
        assert Room.gate.wait(30)
        self.held = False
        return self.room

    def where(self) -> tuple[int, int, int]:
        link, agent = ray_route.current_link(), ray_route.current_agent()
        assert link is not None
        assert agent is not None
        assert link.uid == self.room
        return link.pod, link.epoch, agent.pod

    def weigh(self) -> float:
        agent = ray_route.current_agent()
        assert agent is not None
        agent.set_uid_load(self.room, 3.0)
        return agent.get_load_state()

    def keep(self, uid: str, pod: int, *, persistent: bool) -> ray_route.Link:
        agent = ray_route.current_agent()
        assert agent is not None
        return agent.set_linked_pod(uid, pod, persistent)

    def left_s(self) -> float | None:
        link = ray_route.current_link()
        return None if link is None else link.remaining_s

    def fail(self) -> None:
        raise KeyError(self.room)

    def count(self, n: int) -> Iterator[int]:
        try:
            yield from range(n)
        finally:
            Room.diary.append("closed")

    def lock(self) -> None:
        self.said.append(Stuck())

    def give_lock(self) -> Any:
        return Stuck()

    def on_release(self) -> None:
        Room.diary.append(("release", self.room))

    def on_lost(self) -> None:
        Room.diary.append(("lost", self.room))


@pytest.fixture
def diary() -> list[Any]:
    return []


@pytest.fixture
def rooms(diary: list[Any]) -> Iterator[testing.LocalService]:
    Room.gate = threading.Event()
    with testing.local(Room, args=(diary,), per_uid=True) as rooms:
        yield rooms
        Room.gate.set()


def began(diary: list[Any], uid: str) -> None:
    eventually(lambda: ("began", uid) in diary, f"a call of {uid} runs")


def test_an_object_for_each_uid_each_at_its_pod(rooms: testing.LocalService) -> None:
    assert [rooms["ann"].say("hi"), rooms["ann"].say("ho"), rooms["bob"].say("hi")] == [1, 2, 1]
    assert {rooms.pod_of("ann"), rooms.pod_of("bob")} == {0, 1}
    pod = rooms.pod_of("ann")
    assert pod is not None
    assert rooms.uids(pod) == {"ann"}
    assert rooms.object_of("ann").said == ["hi", "ho"]
    assert rooms.object_of("carl") is None


def test_calls_of_a_uid_take_turns_in_the_order_sent_and_uids_run_side_by_side(
    rooms: testing.LocalService, diary: list[Any]
) -> None:
    held = rooms["ann"].wait.remote()
    began(diary, "ann")
    sent = [rooms["ann"].say.remote(n) for n in range(20)]
    assert rooms["bob"].say("hi") == 1
    assert not any(response.done() for response in sent)
    Room.gate.set()
    assert held.result() == "ann"
    assert [response.result() for response in sent] == list(range(1, 21))
    assert rooms["ann"].all() == list(range(20))


def test_code_knows_for_whom_it_is_called_and_where(rooms: testing.LocalService) -> None:
    rooms["bob"].say("hi")
    link = rooms.link("ann") or (rooms["ann"].say("hi") and rooms.link("ann"))
    assert link
    assert rooms["ann"].where() == (link.pod, link.epoch, link.pod)
    assert rooms["ann"].weigh() == 1.0
    left_s = rooms["ann"].options(timeout_s=20).left_s()
    assert 0 < left_s <= 20


def test_a_uid_moves_with_its_state(rooms: testing.LocalService, diary: list[Any]) -> None:
    rooms["ann"].say("hi")
    before = rooms.link("ann")
    assert before
    after = rooms.move("ann")
    assert (after.pod, after.replaced) == (1 - before.pod, before.epoch)
    assert diary == [("release", "ann")]
    assert rooms["ann"].say("ho") == 2
    assert rooms["ann"].where()[1] == after.epoch
    assert rooms.move("ann", before.pod).pod == before.pod
    assert rooms["ann"].all() == ["hi", "ho"]


def test_a_move_waits_for_calls_that_run_and_those_behind_follow(
    rooms: testing.LocalService, diary: list[Any]
) -> None:
    held = rooms["ann"].wait.remote()
    began(diary, "ann")
    old = rooms.pod_of("ann")
    with ThreadPoolExecutor(1) as pool:
        moving = pool.submit(rooms.move, "ann")
        behind = [rooms["ann"].say.remote(n) for n in range(3)]
        assert not moving.done()
        Room.gate.set()
        assert moving.result().pod != old
    assert held.result() == "ann"
    assert sorted(response.result() for response in behind) == [1, 2, 3]
    assert diary.count(("release", "ann")) == 1


def test_moves_of_one_uid_lose_no_state_however_many_there_are(
    rooms: testing.LocalService,
) -> None:
    said = 0
    with ThreadPoolExecutor(8) as movers:
        for _ in range(10):
            moved = [movers.submit(rooms.move, "ann") for _ in range(8)]
            said += 1
            assert rooms["ann"].say("hi") == said
            for each in moved:
                each.result()


def test_a_uid_that_stays_busy_stays(rooms: testing.LocalService, diary: list[Any]) -> None:
    held = rooms["ann"].wait.remote()
    began(diary, "ann")
    old = rooms.pod_of("ann")
    with pytest.raises(PodUnavailableError, match="did not end in time"):
        rooms.move("ann", timeout=0.5)
    Room.gate.set()
    assert held.result() == "ann"
    assert rooms.pod_of("ann") == old
    assert rooms["ann"].say("hi") == 1


def test_one_that_stays_busy_is_not_removed(rooms: testing.LocalService, diary: list[Any]) -> None:
    held = rooms["ann"].wait.remote()
    began(diary, "ann")
    old = rooms.link("ann")
    with pytest.raises(PodUnavailableError, match="did not end in time"):
        rooms.remove("ann", timeout=0.5)
    Room.gate.set()
    assert held.result() == "ann"
    assert rooms["ann"].say("hi") == 1
    assert rooms.link("ann") == old
    assert ("release", "ann") not in diary


def test_one_that_is_moved_meanwhile_is_removed_where_it_has_gone(
    rooms: testing.LocalService, diary: list[Any]
) -> None:
    with ThreadPoolExecutor(2) as others:
        for _ in range(50):
            rooms["ann"].say("hi")
            moving = others.submit(rooms.move, "ann")
            removing = others.submit(rooms.remove, "ann")
            assert removing.result()
            moving.result()
            if rooms.link("ann") is not None:  # the move came after
                assert rooms["ann"].all() == []
    assert diary.count(("release", "ann")) >= 50


def test_one_that_was_fenced_is_told_and_saves_nothing(
    rooms: testing.LocalService, diary: list[Any]
) -> None:
    rooms["ann"].say("hi")
    before = rooms.link("ann")
    assert before
    rooms.fence("ann")
    assert diary == [("lost", "ann")]
    assert rooms["ann"].say("ho") == 1
    after = rooms.link("ann")
    assert after
    assert after.epoch > before.epoch
    assert after.pod != before.pod


def test_a_call_that_runs_while_it_is_fenced_gives_no_result(
    rooms: testing.LocalService, diary: list[Any]
) -> None:
    held = rooms["ann"].wait.remote()
    began(diary, "ann")
    rooms.fence("ann")
    assert rooms["ann"].say("elsewhere") == 1
    Room.gate.set()
    with pytest.raises(FencedError) as failed:
        held.result()
    assert failed.value.may_have_run
    eventually(lambda: ("lost", "ann") in diary, "on_lost is called")
    assert rooms["ann"].all() == ["elsewhere"]


@pytest.mark.parametrize("end", ["idle", "remove"])
def test_one_that_ends_is_released_and_forgotten(
    rooms: testing.LocalService, diary: list[Any], end: str
) -> None:
    rooms["ann"].say("hi")
    getattr(rooms, end)("ann")
    assert diary == [("release", "ann")]
    assert rooms.link("ann") is None
    assert rooms["ann"].all() == []
    getattr(rooms, end)("nobody")


def test_one_whose_link_is_persistent_does_not_end_for_want_of_use_until_it_is_no_more(
    rooms: testing.LocalService, diary: list[Any]
) -> None:
    pod = rooms["ann"].where()[0]
    kept = rooms["bob"].keep("ann", pod, persistent=True)
    with pytest.raises(RouteTimeoutError):
        rooms.idle("ann", timeout=0.5)
    assert (rooms.link("ann"), diary) == (kept, [])
    assert kept.persistent
    rooms["bob"].keep("ann", pod, persistent=False)
    rooms.idle("ann")
    assert (rooms.link("ann"), diary) == (None, [("release", "ann")])


def test_one_whose_link_is_persistent_keeps_nobody_waiting_at_the_end(diary: list[Any]) -> None:
    """What its hook returns goes nowhere: no pod takes it."""
    with testing.local(Room, args=(diary,), per_uid=True) as rooms:
        rooms["bob"].keep("ann", rooms["ann"].where()[0], persistent=True)
        begun = time.monotonic()
        assert rooms.close() == []
        assert time.monotonic() < begun + 15
        assert sorted(diary) == [("release", "ann"), ("release", "bob")]


class Slow(Room):
    """Takes its time to be released."""

    def on_release(self) -> None:
        super().on_release()
        assert Room.gate.wait(30)


def test_one_that_is_being_given_up_is_not_said_to_be_kept(diary: list[Any]) -> None:
    Room.gate = threading.Event()
    with (
        testing.local(Slow, args=(diary,), per_uid=True) as rooms,
        ThreadPoolExecutor(1) as other,
    ):
        pod = rooms["ann"].where()[0]
        rooms["bob"].say("hi")
        idle = other.submit(rooms.idle, "ann")
        try:
            eventually(lambda: diary == [("release", "ann")], "its hook runs")
            with pytest.raises(PodUnavailableError, match="try again"):
                rooms["bob"].keep("ann", pod, persistent=True)
        finally:
            Room.gate.set()
        idle.result()
        assert rooms.link("ann") is None


def test_a_pod_that_is_killed_comes_back_empty(
    rooms: testing.LocalService, diary: list[Any]
) -> None:
    held, pod = rooms["ann"].wait.remote(), None
    began(diary, "ann")
    pod = rooms.pod_of("ann")
    assert pod is not None
    rooms.kill(pod)
    with pytest.raises(PodUnavailableError, match="killed") as failed:
        held.result()
    assert failed.value.may_have_run
    assert rooms["ann"].say("hi") == 1
    assert ("release", "ann") not in diary


def test_a_call_that_may_run_twice_does_after_a_death(
    rooms: testing.LocalService, diary: list[Any]
) -> None:
    held = rooms["ann"].options(idempotent=True).wait.remote()
    began(diary, "ann")
    pod = rooms.pod_of("ann")
    assert pod is not None
    rooms.kill(pod)
    eventually(lambda: diary.count(("began", "ann")) == 2, "it runs again")
    Room.gate.set()
    assert held.result() == "ann"


@pytest.mark.timeout(60)
def test_a_pod_that_has_ended_is_asked_in_vain_at_once() -> None:
    """By who had found it before: there is no limit to what some wait for."""
    box = Mailbox()
    box.close()
    with pytest.raises(PodUnavailableError, match="has ended"):
        box.ask(Count(), Deadline.after(1e6), "its answer")


class Exits:
    """Asks its process to end, as one does that reads a command line that it does not know."""

    error: type[BaseException] = SystemExit

    def __init__(self) -> None:
        raise self.error("its __init__")

    def say(self) -> None:
        """Have something to be called by."""


class AsyncExits(Exits):
    """The same on an event loop."""

    async def say(self) -> None:  # type: ignore[override]
        """Have something to be called by."""


@pytest.mark.timeout(60)
@pytest.mark.parametrize("cls", [Exits, AsyncExits])
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, OSError])
def test_what_the_init_of_a_class_raises_is_raised(
    cls: type[Exits], error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cls, "error", error)
    with pytest.raises(error, match="its __init__"), testing.local(cls):
        pytest.fail("it was never made")
    assert "ray_route-local" not in [thread.name for thread in threading.enumerate()]


def test_all_are_released_at_the_end(diary: list[Any]) -> None:
    with testing.local(Room, args=(diary,), per_uid=True) as rooms:
        for uid in ("ann", "bob", "carl"):
            rooms[uid].say("hi")
    assert sorted(diary) == [("release", "ann"), ("release", "bob"), ("release", "carl")]


def test_what_travels_is_a_copy(rooms: testing.LocalService) -> None:
    said = ["hi"]
    rooms["ann"].say(said)
    said.append("ho")
    assert rooms["ann"].all() == [["hi"]]
    rooms["ann"].all().append("mine")
    assert rooms["ann"].all() == [["hi"]]
    with pytest.raises(UnpicklableError):
        rooms["ann"].say(Stuck())
    with pytest.raises(UnpicklableError):
        rooms["ann"].give_lock()
    assert rooms["ann"].all() == [["hi"]]


def test_a_state_that_cant_travel_keeps_its_uid_where_it_is(rooms: testing.LocalService) -> None:
    rooms["ann"].say("hi")
    rooms["ann"].lock()
    old = rooms.pod_of("ann")
    with pytest.raises(StateNotMovedError, match="can't be pickled") as failed:
        rooms.move("ann")
    assert failed.value.is_final
    assert rooms.pod_of("ann") == old
    assert rooms["ann"].say("ho") == 3


def test_or_moves_without_it(diary: list[Any]) -> None:
    options: dict[str, Any] = {"args": (diary,), "per_uid": True, "on_unpicklable": "drop"}
    with testing.local(Room, **options) as rooms:
        rooms["ann"].lock()
        rooms.move("ann")
        assert rooms["ann"].all() == []


def test_errors_of_the_users_code_are_as_it_raised_them(rooms: testing.LocalService) -> None:
    with pytest.raises(KeyError, match="ann") as failed:
        rooms["ann"].fail()
    assert failed.traceback[-1].name == "fail"
    with pytest.raises(UnknownMethodError, match="say"):
        rooms["ann"].shout()
    with pytest.raises(InvalidInputError):
        rooms[""]
    with pytest.raises(InvalidInputError, match="none of"):
        rooms.kill(7)


def test_a_call_has_its_deadline_and_one_that_waits_does_not_run(
    rooms: testing.LocalService, diary: list[Any]
) -> None:
    held = rooms["ann"].wait.remote()
    began(diary, "ann")
    with pytest.raises(RouteTimeoutError):
        rooms["ann"].options(timeout_s=0.5).say("late")
    Room.gate.set()
    held.result()
    assert rooms["ann"].all() == []


def test_a_call_that_waits_can_be_cancelled(rooms: testing.LocalService, diary: list[Any]) -> None:
    held = rooms["ann"].wait.remote()
    began(diary, "ann")
    waiting = rooms["ann"].say.remote("never")
    turns = [pod._pod._ray_route_turns._turns for pod in rooms._pods]
    eventually(lambda: any(each.waiting for each in turns), "it waits for its turn")
    waiting.cancel()
    with pytest.raises(CallCancelledError):
        waiting.result()
    # Its caller hears that at once, its pod a moment later.
    eventually(lambda: not any(each.waiting for each in turns), "its pod hears it")
    Room.gate.set()
    held.result()
    assert rooms["ann"].all() == []


def test_streams_come_item_by_item_and_are_closed(
    rooms: testing.LocalService, diary: list[Any]
) -> None:
    assert list(rooms["ann"].count(3)) == [0, 1, 2]
    assert diary == ["closed"]
    items = rooms["ann"].count(10**9)
    assert [next(items), next(items)] == [0, 1]
    items.close()
    assert diary == ["closed", "closed"]
    assert rooms["ann"].say("hi") == 1  # the turn has ended


class Counter:
    """One object for all uids of a pod; its calls come one at a time."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def on_acquire(self, uid: str, state: int | None) -> None:
        self.counts[uid] = state or 0

    def on_release(self, uid: str) -> int:
        return self.counts.pop(uid)

    def add(self, uid: str) -> int:
        self.counts[uid] += 1
        return self.counts[uid]

    def items(self, uid: str) -> Iterator[str]:
        yield from [uid, uid]


class AsyncCounter(Counter):
    """The same on an event loop."""

    async def on_acquire(self, uid: str, state: int | None) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        super().on_acquire(uid, state)

    async def add(self, uid: str) -> int:  # type: ignore[override]
        await asyncio.sleep(0)
        return super().add(uid)

    async def items(self, uid: str) -> AsyncIterator[str]:  # type: ignore[override]
        for _ in range(2):
            await asyncio.sleep(0)
            yield uid


@pytest.mark.parametrize("cls", [Counter, AsyncCounter])
@pytest.mark.parametrize("turns", [False, True])
def test_classes_of_one_object_per_pod(cls: type, turns: bool) -> None:
    with testing.local(cls, turns=turns, pods=3) as counters:
        assert [counters["ann"].add("ann") for _ in range(3)] == [1, 2, 3]
        counters.move("ann")
        assert counters["ann"].add("ann") == 4
        assert list(counters["ann"].items("ann")) == ["ann", "ann"]
        counters.fence("ann")
        assert counters["ann"].add("ann") == 1
        counters.idle("ann")
        assert counters["ann"].add("ann") == 1


def test_from_coroutines_calls_are_awaited() -> None:
    async def many() -> tuple[list[int], list[str]]:
        called = (counters["ann"].add.remote("ann") for _ in range(5))
        with pytest.raises(RuntimeError, match="await"):
            counters["ann"].add("ann")
        items = counters["ann"].items.remote("ann")
        return await asyncio.gather(*called), [item async for item in items]

    with testing.local(AsyncCounter, turns=True) as counters:
        counts, items = asyncio.run(many())
        assert sorted(counts) == [1, 2, 3, 4, 5]
        assert items == ["ann", "ann"]
        assert counters["ann"].add("ann") == 6


class Caller:
    """Calls others of its own service, by handles that the test has left it."""

    rooms: Any = None

    def __init__(self, uid: str) -> None:
        self.uid = uid

    def ask(self, other: str) -> str:
        return f"{self.uid}: {Caller.rooms[other].answer(self.uid)}"

    def answer(self, asker: str) -> str:
        return f"{self.uid}: {Caller.rooms[asker].name()}"

    def name(self) -> str:
        return self.uid


def test_a_call_that_comes_back_to_its_own_uid_is_let_in() -> None:
    with testing.local(Caller, per_uid=True) as rooms:
        Caller.rooms = rooms
        assert rooms["ann"].options(timeout_s=20).ask("bob") == "ann: bob: ann"


class Shelf:
    """Where states are kept; `StateStore`."""

    def __init__(self) -> None:
        self.states: dict[str, tuple[int, Any]] = {}

    def load(self, uid: str, epoch: int) -> Any:
        before, state = self.states.get(uid, (0, None))
        assert before < epoch
        return state

    def save(self, uid: str, epoch: int, state: Any) -> None:
        self.states[uid] = epoch, state


def test_states_are_kept_by_a_store(diary: list[Any]) -> None:
    kept = Shelf()
    options: dict[str, Any] = {"args": (diary,), "per_uid": True, "save_every_s": 0.02}
    with testing.local(Room, store=kept, **options) as rooms:
        rooms["ann"].say("hi")
        eventually(lambda: "ann" in kept.states, "it is saved")
        pod = rooms.pod_of("ann")
        assert pod is not None
        rooms.kill(pod)
        assert rooms["ann"].say("ho") == 2
    with testing.local(Room, store=kept, **options) as rooms:
        assert rooms["ann"].all() == ["hi", "ho"]


@pytest.mark.parametrize(
    ("options", "words"), [({"per_uid": True}, "on_acquire"), ({"idle_s": -1}, "idle_s")]
)
def test_pods_refuse_what_deploy_does(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words), testing.local(Counter, **options):
        pass


def test_neither_ray_nor_a_server_is_asked(diary: list[Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("init", "get", "get_actor", "remote"):
            patch.setattr(ray, name, None)
        patch.setattr(Store, "__init__", None)
        with testing.local(Room, args=(diary,), per_uid=True) as rooms:
            rooms["ann"].say("hi")
            rooms.move("ann")
            assert rooms["ann"].say("ho") == 2
