"""The objects of a pod that has one for each uid, and the states that go on to the next pod."""

from __future__ import annotations

import asyncio
import inspect
import threading
from functools import partial
from typing import Any

import pytest
from ray import cloudpickle

from ray_route.pod.instances import Instances


class Room:
    def __init__(self, uid: str, greeting: str = "hello") -> None:
        self.uid, self.said = uid, [greeting]


class Upgraded:
    def __init__(self, uid: str) -> None:
        raise AssertionError(f"{uid} is never made anew")

    def last(self) -> Any:
        return self.said[-1]  # type: ignore[attr-defined]


class Slotted:
    __slots__ = ("count", "uid")

    def __init__(self, uid: str) -> None:
        self.uid, self.count = uid, 7


class SlottedAndMore(Slotted):
    def __init__(self, uid: str) -> None:
        super().__init__(uid)
        self.more = "more"


class Choosy:
    def __init__(self, uid: str) -> None:
        self.uid, self.lock = uid, threading.Lock()

    def __getstate__(self) -> list[str]:
        return [self.uid]

    def __setstate__(self, state: list[str]) -> None:
        self.uid, self.lock = state[0], threading.Lock()


class Empty:
    def __init__(self, uid: str) -> None:
        """Have nothing."""


class FailsToEnd(Room):
    def on_release(self) -> None:
        raise KeyError("no")


class FailsToEndOnALoop(Room):
    async def on_release(self) -> None:
        await asyncio.sleep(0)
        self.said.append("bye")
        raise KeyError("no")


def of(cls: type, *args: Any) -> Instances:
    return Instances(cls, args, {})


def carried(here: Instances, there: Instances) -> Any:
    """Release a uid here, and acquire it there with what has travelled."""
    here.on_acquire("ann", None)
    state = here.on_release("ann")
    if inspect.isawaitable(state):
        state = asyncio.run(_awaited(state))
    there.on_acquire("ann", there.prepare("ann", cloudpickle.loads(cloudpickle.dumps(state))))
    return there.of("ann")


async def _awaited(value: Any) -> Any:
    return await value


def test_an_object_is_made_with_its_uid_and_dropped_at_its_end() -> None:
    rooms = of(Room, "welcome")
    rooms.on_acquire("ann", None)
    assert (rooms.of("ann").uid, rooms.of("ann").said) == ("ann", ["welcome"])
    rooms.on_release("ann")
    rooms.on_acquire("bob", None)
    rooms.on_lost("bob")
    rooms.on_lost("nobody")
    assert len(rooms) == 0


def test_a_constructor_that_fails_leaves_nothing() -> None:
    rooms = of(Upgraded)
    with pytest.raises(AssertionError):
        rooms.on_acquire("ann", None)
    assert len(rooms) == 0


def test_an_upgraded_class_takes_over_what_the_old_one_knew() -> None:
    assert carried(of(Room, "hello"), of(Upgraded)).last() == "hello"


@pytest.mark.parametrize("cls", [Slotted, SlottedAndMore])
def test_slots_go_along(cls: type) -> None:
    one = carried(of(cls), of(cls))
    assert (one.uid, one.count, getattr(one, "more", "more")) == ("ann", 7, "more")


def test_a_class_chooses_what_goes_along() -> None:
    one = carried(of(Choosy), of(Choosy))
    assert one.uid == "ann"
    assert one.lock.acquire(blocking=False)


def test_an_object_without_attributes_has_a_state_too() -> None:
    assert isinstance(carried(of(Empty), of(Empty)), Empty)


@pytest.mark.parametrize(
    ("cls", "said"), [(FailsToEnd, ["hi"]), (FailsToEndOnALoop, ["hi", "bye"])]
)
def test_the_state_goes_on_though_on_release_fails(
    cls: type, said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert carried(of(cls, "hi"), of(Room)).said == said
    assert "on_release of the object of uid 'ann' failed" in caplog.text


class Diary:
    """A store that notes what it is asked."""

    def __init__(self, state: Any = None) -> None:
        self.asked: list[Any] = []
        self.state = state

    def load(self, uid: str, epoch: int) -> Any:
        self.asked.append(("load", uid, epoch))
        return self.state

    def save(self, uid: str, epoch: int, state: Any) -> None:
        self.asked.append(("save", uid, epoch, dict(state)))


class DiaryOfALoop(Diary):
    async def load(self, uid: str, epoch: int) -> Any:
        await asyncio.sleep(0)
        return super().load(uid, epoch)

    async def save(self, uid: str, epoch: int, state: Any) -> None:
        await asyncio.sleep(0)
        super().save(uid, epoch, state)


async def _lived(rooms: Instances, prepared: Any = None) -> None:
    for step in (partial(rooms.on_acquire, "ann", prepared), partial(rooms.on_release, "ann")):
        done = step()
        if inspect.isawaitable(done):
            await done


@pytest.mark.parametrize("cls", [Diary, DiaryOfALoop])
def test_a_store_is_asked_for_a_state_and_given_it_at_the_end(cls: type[Diary]) -> None:
    diary = cls({"uid": "ann", "said": ["kept"]})
    rooms = Instances(Upgraded, (), {}, diary)
    rooms.epoch_of = lambda _: 7
    asyncio.run(_lived(rooms))
    assert diary.asked == [("load", "ann", 7), ("save", "ann", 7, diary.state)]


def test_what_has_come_along_is_newer_than_what_a_store_has() -> None:
    diary = Diary({"uid": "ann", "said": ["old"]})
    rooms = Instances(Room, (), {}, diary)
    asyncio.run(_lived(rooms, Room("ann", "new")))
    assert diary.asked == [("save", "ann", 0, {"uid": "ann", "said": ["new"]})]


class Connected(Room):
    """Has something that its `on_release` closes."""

    def __init__(self, uid: str) -> None:
        super().__init__(uid)
        self.is_open = True

    def on_release(self) -> None:
        self.is_open = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, is_open=True)


def test_what_is_given_back_is_made_anew_as_another_pod_would_make_it() -> None:
    rooms = of(Connected)
    rooms.on_acquire("ann", None)
    one = rooms.of("ann")
    state = rooms.on_release("ann")
    rooms.on_acquire("ann", rooms.prepare("ann", state))
    assert rooms.of("ann") is not one
    assert (rooms.of("ann").said, rooms.of("ann").is_open) == (["hello"], True)


class CannotSay(Room):
    def __getstate__(self) -> Any:
        raise KeyError("secret")


def test_an_object_that_can_not_say_its_state_stays_as_it_is() -> None:
    rooms = of(CannotSay)
    rooms.on_acquire("ann", None)
    one = rooms.of("ann")
    state = rooms.on_release("ann")
    with pytest.raises(KeyError, match="secret"):
        cloudpickle.dumps(state)
    rooms.on_acquire("ann", rooms.prepare("ann", state))
    assert rooms.of("ann") is one
