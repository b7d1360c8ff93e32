"""Orders to agents, and their answers.

An agent may live in any process that has joined Ray, which nothing can call. So it fetches its
commands, by a call to the router that returns when there are some. A connection may break under
that call, and its answer is lost; so each command comes again until its agent says that it has it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from ray_route.protocol.commands import Address, Command, Numbered, Outcome, Release, Take, Taken


class NoAnswerError(Exception):
    """The agent did not answer in time, or its life has ended."""


class Followed:
    """What becomes of the uids of one command, as its agent tells; `hears` is told each at once."""

    def __init__(self, number: int, hears: Callable[[Any], None]) -> None:
        self.number = number
        self._hears = hears
        self._told: list[Any] = []
        self._problem = ""
        self._wake = asyncio.Event()

    async def some(self, timeout_s: float) -> list[Any]:
        """Return outcomes as soon as there are any; raise `NoAnswerError` if none come."""
        if not self._told and not self._problem:
            try:
                await asyncio.wait_for(self._wake.wait(), timeout_s)
            except asyncio.TimeoutError:
                raise NoAnswerError(f"no answer within {timeout_s:g} s") from None
        if not self._told:
            raise NoAnswerError(self._problem)
        some, self._told = self._told, []
        self._wake.clear()
        return some

    def told(self) -> list[Any]:
        """Return what has been told since; nothing if nothing has."""
        some, self._told = self._told, []
        self._wake.clear()
        return some

    async def some_or_none(self, timeout_s: float) -> list[Any]:
        """Return outcomes as soon as there are any; none if that takes longer.

        Raises `NoAnswerError` if the agent's life has ended.
        """
        try:
            return await self.some(timeout_s)
        except NoAnswerError:
            if self._problem:
                raise
            return []

    def tell(self, outcome: Outcome | Taken) -> None:
        """Take one in."""
        self._hears(outcome)
        self._told.append(outcome)
        self._wake.set()

    def end(self, problem: str) -> None:
        """Let whoever waits go: no more will come."""
        self._problem = problem
        self._wake.set()


@dataclass(slots=True)
class _Box:
    commands: dict[int, Command] = field(default_factory=dict)
    """By their numbers, in the order in which they were posted."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    answers: dict[int, asyncio.Future[Any]] = field(default_factory=dict)
    outcomes: dict[int, Followed] = field(default_factory=dict)

    def drop(self, numbers: Collection[int]) -> None:
        """Send some commands no more."""
        for number in numbers:
            self.commands.pop(number, None)


class Mailboxes:
    """One box per living agent. Belongs to one event loop."""

    def __init__(self) -> None:
        self._boxes: dict[Address, _Box] = {}
        # Another router's numbers differ: an answer to one must not pass for one to another.
        self._numbers = count(random.getrandbits(48))

    async def fetch(
        self, address: Address, wait_s: float, had: Collection[int] = ()
    ) -> list[Numbered]:
        """Return the commands for an agent, waiting up to `wait_s` seconds for some.

        `had` are the numbers of those that it has; all others come, again if need be.
        """
        box = self._boxes.setdefault(address, _Box())
        box.drop(had)
        if not box.commands:
            try:
                await asyncio.wait_for(box.wake.wait(), wait_s)
            except asyncio.TimeoutError:
                return []
        box.wake.clear()
        return list(box.commands.items())

    async def ask(self, address: Address, command: Command, timeout_s: float) -> Any:
        """Post a command and return its answer; raise `NoAnswerError`."""
        number = self.post(address, command)
        box = self._boxes[address]
        future = asyncio.get_running_loop().create_future()
        box.answers[number] = future
        try:
            return await asyncio.wait_for(future, timeout_s)
        except asyncio.TimeoutError:
            raise NoAnswerError(f"no answer within {timeout_s:g} s") from None
        finally:
            box.answers.pop(number, None)
            box.drop((number,))

    @contextmanager
    def following(
        self,
        address: Address,
        command: Release | Take,
        hears: Callable[[Any], None] = lambda _: None,
    ) -> Iterator[Followed]:
        """Post a command that is answered uid by uid, and provide what becomes of each.

        What has been told may be told again. Afterwards nobody need carry it out who has not yet.
        """
        number = self.post(address, command)
        box = self._boxes[address]
        outcomes = box.outcomes[number] = Followed(number, hears)
        try:
            yield outcomes
        finally:
            box.outcomes.pop(number, None)
            box.drop((number,))

    def take_outcomes(self, address: Address, outcomes: Iterable[Outcome | Taken]) -> None:
        """Take in what an agent tells; what nobody waits for any more is dropped."""
        box = self._boxes.get(address)
        for outcome in outcomes if box else ():
            waiting = box.outcomes.get(outcome.release) if box else None
            if waiting is not None:
                waiting.tell(outcome)

    def post(self, address: Address, command: Command) -> int:
        """Post a command without waiting for an answer."""
        box = self._boxes.setdefault(address, _Box())
        number = next(self._numbers)
        box.commands[number] = command
        box.wake.set()
        return number

    def answer(self, address: Address, number: int, result: Any) -> None:
        """Take in an answer; one that nobody waits for any more is dropped."""
        box = self._boxes.get(address)
        future = box.answers.get(number) if box else None
        if future is not None and not future.done():
            future.set_result(result)

    def end(self, service: str, pod: int, up_to_incarnation: int) -> None:
        """Forget lives of a pod that have ended; whoever waits for one gets `NoAnswerError`."""
        for address in list(self._boxes):
            if address[:2] == (service, pod) and address[2] <= up_to_incarnation:
                self._end(self._boxes.pop(address))

    def end_all(self) -> None:
        """Forget every agent, and let those that wait for commands go."""
        for address in list(self._boxes):
            self._end(self._boxes.pop(address))

    def wake_all(self) -> None:
        """Let the agents that wait for commands go: there is other news."""
        for box in self._boxes.values():
            box.wake.set()

    def _end(self, box: _Box) -> None:
        box.wake.set()  # a process that waits for commands may want to end
        for future in box.answers.values():
            if not future.done():
                future.set_exception(NoAnswerError("its life has ended"))
        for outcomes in box.outcomes.values():
            outcomes.end("its life has ended")
