"""Whatever the user's code of a pod raises, wherever: its uid is stuck nowhere, and no other's.

`SystemExit` and `KeyboardInterrupt` are meant for the process, which ends in order for them;
`CancelledError` is what a task of the user's own was cancelled with.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import closing
from typing import Any, ClassVar

import pytest
from helpers import eventually

from ray_route import testing
from ray_route.clock import now
from ray_route.errors import RouteError

SOON_S = 20.0


class Room:
    """One object for each uid; raises what the test wants, once, where the test wants."""

    where: ClassVar[str] = ""
    error: ClassVar[type[BaseException]] = SystemExit

    @classmethod
    def may_raise(cls, here: str) -> None:
        if Room.where == here:
            Room.where = ""
            raise Room.error

    def __init__(self, uid: str) -> None:
        self.uid = uid
        self.said: list[str] = []
        self.may_raise("__init__")

    def say(self, text: str) -> list[str]:
        self.said.append(text)
        self.may_raise("say")
        return self.said

    def items(self) -> Generator[str, None, None]:
        try:
            yield "first"
            self.may_raise("items")
            yield "last"
        finally:
            self.may_raise("items' end")

    def on_release(self) -> None:
        self.may_raise("on_release")

    def on_lost(self) -> None:
        self.may_raise("on_lost")

    def __getstate__(self) -> dict[str, Any]:
        self.may_raise("__getstate__")
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.may_raise("__setstate__")
        self.__dict__.update(state)


class AsyncRoom(Room):
    """The same on the event loop."""

    async def say(self, text: str) -> list[str]:  # type: ignore[override]
        await asyncio.sleep(0)
        return super().say(text)

    async def items(self) -> AsyncIterator[str]:  # type: ignore[override]
        with closing(super().items()) as items:
            for item in items:
                yield item

    async def on_release(self) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        super().on_release()


class Shelf:
    """Where states are kept; `StateStore`."""

    states: ClassVar[dict[str, Any]] = {}

    def load(self, uid: str, epoch: int) -> Any:  # noqa: ARG002 - the store's own interface
        Room.may_raise("load")
        return self.states.get(uid)

    def save(self, uid: str, epoch: int, state: Any) -> None:  # noqa: ARG002
        Room.may_raise("save")
        self.states[uid] = {"uid": uid, "said": list(state["said"])}


class AsyncShelf(Shelf):
    """The same on the event loop."""

    async def load(self, uid: str, epoch: int) -> Any:
        await asyncio.sleep(0)
        return super().load(uid, epoch)

    async def save(self, uid: str, epoch: int, state: Any) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        super().save(uid, epoch, state)


def say(rooms: testing.LocalService) -> None:
    rooms["ann"].options(timeout_s=SOON_S).say("it")


def new(rooms: testing.LocalService) -> None:
    rooms["new"].options(timeout_s=SOON_S).say("it")


def all_items(rooms: testing.LocalService) -> None:
    list(rooms["ann"].options(timeout_s=SOON_S).items())


def one_item(rooms: testing.LocalService) -> None:
    items = rooms["ann"].options(timeout_s=SOON_S).items()
    next(items)
    items.close()


def move(rooms: testing.LocalService) -> None:
    rooms.move("ann", timeout=SOON_S)


def fence(rooms: testing.LocalService) -> None:
    rooms.fence("ann", timeout=SOON_S)


def save(rooms: testing.LocalService) -> None:
    rooms["ann"].say("it")
    eventually(lambda: not Room.where, "it is to be saved")
    rooms["ann"].say("again")
    eventually(lambda: "again" in str(Shelf.states.get("ann")), "it is saved all the same")


WAYS: dict[str, Callable[[testing.LocalService], None]] = {
    "say": say,
    "__init__": new,
    "load": new,
    "items": all_items,
    "items' end": one_item,
    "on_release": move,
    "__getstate__": move,
    "__setstate__": move,
    "save": save,
    "on_lost": fence,
}


@pytest.mark.parametrize("where", WAYS)
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
@pytest.mark.parametrize("cls", [Room, AsyncRoom])
def test_what_users_code_raises_leaves_all_uids_served_and_free_to_move(
    cls: type[Room], error: type[BaseException], where: str, caplog: pytest.LogCaptureFixture
) -> None:
    shelf = AsyncShelf() if cls is AsyncRoom else Shelf()
    shelf.states.clear()
    kept = {"store": shelf, "save_every_s": 0.02} if where in ("load", "save") else {}
    with testing.local(cls, per_uid=True, **kept) as rooms:
        assert rooms["ann"].say("hi") == ["hi"]
        Room.where, Room.error = where, error
        begun = now()
        told: BaseException | None = None
        try:
            WAYS[where](rooms)
        except (RouteError, RuntimeError, error) as raised:
            told = raised
        assert not Room.where, "it was raised"
        assert now() < begun + SOON_S / 2, told
        assert not isinstance(told, error), "it is told as an error of ours"
        check(rooms, begins_anew=where == "on_lost")
        if error is not asyncio.CancelledError and where != "__setstate__":
            assert "leaves: " in caplog.text
        assert rooms.close() == []


@pytest.mark.parametrize("error", [OSError, SystemExit, KeyboardInterrupt, asyncio.CancelledError])
@pytest.mark.parametrize("cls", [Room, AsyncRoom])
def test_a_state_is_saved_whatever_its_on_release_raises(
    cls: type[Room], error: type[BaseException]
) -> None:
    """It goes nowhere else: nobody has used it."""
    shelf = AsyncShelf() if cls is AsyncRoom else Shelf()
    shelf.states.clear()
    with testing.local(cls, per_uid=True, store=shelf, save_every_s=3600.0) as rooms:
        assert rooms["ann"].say("hi") == ["hi"]
        Room.where, Room.error = "on_release", error
        rooms.idle("ann", timeout=SOON_S)
        assert not Room.where, "it was raised"
        assert shelf.states["ann"]["said"] == ["hi"]
        assert rooms["ann"].say("ho") == ["hi", "ho"]


class SlowRoom(AsyncRoom):
    """One whose end never comes by itself."""

    ended: ClassVar[list[str]] = []

    async def on_release(self) -> None:  # type: ignore[override]
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)  # it may take its time for that
            self.ended.append(self.uid)


@pytest.mark.parametrize("store", [None, AsyncShelf()])
def test_a_state_goes_on_though_its_on_release_was_over_its_limit(store: Any) -> None:
    Shelf.states.clear()
    with testing.local(SlowRoom, per_uid=True, release_s=0.05, store=store) as rooms:
        assert rooms["ann"].say("hi") == ["hi"]
        SlowRoom.ended.clear()
        rooms.move("ann", timeout=SOON_S)
        assert SlowRoom.ended == ["ann"], "nothing of it runs beside what comes next"
        assert rooms["ann"].say("ho") == ["hi", "ho"]


def check(rooms: testing.LocalService, *, begins_anew: bool) -> None:
    """Find all uids served, and what was said going along."""
    for uid in ("bob", "ann", "new"):
        room = rooms[uid].options(timeout_s=SOON_S)
        said = room.say("here")
        rooms.move(uid, timeout=SOON_S)
        assert room.say("there") == [*said, "there"]
        assert list(room.items()) == ["first", "last"]
        assert uid != "ann" or begins_anew or said[0] == "hi"
