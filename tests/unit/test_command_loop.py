"""What a pod is told of links it has seen, before it acts on it."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import pytest
from helpers import ManualClock, eventually
from test_admission_rules import Pod

from ray_route.model import RoutingState
from ray_route.pod import command_loop
from ray_route.pod.admission import Told
from ray_route.pod.command_loop import CommandLoop
from ray_route.protocol.commands import Command, EndAt, Fetched, Kinds, Recall, Release, Settled
from ray_route.store.keys import Keys

HERE = ("svc", 0, 7)
KEYS = Keys("ns", 4)


class Namespace:
    """Plays a router that has one command for a pod, and notes what that has seen by then."""

    name = "ns"
    fails = False

    def __init__(self, command: Command) -> None:
        self.keys = KEYS
        self.seen: set[tuple[int, int]] = set()
        self._commands = [(1, command)]
        self._answered = threading.Event()

    def ask_now(self, method: str, *_: Any, timeout_s: float) -> Any:
        if method != "fetch_commands":
            return None
        if not self._commands:
            self._answered.wait(timeout_s)
        commands = self._commands
        if not self.fails:  # else it asks again, and has them again
            self._commands = []
        return Fetched(3, RoutingState.READY, commands, "")

    def hear_of_servers(self, _: str) -> None:
        if self.fails:
            self.fails = False
            raise RuntimeError("dictionary changed size during iteration")

    def all_seen(self) -> list[int]:
        return []

    def find_router(self) -> None:
        pass

    def saw_all(self, seen: Iterable[tuple[int, int]]) -> None:
        self.seen.update(seen)

    def let_go(self) -> None:
        self._answered.set()


@pytest.mark.parametrize(
    ("command", "verb"),
    [
        (Settled({"u": (100, 200), "gone": (300, 0)}), "settled"),
        (Release({"u": 200, "gone": 300}, 1.0, closes=False), "release"),
        (EndAt({"u": 200, "gone": 300}, 60.0), "end_at"),
        (Kinds({"u": (200, True), "gone": (300, False)}), "set_kinds"),
    ],
    ids=["settled", "release", "end_at", "set_kinds"],
)
def test_no_server_that_lacks_what_a_command_says_is_believed_from_then_on(
    command: Command, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod, namespace = Pod(ManualClock()), Namespace(command)
    wanted = {(namespace.keys.shard("u"), 200), (namespace.keys.shard("gone"), 300)}
    known: list[set[tuple[int, int]]] = []

    def note(*_: Any, **__: Any) -> None:
        known.append(set(namespace.seen))

    by = command_loop if verb == "set_kinds" else pod.releases
    monkeypatch.setattr(by, verb, note)
    loop = CommandLoop(namespace, HERE, pod.held, pod.releases, None)  # type: ignore[arg-type]
    eventually(lambda: known, "the command is carried out")
    loop.end()
    namespace.let_go()
    assert known[0] == wanted


def test_a_removal_of_a_link_that_replaced_another_is_due_no_later_than_that_ones() -> None:
    pod, sooner = Pod(ManualClock()), 5.0  # long before what a machine's clock says
    pod.releases.end_at("u", 100, sooner)
    namespace = Namespace(EndAt({"u": 200}, 60.0, replaced={"u": 100}))
    loop = CommandLoop(namespace, HERE, pod.held, pod.releases, None)  # type: ignore[arg-type]
    eventually(lambda: pod.held.scheduled.of("u") == (200, sooner), "the command is carried out")
    loop.end()
    namespace.let_go()


def test_commands_outlive_what_nobody_has_thought_of(monkeypatch: pytest.MonkeyPatch) -> None:
    pod, namespace = Pod(ManualClock()), Namespace(Release({"u": 200}, 1.0, closes=False))
    namespace.fails = True
    done: list[int] = []
    monkeypatch.setattr(pod.releases, "release", lambda number, *_, **__: done.append(number))
    loop = CommandLoop(namespace, HERE, pod.held, pod.releases, None)  # type: ignore[arg-type]
    eventually(lambda: done, "the command is carried out")
    loop.end()
    namespace.let_go()
    assert done == [1]


@pytest.mark.parametrize(
    ("shards", "other"),
    [([KEYS.shard("late")], Told.ACQUIRE), (range(4), Told.VOID), ([], Told.VOID)],
    ids=["one", "all", "a router begins"],
)
def test_whoever_has_been_told_all_of_a_shard_finds_nothing_added_that_was_read_before(
    shards: Iterable[int], other: Told
) -> None:
    """One that begins has been told what it is to find lost."""
    clock = ManualClock()
    pod, namespace = Pod(clock), Namespace(Recall(frozenset(shards)))
    asked_at = clock()
    loop = CommandLoop(namespace, HERE, pod.held, pod.releases, None)  # type: ignore[arg-type]
    eventually(lambda: pod.held.recalls.at("late") == clock(), "all is told")
    loop.end()
    namespace.let_go()
    assert pod.confirm("late", 120, asked_at=asked_at) is Told.VOID
    assert KEYS.shard("other") != KEYS.shard("late")
    assert pod.confirm("other", 120, asked_at=asked_at) is other
