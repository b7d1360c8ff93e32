"""Who ends a pod that has not begun, and that pod, in every order in which their steps may come.

Where two end it there are too many orders: of those many are drawn.

What Ray's head and its messages do is played here, at their worst: a kill arrives at any time after
it was sent, and the process goes on for as long as it likes after that. The code is the real one.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from ray_route.pod import unbegun
from ray_route.pod.unbegun import end_unbegun, may_claim

POD: Any = SimpleNamespace(_actor_id=b"\x01")
WAIT_S = 30.0
_DRAWN = 1_000
_CHANGES = 0.2


class _Ended(BaseException):
    """The process in which this is raised has ended."""


@dataclass
class Order:
    """Threads that take their steps one at a time, in an order that was chosen beforehand.

    By number, or by name; or it is `drawn`, where that ends.
    """

    choices: list[int]
    by_name: list[str] = field(default_factory=list)
    drawn: random.Random | None = None
    options: list[int] = field(default_factory=list)
    """How many threads could have taken each step."""
    _turns: dict[str, SimpleQueue[None]] = field(default_factory=dict)
    _waiting: dict[str, Callable[[], bool]] = field(default_factory=dict)
    _stopped: SimpleQueue[None] = field(default_factory=SimpleQueue)
    """Is told of each thread that waits for its turn, or has ended."""
    _running: int = 0
    _speeds: dict[str, float] = field(default_factory=dict)

    def begin(self, name: str, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                with suppress(_Ended):
                    work()
            finally:
                self._stopped.put(None)

        self._turns[name] = SimpleQueue()
        self._running += 1
        threading.Thread(target=run, name=name, daemon=True).start()

    def step(self, may: Callable[[], bool] = lambda: True) -> None:
        """Wait until it is this thread's turn, which does not come before it `may` go on."""
        name = threading.current_thread().name
        self._waiting[name] = may
        self._stopped.put(None)
        self._turns[name].get(timeout=WAIT_S)

    def go(self) -> None:
        """Let all threads run to their ends."""
        while True:
            while self._running:
                self._stopped.get(timeout=WAIT_S)
                self._running -= 1
            ready = sorted(name for name, may in self._waiting.items() if may())
            if not ready:
                assert not self._waiting, f"nobody lets {sorted(self._waiting)} go on"
                return
            at = len(self.options)
            self.options.append(len(ready))
            name = ready[self._choice(at, ready)]
            del self._waiting[name]
            self._running += 1
            self._turns[name].put(None)

    def _choice(self, at: int, ready: list[str]) -> int:
        if at < len(self.by_name):
            name = self.by_name[at]
            self.choices.append(ready.index(name) if name in ready else 0)
        elif at == len(self.choices):
            self.choices.append(0 if self.drawn is None else self._fastest(ready, self.drawn))
        return self.choices[at]

    def _fastest(self, ready: list[str], drawn: random.Random) -> int:
        """Draw one, as if threads were slow and fast for a while each."""
        if drawn.random() < _CHANGES:
            self._speeds.clear()
        speeds = [self._speeds.setdefault(name, drawn.random()) for name in ready]
        return speeds.index(max(speeds))


class World:
    """Ray's head, and the process of one pod that waits to begin."""

    def __init__(self, order: Order, *, patient: bool) -> None:
        self.order = order
        self.patient = patient
        """Who has killed waits until the head has heard of that, however long it takes."""
        self.state = "PENDING_CREATION"
        self.notes: dict[str, bytes] = {}
        self.lives = True
        self.claimed = False
        self.said: list[bool] = []
        self._kills = 0
        self._killers: set[str] = set()

    def pod(self) -> None:
        self.order.step()
        if self.state == "DEAD":
            self.lives = False
            return
        self.state = "ALIVE"
        if may_claim("its name"):
            self._step()
            self.claimed = True

    def ends_it(self) -> None:
        self.said.append(end_unbegun(POD))

    def kill(self, _: Any, *, no_restart: bool) -> None:
        assert no_restart
        self._kills += 1
        self._killers.add(threading.current_thread().name)
        self.order.begin(f"kill {self._kills}", self._arrive)

    def _arrive(self) -> None:
        self.order.step()
        self.state = "DEAD"
        self.order.step()
        self.lives = False

    def _step(self, may: Callable[[], bool] = lambda: True) -> None:
        self.order.step(may)
        if threading.current_thread().name == "pod" and not self.lives:
            raise _Ended

    def put(self, name: str, value: bytes) -> None:
        self._step()
        self.notes[name] = value

    def names(self, prefix: str) -> list[str]:
        self._step()
        return [name for name in self.notes if name.startswith(prefix)]

    def delete(self, name: str) -> None:
        self._step()
        self.notes.pop(name, None)

    def state_of(self, _: Any) -> str:
        waits = self.patient and threading.current_thread().name in self._killers
        self._step(lambda: not waits or self.state == "DEAD")
        return self.state


