"""Services in a user's own process, where a Ctrl-C or a notebook's stop comes at any line."""

from __future__ import annotations

import concurrent.futures._base
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any

import pytest
from helpers import eventually
from interrupting import at_every_line
from leftovers import workers

from ray_route import testing
from ray_route.runtime import futures, given_up
from ray_route.testing import (
    local_calls,
    local_directory,
    local_mailbox,
    local_moves,
    local_pod,
    local_router,
)

PATIENCE_S = 20.0
LOCAL_ALONE = import_module("ray_route.testing.local")  # whose name is the function's, too
ROOMS = (local_calls, local_directory, local_mailbox, local_moves, local_pod, local_router)
LOCAL = (LOCAL_ALONE, *ROOMS, futures, given_up)
OF_PYTHON = (concurrent.futures._base, threading)
THREADS = ("ray_route-local", "ray_route-release", "ray_route-commands", "ray_route-tell")


class Room:
    """One object for each uid."""

    def __init__(self, _: str) -> None:
        self.said = 0

    def say(self) -> int:
        self.said += 1
        return self.said

    def items(self) -> Iterator[int]:
        yield from range(2)


def say(rooms: testing.LocalService) -> None:
    rooms["ann"].say()


def items(rooms: testing.LocalService) -> None:
    list(rooms["ann"].items())


def move(rooms: testing.LocalService) -> None:
    rooms.move("ann", timeout=PATIENCE_S)


def fence(rooms: testing.LocalService) -> None:
    rooms.fence("ann", timeout=PATIENCE_S)


def idle(rooms: testing.LocalService) -> None:
    rooms.idle("ann", timeout=PATIENCE_S)


def remove(rooms: testing.LocalService) -> None:
    rooms.remove("ann", timeout=PATIENCE_S)


def kill(rooms: testing.LocalService) -> None:
    rooms.kill(0)


def elsewhere(work: Callable[[], Any]) -> Any:
    """Run something in another thread; it must not wait for ever."""
    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(work).result(2 * PATIENCE_S)
    finally:
        pool.shutdown(wait=False)


@pytest.mark.slow
@pytest.mark.parametrize("verb", [say, items, move, fence, idle, remove, kill])
def test_whoever_is_interrupted_anywhere_leaves_a_service_sound(
    verb: Callable[[testing.LocalService], None],
) -> None:
    keeps = verb in (say, items, move)
    modules = (*LOCAL, *OF_PYTHON) if verb is say else LOCAL
    with testing.local(Room, per_uid=True) as rooms:
        said = [rooms["ann"].say()]

        def check() -> None:
            eventually(lambda: not workers(), "what was begun has come to its end")
            room = rooms["ann"].options(timeout_s=PATIENCE_S)
            said.append(elsewhere(room.say))
            assert not keeps or said[-1] > said[-2], "its state goes along"
            elsewhere(lambda: move(rooms))
            said.append(elsewhere(room.say))
            # What was interrupted goes on: so the state may go only now.
            assert said[-1] == said[-2] + 1 or (not keeps and said[-1] == 1)

        # What a trace function raises in an `except` that returns leaves its frames alive for ever,
        # and with them a stream that would be closed as it is dropped.
        spared = {"_check_not_on_loop"}
        assert at_every_line(lambda: verb(rooms), check, *modules, spared=spared) > 5


def threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith(THREADS)]


@pytest.mark.slow
def test_a_service_is_closed_wherever_who_has_it_is_interrupted() -> None:
    def work() -> None:
        with testing.local(Room, per_uid=True, pods=1):
            pass

    def check() -> None:
        eventually(lambda: not threads(), "all has ended")

    check()
    assert at_every_line(work, check, LOCAL_ALONE, futures, given_up, stride=3) > 10
