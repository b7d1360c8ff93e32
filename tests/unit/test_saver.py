"""States that are saved now and then, each in a turn of its uid."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

import pytest
from helpers import soon
from test_interrupted_pods import PATIENCE_S, TurnPod

from ray_route.pod.saver import Saver

EVERY_S = 0.01


class Store:
    """Notes what was saved, and whether a call ran beside; refuses what it is told to."""

    def __init__(self) -> None:
        self.saved: list[tuple[str, int, int]] = []
        self.refuses = 0
        self.beside = 0

    def load(self, uid: str, epoch: int) -> None:  # noqa: ARG002 - the store's own interface
        return None

    def save(self, uid: str, epoch: int, state: Any) -> None:
        self.beside += state["inside"]
        if self.refuses:
            self.refuses -= 1
            raise OSError("the store is away")
        self.saved.append((uid, epoch, state["said"]))


class Room:
    """An object in which a call may stay."""

    goes_on = threading.Event()

    def __init__(self, uid: str) -> None:
        self.uid, self.said, self.inside = uid, 0, False

    def say(self, _: str) -> int:
        self.inside = True
        assert self.goes_on.wait(60)
        self.inside = False
        self.said += 1
        return self.said


class SavingPod(TurnPod):
    """A pod of such objects, one of which is called."""

    def __init__(self) -> None:
        super().__init__(Room, on_loop=False)
        self.store = self.instances.store = Store()
        self.instances.epoch_of = lambda _: self.epoch
        self.saver = Saver(self.calls, self.instances, EVERY_S)
        self.places = count()

    async def called(self) -> Any:
        return await self.say(1, next(self.places))


Story = Callable[[SavingPod], Awaitable[None]]


def play(story: Story) -> None:
    async def main() -> None:
        pod = SavingPod()
        saving = asyncio.create_task(pod.saver.run())
        try:
            await asyncio.wait_for(story(pod), PATIENCE_S * 3)
        finally:
            Room.goes_on.set()
            saving.cancel()

    Room.goes_on.set()
    asyncio.run(main())


def test_what_was_called_is_saved_between_its_calls() -> None:
    async def story(pod: SavingPod) -> None:
        pod.store.refuses = 10**9
        assert await pod.called() == 1
        Room.goes_on.clear()
        second = asyncio.create_task(pod.called())
        await soon(lambda: pod.instances.of("u").inside, "the second runs")
        pod.store.refuses = 0
        await soon(lambda: pod.calls._turns.waiting, "the save waits for its turn")
        Room.goes_on.set()
        assert await second == 2
        await soon(lambda: (pod.store.saved or [0])[-1] == ("u", pod.epoch, 2), "it is saved")
        assert await pod.called() == 3
        await soon(lambda: pod.store.saved[-1][2] == 3, "it is saved again")
        said = [said for _, _, said in pod.store.saved]
        assert said == sorted(said)
        assert not pod.store.beside

    play(story)


def test_one_that_could_not_be_saved_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    async def story(pod: SavingPod) -> None:
        pod.store.refuses = 2
        assert await pod.called() == 1
        await soon(lambda: pod.store.saved == [("u", pod.epoch, 1)], "it is saved at last")
        assert "could not be saved" in caplog.text

    play(story)


def test_one_that_was_given_up_is_saved_no_more() -> None:
    async def story() -> None:
        pod = SavingPod()
        pod.store.refuses = 1
        assert await pod.called() == 1
        await pod.saver._save("u")
        assert pod.saver._later == {"u"}, "the store was away"
        pod.release()
        del pod.instances._of["u"]
        pod.saver._later.clear()
        await pod.saver._save("u")
        assert (pod.store.saved, pod.saver._later) == ([], set())

    Room.goes_on.set()
    asyncio.run(asyncio.wait_for(story(), PATIENCE_S))