@pytest.fixture
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patched:
        yield patched


def played(patch: pytest.MonkeyPatch, order: Order, *, patient: bool, enders: int = 1) -> World:
    """Play one order of all steps; return what came of it."""
    world = World(order, patient=patient)
    context = SimpleNamespace(current_actor=POD)
    fake_ray = SimpleNamespace(
        kill=world.kill, exceptions=ray.exceptions, get_runtime_context=lambda: context
    )
    patch.setattr(unbegun, "ray", fake_ray)
    patch.setattr(unbegun, "head_notes", world)
    patch.setattr(unbegun, "state_of", world.state_of)
    # Names are cached: they may lead to what is dead by now.
    patch.setattr(unbegun, "leads_here", lambda _: True)
    patch.setattr(unbegun, "_DEAD_S", WAIT_S if patient else 0.0)
    for number in range(enders):
        order.begin(f"ends it {number}", world.ends_it)
    order.begin("pod", world.pod)
    order.go()
    return world


def every_order(patch: pytest.MonkeyPatch, *, patient: bool) -> Iterator[tuple[list[int], World]]:
    choices: list[int] | None = []
    while choices is not None:
        order = Order(choices)
        world = played(patch, order, patient=patient)
        yield order.choices, world
        choices = _next(order.choices, order.options)


def _next(taken: list[int], options: list[int]) -> list[int] | None:
    for at in reversed(range(len(taken))):
        if taken[at] + 1 < options[at]:
            return [*taken[:at], taken[at] + 1]
    return None


def way_of(world: World) -> str:
    """Say what came of a pod; it is told so, and has no users that it loses."""
    if any(world.said):
        assert not world.claimed
        assert world.state == "DEAD"
        return "ended"
    if world.claimed:
        assert world.lives
        assert world.state == "ALIVE"
        return "spared"
    assert not world.lives
    return "ended itself"


BOTH = pytest.mark.parametrize("patient", [True, False], ids=["heard of", "not heard of in time"])


@pytest.mark.slow
@BOTH
def test_what_was_ended_had_claimed_nothing_in_whichever_order(
    patch: pytest.MonkeyPatch, patient: bool
) -> None:
    ways = {"ended": 0, "spared": 0, "ended itself": 0}
    for taken, world in every_order(patch, patient=patient):
        print(taken)  # shown if it fails: the last one
        ways[way_of(world)] += 1
        assert world.notes == {} or (any(world.said) and not patient)
    print(ways)
    assert min(ways.values()) > 0


def test_who_spares_a_pod_does_not_have_it_live_that_another_is_about_to_end(
    patch: pytest.MonkeyPatch,
) -> None:
    first, second = "ends it 0", "ends it 1"
    # Both look; the first notes, looks again and kills; then the second notes, and finds it alive.
    steps = [second, first, first, first, "pod", second, second, second, "pod", "pod", "pod"]
    world = played(patch, Order([], steps), patient=True, enders=2)
    assert way_of(world) == "ended"
    assert world.notes == {}


@pytest.mark.slow
@BOTH
def test_what_two_have_ended_had_claimed_nothing_either(
    patch: pytest.MonkeyPatch, patient: bool
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    drawn = random.Random(seed)
    ways = {"ended": 0, "spared": 0, "ended itself": 0}
    for _ in range(_DRAWN):
        order = Order([], drawn=drawn)
        world = played(patch, order, patient=patient, enders=2)
        print(order.choices)
        ways[way_of(world)] += 1
    print(ways)
    assert min(ways.values()) > 0
