"""States that are saved now and then, each in a turn of its uid."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import count
from typing import Any

import pytest
from helpers import soon
from test_interrupted_pods import LIFE, PATIENCE_S, TurnPod

import ray_route
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


class Talk(Room):
    """One whose calls may stay without a thread."""

    stays = ("",)

    async def say(self, _: str) -> int:  # type: ignore[override]
        while self.uid in self.stays:  # noqa: ASYNC110 - the test changes it by and by
            await asyncio.sleep(EVERY_S)  # and looks at that all the while
        self.said += 1
        return self.said

    @ray_route.interleave
    async def nod(self, _: str) -> int:
        self.said += 1
        return self.said


class SlowStore(Store):
    """One that waits before it saves what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.goes_on = asyncio.Event(), asyncio.Event()

    async def save(self, uid: str, epoch: int, state: Any) -> None:  # type: ignore[override]
        state = dict(state)
        self.begun.set()
        await self.goes_on.wait()
        super().save(uid, epoch, state)


class SavingPod(TurnPod):
    """A pod of such objects, one of which is called."""

    def __init__(self, cls: type = Room) -> None:
        super().__init__(cls, on_loop=cls is Talk)
        self.store = self.instances.store = Store()
        self.instances.epoch_of = lambda _: self.epoch
        self.saver = Saver(self.calls, self.instances, EVERY_S)
        self.places = count()

    async def called(self) -> Any:
        return await self.say(1, next(self.places))

    async def talked(self, uid: str, method: str = "say") -> Any:
        return await self.calls.call([uid, self.epoch, LIFE, method, 0, 0], ("hello",), {})


Story = Callable[[SavingPod], Awaitable[None]]


def play(story: Story, cls: type = Room) -> None:
    async def main() -> None:
        pod = SavingPod(cls)
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


def test_those_whose_turns_do_not_come_keep_no_other_from_being_saved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stream may last for an hour, and a crash costs others no more than is promised."""
    busy = [f"busy{number}" for number in range(20)]

    async def story(pod: SavingPod) -> None:
        def saved(uid: str, said: int) -> bool:
            return (uid, pod.epoch, said) in pod.store.saved

        pod.store.refuses = 10**9
        for uid in busy:
            assert await pod.talked(uid) == 1
        monkeypatch.setattr(Talk, "stays", busy)
        staying = [asyncio.create_task(pod.talked(uid)) for uid in busy]
        turns = pod.calls._turns
        has_turn = {(uid, "say") for uid in busy}
        await soon(
            lambda: {(u, name) for u in busy for name, _ in turns.running(u)} == has_turn,
            "all of them stay",
        )
        await soon(lambda: turns.waiting, "saves wait for their turns")
        pod.store.refuses = 0
        for said in (1, 2):
            assert await pod.talked("other") == said
            await soon(partial(saved, "other", said), "it is saved all the while")
        assert not any(uid in busy for uid, _, _ in pod.store.saved)
        monkeypatch.setattr(Talk, "stays", ())
        assert await asyncio.gather(*staying) == [2] * len(busy)
        await soon(lambda: all(saved(uid, 2) for uid in busy), "all are saved")
        await soon(lambda: not (pod.saver._saving or pod.saver._later), "nothing is left to do")

    play(story, Talk)


def test_what_comes_beside_a_save_is_saved_by_the_next() -> None:
    async def story(pod: SavingPod) -> None:
        pod.instances.store = pod.store = store = SlowStore()
        assert await pod.talked("ann") == 1
        await asyncio.wait_for(store.begun.wait(), PATIENCE_S)
        assert await pod.talked("ann", "nod") == 2
        await soon(lambda: not pod.calls.called, "a round comes while it is being saved")
        store.goes_on.set()
        await soon(lambda: [said for *_, said in store.saved] == [1, 2], "both are saved")

    play(story, Talk)


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
