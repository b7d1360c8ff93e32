"""What a pod of a service without Ray is told to do, and what it says of that."""

from __future__ import annotations

import queue
from concurrent.futures import Future
from concurrent.futures import TimeoutError as LateError
from itertools import count
from typing import Any

from ray_route.clock import Deadline
from ray_route.errors import PodUnavailableError
from ray_route.protocol.commands import Command


class Mailbox:
    """Commands to one pod, and what it says of each."""

    def __init__(self) -> None:
        self._commands: queue.SimpleQueue[tuple[int, Command] | None] = queue.SimpleQueue()
        self._answers: dict[int, Future[Any]] = {}
        self._numbers = count(1)
        self._is_closed = False

    def ask(self, command: Command, deadline: Deadline, what: str) -> Any:
        """Send a command that concerns one uid; wait for what became of it."""
        number, answer = next(self._numbers), Future[Any]()
        self._answers[number] = answer  # before the look: one of the two sees the other
        try:
            if self._is_closed:
                raise _ended()
            self._commands.put((number, command))
            return answer.result(deadline.remaining())
        except LateError:
            raise deadline.passed(what) from None
        finally:
            self._answers.pop(number, None)

    def fetch(self, within_s: float) -> list[tuple[int, Command]]:
        """Return the next command, as soon as there is one."""
        try:
            one = self._commands.get(timeout=within_s)
        except queue.Empty:
            return []
        return [] if one is None else [one]

    def answer(self, number: int, said: Any) -> None:
        """Take in what a pod says of a command."""
        waiting = self._answers.get(number)
        if waiting is not None and not waiting.done():
            waiting.set_result(said)

    def close(self) -> None:
        """Let who fetches go, and who asks; nobody is told anything any more."""
        self._is_closed = True
        self._commands.put(None)
        for waiting in list(self._answers.values()):
            if not waiting.done():
                waiting.set_exception(_ended())


def _ended() -> PodUnavailableError:
    return PodUnavailableError(reason="the pod has ended", may_have_run=False)
