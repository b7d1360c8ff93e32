"""Commands of a router to a pod, by connections that break."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from ray_route.protocol.commands import Outcome, Release, Show
from ray_route.router.mailbox import Mailboxes, NoAnswerError

POD = ("rooms", 0, 7)
RELEASE = Release({"ann": 100}, 5.0, closes=True)


def play(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, 60))


def test_a_command_whose_answer_was_lost_comes_again_until_its_pod_has_it() -> None:
    async def story() -> None:
        boxes = Mailboxes()
        with boxes.following(POD, RELEASE) as told:
            lost = await boxes.fetch(POD, 60)
            assert await boxes.fetch(POD, 60) == lost == [(told.number, RELEASE)]
            later = boxes.post(POD, Show())
            assert await boxes.fetch(POD, 60, [told.number]) == [(later, Show())]
            assert await boxes.fetch(POD, 0.01, [later]) == []

    play(story())


def test_two_questions_at_once_are_told_the_same() -> None:
    async def story() -> None:
        boxes = Mailboxes()
        given_up = asyncio.create_task(boxes.fetch(POD, 60))
        await asyncio.sleep(0)
        asked = asyncio.create_task(boxes.fetch(POD, 60))
        await asyncio.sleep(0)
        number = boxes.post(POD, Show())
        assert await asked == await given_up == [(number, Show())]

    play(story())


def test_nobody_carries_out_what_nobody_waits_for() -> None:
    async def story() -> None:
        boxes = Mailboxes()
        with boxes.following(POD, RELEASE):
            pass
        assert await boxes.fetch(POD, 0.01) == []

    play(story())


def test_what_is_told_twice_is_heard_of() -> None:
    async def story() -> None:
        boxes = Mailboxes()
        with boxes.following(POD, RELEASE) as told:
            outcome = Outcome(told.number, "ann", 100, given=True)
            for _ in range(2):
                boxes.take_outcomes(POD, [outcome])
            assert (await told.some(60))[0] == outcome

    play(story())


def test_what_is_told_meanwhile_is_heard_once() -> None:
    async def story() -> None:
        boxes = Mailboxes()
        with boxes.following(POD, RELEASE) as told:
            outcomes = [Outcome(told.number, uid, 100, given=True) for uid in ("ann", "bob")]
            assert told.told() == []
            boxes.take_outcomes(POD, outcomes[:1])
            assert await told.some(60) == outcomes[:1]
            boxes.take_outcomes(POD, outcomes[1:])
            assert told.told() == outcomes[1:]
            with pytest.raises(NoAnswerError, match="no answer within"):  # it waits, as it should
                await told.some(0.01)

    play(story())
