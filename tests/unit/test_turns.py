"""Turns: of one uid one call at a time, in order, fair, and open to what a call leads back."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from helpers import ManualClock, soon
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_route.errors import FencedError
from ray_route.pod.turns import WAITING, Ticket, Turns


def ok() -> None:
    """No call is refused."""


def joined(turns: Turns, uid: str = "ann", run: int = 0, chain: tuple[int, ...] = ()) -> Ticket:
    ticket = turns.join(uid, "say", chain, run, ok)
    assert ticket is not None
    return ticket


def on_loop(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(asyncio.wait_for(test(), 60))  # type: ignore[arg-type]

    run.__name__ = test.__name__  # type: ignore[attr-defined]
    return run


@on_loop
async def test_a_call_waits_for_the_one_before_and_other_uids_for_none() -> None:
    turns = Turns()
    first, second, other = joined(turns), joined(turns), joined(turns, "bob")
    assert first.turn
    assert other.turn
    assert second.turn is None
    first.turn.end()
    turn = await second.wait(None)
    turn.end()
    other.turn.end()
    assert len(turns) == turns.waiting == 0


@on_loop
async def test_runs_take_turn_about_and_each_keeps_its_order() -> None:
    turns = Turns()
    first = joined(turns).turn
    waiting = [joined(turns, run=run) for run in (1, 1, 1, 2, 2, 3)]
    order: list[Ticket] = []
    assert first
    first.end()
    while len(order) < len(waiting):
        ready = [one for one in waiting if one.turn and one not in order]
        assert len(ready) == 1
        order += ready
        assert ready[0].turn
        ready[0].turn.end()
    assert [one.run for one in order] == [1, 2, 3, 1, 2, 1]
    assert [one for one in order if one.run == 1] == waiting[:3]


@on_loop
async def test_a_call_that_comes_back_is_let_in_and_its_siblings_one_at_a_time() -> None:
    turns = Turns()
    outer = joined(turns).turn
    assert outer
    behind = joined(turns)
    chain = (outer.number,)
    one, two = joined(turns, chain=chain), joined(turns, chain=chain)
    assert one.turn
    assert one.turn.is_within
    assert two.turn is None
    within = joined(turns, chain=(*chain, one.turn.number))
    assert within.turn
    outer.end()  # those within have not ended
    one.turn.end()
    assert two.turn is None
    within.turn.end()
    assert two.turn
    assert behind.turn is None
    two.turn.end()
    assert behind.turn
    behind.turn.end()
    assert len(turns) == 0


@on_loop
async def test_the_chain_of_a_turn_that_has_ended_opens_nothing() -> None:
    turns = Turns()
    before = joined(turns).turn
    assert before
    before.end()
    running = joined(turns).turn
    late = joined(turns, chain=(before.number,))
    assert running
    assert late.turn is None
    running.end()
    assert late.turn
    assert not late.turn.is_within


@on_loop
async def test_who_gives_up_waits_no_more_and_a_turn_that_came_too_late_is_passed_on() -> None:
    turns = Turns()
    first = joined(turns).turn
    assert first
    gives_up, cancelled, last = joined(turns, run=1), joined(turns, run=1), joined(turns, run=1)
    with pytest.raises(asyncio.TimeoutError):
        await gives_up.wait(0.01)
    task = asyncio.create_task(cancelled.wait(None))
    await asyncio.sleep(0)
    first.end()  # its turn has come
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (await last.wait(None)).end()
    assert len(turns) == turns.waiting == 0


@on_loop
async def test_those_that_are_refused_by_now_are_turned_away_but_not_those_within() -> None:
    turns = Turns()
    refused: list[str] = []

    def refusal() -> Exception | None:
        return FencedError(reason="gone", may_have_run=False) if refused else None

    first = joined(turns).turn
    assert first
    waits = turns.join("ann", "say", (), 1, refusal)
    within = turns.join("ann", "say", (first.number,), 0, refusal)
    behind = turns.join("ann", "say", (first.number,), 0, refusal)
    assert waits
    assert within
    assert within.turn
    assert behind
    refused.append("now")
    turns.turn_away(None)
    with pytest.raises(FencedError):
        await waits.wait(None)
    assert behind.future
    assert not behind.future.done()
    with pytest.raises(FencedError):
        turns.join("ann", "say", (), 0, refusal)
    late = turns.join("ann", "say", (first.number,), 0, refusal)  # that came back only now
    assert late
    within.turn.end()
    (await behind.wait(None)).end()
    (await late.wait(None)).end()
    first.end()
    assert len(turns) == turns.waiting == 0


@on_loop
async def test_no_caller_takes_all_places_and_many_waiting_leave_one_for_each_uid() -> None:
    turns = Turns(most=WAITING + 10)
    running = joined(turns).turn
    for _ in range(WAITING):
        joined(turns, run=1)
    assert turns.join("ann", "say", (), 1, ok) is None
    assert turns.join("ann", "say", (), 0, ok) is None
    joined(turns, run=2)  # another caller has its share
    assert running
    joined(turns, run=0, chain=(running.number,))  # what came back is never busy
    joined(turns, run=0, chain=(running.number,))
    for n in range(20):
        joined(turns, f"u{n}")
        joined(turns, f"u{n}")
    assert turns.are_many
    joined(turns, run=0, chain=(running.number,))  # not even now
    assert turns.join("u0", "say", (), 3, ok) is None
    joined(turns, "new")


@on_loop
async def test_it_says_what_has_the_turn_and_for_how_long() -> None:
    clock = ManualClock()
    turns = Turns(clock=clock)
    outer = turns.join("ann", "outer", (), 0, ok)
    assert outer
    assert outer.turn
    clock.tick(3)
    turns.join("ann", "inner", (outer.turn.number,), 0, ok)
    clock.tick(1)
    assert list(turns.running("ann")) == [("outer", 4.0), ("inner", 1.0)]
    assert list(turns.running("bob")) == []


@on_loop
async def test_a_call_beside_the_turns_opens_the_gate_while_it_runs() -> None:
    turns = Turns()
    one = turns.beside("ann", ())
    assert not one.is_within
    assert turns.is_within("ann", (one.number,))
    assert not turns.is_within("bob", (one.number,))
    one.end()
    assert not turns.is_within("ann", (one.number,))


class World:
    """Calls of random length that call each other's uids, and what ran beside what."""

    def __init__(self, seed: int) -> None:
        self.turns = Turns()
        self.random = random.Random(seed)
        self.running: dict[str, list[tuple[int, ...]]] = {}
        self.begun: dict[tuple[int, str], list[int]] = {}
        self.ended = 0

    async def call(
        self, uid: str, chain: tuple[int, ...], run: int, place: int, depth: int
    ) -> None:
        ticket = self.turns.join(uid, "say", chain, run, ok)
        if ticket is None:  # it is busy
            return
        patience_s = self.random.choice([None, None, 0.0, 0.001])
        try:
            turn = await ticket.wait(patience_s)
        except asyncio.TimeoutError:
            return
        own = (*chain, turn.number)
        for other in self.running.setdefault(uid, []):
            assert other == own[: len(other)], "two calls of a uid overlap"
        self.running[uid].append(own)
        if run:
            assert self.begun.setdefault((run, uid), []) == sorted(self.begun[run, uid])
            self.begun[run, uid].append(place)
        try:
            await self._work(own, depth)
        finally:
            self.running[uid].remove(own)
            turn.end()
            self.ended += 1

    async def _work(self, own: tuple[int, ...], depth: int) -> None:
        for _ in range(self.random.randrange(3)):
            await asyncio.sleep(0)
        if depth < 3 and self.random.random() < 0.6:
            uids = self.random.choices("abc", k=self.random.randrange(1, 3))
            uids = [uid for uid in uids if self._may(uid, own)]
            # Two at once, which call others, may wait for each other as any two may.
            below = depth + 1 if len(uids) == 1 else 3
            await asyncio.gather(*[self.call(uid, own, 0, 0, below) for uid in uids])

    def _may(self, uid: str, own: tuple[int, ...]) -> bool:
        """Two that wait for each other's uid would do so for ever: go up the alphabet, or back."""
        mine = {
            name for name, all_here in self.running.items() for one in all_here if one[-1] in own
        }
        return uid in mine or uid > max(mine)


@settings(max_examples=150, deadline=None)
@given(st.integers())
def test_random_calls_never_overlap_and_keep_their_order(seed: int) -> None:
    world = World(seed)

    async def go() -> None:
        calls = [
            world.call(world.random.choice("abc"), (), run, place, 0)
            for place in range(8)
            for run in (1, 2, 3)
        ]
        tasks = [asyncio.ensure_future(call) for call in calls]
        world.random.choice(tasks).cancel()
        results: list[Any] = await asyncio.wait_for(
            asyncio.gather(*tasks, return_exceptions=True), 60
        )
        wrong = [one for one in results if isinstance(one, AssertionError | asyncio.TimeoutError)]
        assert not wrong
        await soon(lambda: len(world.turns) == 0, "nothing is left")
        assert world.turns.waiting == 0
        assert all(places == sorted(places) for places in world.begun.values())

    asyncio.run(go())
