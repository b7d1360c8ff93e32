"""What a pod does with a call whose link has run out, while no router answers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import eventually, unique_name

from ray_route.clock import Deadline, now
from ray_route.errors import FencedError, PodUnavailableError, RouteTimeoutError
from ray_route.model import Link
from ray_route.pod import confirming
from ray_route.pod.agent import PodAgent
from ray_route.pod.current_link import under
from ray_route.pod.entries import Phase
from ray_route.pod.gate import Gate
from ray_route.pod.holdings import Holdings
from ray_route.pod.hooks import Hooks
from ray_route.pod.incoming import take_in
from ray_route.pod.next_work import NextWork
from ray_route.pod.pod_lease import PodLease
from ray_route.pod.release import Releases
from ray_route.pod.states import State
from ray_route.runtime.link_reads import Awaited, Part, Reading, Readings
from ray_route.runtime.waiting import Operation
from ray_route.store.keys import Keys
from ray_route.store.links import ShardReply

EPOCH = 100
# The router's time, and much for a machine that has else to do; a call would wait for minutes.
WITHIN_S = 20.0


class Reads:
    """Many links at once."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace

    def ask(self, parts: Sequence[Part]) -> Future[Readings]:
        links: list[Any] = [self.namespace.link]
        readings: Future[Readings] = Future()
        shown = [ShardReply("ok", 0, links * len(part.names), []) for part in parts]
        readings.set_result([Reading(reply, []) for reply in shown])
        return readings


class Namespace:
    """Redis says what a test wants; the router never says anything."""

    def __init__(self) -> None:
        self.name = unique_name()
        self.keys = Keys(self.name, 8)
        self.link: Link | None = Link(0, 7, EPOCH, persistent=False, lease_s=100.0)
        self.reads = Reads(self)
        self.takes_s = 0.0

    def read(self, shard: int, names: list[tuple[str, str]]) -> Operation[list[Link | None]]:
        assert shard == self.keys.shard(names[0][1])
        time.sleep(self.takes_s)  # as long as Redis takes
        yield from ()
        return [self.link]

    def ask(self, method: str, *_: Any, **__: Any) -> Operation[Any]:
        return (yield Awaited(Future(), method))


@pytest.fixture
def namespace() -> Namespace:
    return Namespace()


@pytest.fixture
def gate(namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> Gate:
    held = Holdings(0, PodLease(7, 600.0, now()), 600.0)
    there: Any = namespace
    monkeypatch.setattr(confirming, "_ROUTER_S", 0.2)
    return Gate(there, "chat", held, Hooks())


@pytest.mark.parametrize("left", ["nothing", "no lease"])
def test_a_call_is_turned_away_soon_and_nothing_is_given_up(
    gate: Gate, namespace: Namespace, left: str
) -> None:
    gate.enter("u", EPOCH, 7)
    gate.leave("u")
    gate.held.entries["u"].until = 0.0  # its lease is over
    namespace.link = (
        Link(0, 7, EPOCH, persistent=False, lease_s=0.0) if left == "no lease" else None
    )
    began = now()
    with pytest.raises(FencedError, match="no router has said more") as caught:
        gate.enter("u", EPOCH, 7)
    assert now() - began < WITHIN_S
    assert not caught.value.may_have_run
    entry = gate.held.entries["u"]
    assert not entry.lost, "nobody has said that it is another's"
    namespace.link = Link(0, 7, EPOCH, persistent=False, lease_s=100.0)
    gate.enter("u", EPOCH, 7)
    gate.leave("u")


def test_an_acquisition_that_meets_another_is_asked_for_again(
    gate: Gate, namespace: Namespace
) -> None:
    """A call that came first confirms the uid; should that fail, nobody else would."""
    held, releases, to_do = gate.held, Releases(gate.held), NextWork(gate.held)
    with held.lock:
        assert take_in(held, "u", 50, State("it"))
    releases.settled({"u": (50, EPOCH)})
    calls: list[Any] = []
    gate._confirming._flight("u", EPOCH, calls.append)
    (work,) = to_do.to_acquire()
    told: list[BaseException | None] = []

    def heard(_: str, error: BaseException | None) -> None:
        told.append(error)

    def by_itself(work: Callable[..., object], *args: object) -> None:
        work(*args)

    gate.acquire_all({work.uid: work.epoch}, heard, by_itself)
    gate._confirming._arrived(*calls, OSError("Redis is away"))
    assert to_do.to_acquire() == [work]
    gate.acquire_all({work.uid: work.epoch}, heard, by_itself)
    eventually(lambda: told, "it is told")
    assert told == [None]
    assert held.entries["u"].phase is Phase.HELD


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_what_would_end_a_thread_or_a_task_ends_none_of_the_calls_that_wait_for_it(
    namespace: Namespace, error: type[BaseException]
) -> None:
    held, errors = Holdings(0, PodLease(7, 600.0, now()), 600.0), [error()]
    there: Any = namespace

    def on_acquire(_: str) -> None:
        if errors:
            raise errors.pop()

    gate = Gate(there, "chat", held, Hooks(on_acquire))
    with pytest.raises(PodUnavailableError, match=rf"'u' could not be acquired: {error.__name__}"):
        gate.enter("u", EPOCH, 7)
    gate.enter("u", EPOCH, 7)
    assert held.running == 1


@pytest.mark.parametrize("way", ["serving", "admit", "a call"])
def test_what_a_call_waits_for_that_waits_for_it_ends_with_its_callers_patience(
    namespace: Namespace, way: str
) -> None:
    held, turn = Holdings(0, PodLease(7, 600.0, now()), 600.0), threading.Lock()
    there: Any = namespace
    gate = Gate(there, "chat", held, Hooks(lambda _: None, turn=turn))
    agent: Any = SimpleNamespace(gate=gate, namespace="ns", service="chat", pod=0, joined=True)
    due = Deadline.after(0.3)

    def ask() -> None:
        if way == "a call":
            gate.enter("new", EPOCH, 7, due=due)
        elif way == "admit":
            PodAgent.admit(agent, "new", EPOCH, 7)
        else:
            with PodAgent.serving(agent, "new", EPOCH, 7):
                pass

    # Calls run one at a time, so that `on_acquire` of another uid waits for the one that runs.
    with turn, under(agent, ["u", EPOCH, 7, "say"], due):
        began = now()
        with pytest.raises(RouteTimeoutError, match="its pod to acquire it") as caught:
            ask()
        assert now() < began + WITHIN_S
    assert not caught.value.may_have_run
    eventually(lambda: held.entries["new"].phase is Phase.HELD, "it is acquired afterwards")
    assert held.running == 0
