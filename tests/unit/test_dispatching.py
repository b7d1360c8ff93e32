"""What becomes of calls that come back, and what is said of them; pods and router are played."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from helpers import eventually

from ray_route.client import held_calls, outgoing
from ray_route.client.dispatcher import Dispatcher
from ray_route.client.outgoing import Outgoing
from ray_route.client.responses import taken
from ray_route.clock import Deadline
from ray_route.errors import (
    CallCancelledError,
    FencedError,
    PodUnavailableError,
    RouteError,
    RouteTimeoutError,
)
from ray_route.model import Link
from ray_route.protocol.calls import Refused
from ray_route.runtime.waiting import LifeEndedError, Operation, Pause, run

LINK = Link(pod=0, incarnation=1, epoch=7, persistent=False, lease_s=5.0)


class Pod:
    """Notes with which arguments it is called."""

    def __init__(self) -> None:
        self.called: list[tuple[Any, ...]] = []
        method = SimpleNamespace(remote=self._call)
        self._ray_route_call = self._ray_route_call_packed = method

    def _call(self, *args: Any) -> object:
        self.called.append(args)
        return object()


class Near(dict[tuple[str, str], Link]):
    def get(self, service: str, uid: str, _: int = 0) -> Link | None:  # type: ignore[override]
        return super().get((service, uid))

    def drop(self, service: str, uid: str, _: int) -> None:
        self.pop((service, uid), None)


class Session:
    def __init__(self) -> None:
        self.near, self.pod = Near(), Pod()
        self.at_close: list[Callable[[], None]] = []
        self.namespace = SimpleNamespace(name="ns", check_here=lambda: None)
        self.meter = SimpleNamespace(count=lambda *_: None, observe=lambda *_: None)

    def known_handle(self, _: str, __: Link) -> Pod:
        return self.pod

    def handle(self, _: str, __: Link) -> Operation[Pod]:
        yield from ()
        return self.pod

    def has_ended(self, _: str, __: Link) -> bool:
        return False


class Router:
    """Answers once it may."""

    def __init__(self) -> None:
        self.answers = {"ann": threading.Event(), "bob": threading.Event()}
        self.asked = False

    def compute(self, _: Any, uid: str, __: str, ___: int = 0) -> Operation[Link]:
        self.asked = True
        while not self.answers[uid].is_set():
            yield Pause(0.005, "the router")
        return LINK

    def failed(self, _: Any, uid: str, *__: Any) -> Operation[int]:
        while not self.answers[uid].is_set():
            yield Pause(0.005, "the router")
        return LINK.epoch + 1


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch) -> Router:
    made = Router()
    monkeypatch.setattr(held_calls.operations, "compute", made.compute)
    monkeypatch.setattr(held_calls.operations, "failed", made.failed)
    return made


@pytest.fixture
def session() -> Session:
    made = Session()
    made.near["rooms", "ann"] = made.near["rooms", "bob"] = LINK
    return made


@pytest.fixture
def dispatcher(
    session: Session, router: Router, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Dispatcher]:
    monkeypatch.setattr(outgoing, "node_mark", lambda: "here")
    made: Any = Dispatcher(session)  # type: ignore[arg-type]
    made.untaken.add = made.untaken.look = made.lanes._look = lambda _: None  # they are told here
    yield made
    made.close()


def made(uid: str = "ann", *args: Any, timeout: float = 10, idempotent: bool = False) -> Outgoing:
    return Outgoing("ns", "rooms", uid, "say", args, {}, idempotent, Deadline.after(timeout))


def fenced(*, ran: bool) -> Refused:
    return Refused(FencedError(reason="moved", may_have_run=ran))


def outcome(dispatcher: Dispatcher, call: Outgoing) -> RouteError:
    with pytest.raises(RouteError) as raised:
        run(taken(dispatcher, call), call.deadline)
    return raised.value


def died_together(dispatcher: Dispatcher, timeout: float) -> Outgoing:
    """Have two calls in a pod that dies; return the second, which waits for the first's fate."""
    first, second = made(), made(timeout=timeout)
    for call in (first, second):
        dispatcher.send(call)
    for call in (first, second):
        dispatcher.troubled(call, call.ref, LifeEndedError("pod"))
    return second


def test_a_call_that_was_in_a_pod_that_died_may_have_run_whatever_ends_it(
    dispatcher: Dispatcher,
) -> None:
    error = outcome(dispatcher, died_together(dispatcher, 0.3))
    assert isinstance(error, RouteTimeoutError)
    assert error.may_have_run


def test_so_may_one_that_is_cancelled_then(dispatcher: Dispatcher) -> None:
    second = died_together(dispatcher, 10)
    dispatcher.cancel(second)
    assert isinstance(second.error, CallCancelledError)
    assert second.error.may_have_run


@pytest.mark.parametrize("end", ["cancelled", "too late", "refused as too late"])
def test_so_may_one_that_was_repeated_after_it_had_run(
    dispatcher: Dispatcher, router: Router, end: str
) -> None:
    call = made(idempotent=True, timeout=0.5 if end == "too late" else 10)
    dispatcher.send(call)
    dispatcher.take_in(call, call.ref, fenced(ran=True))
    if end == "cancelled":
        dispatcher.cancel(call)
    elif end == "refused as too late":
        router.answers["ann"].set()
        eventually(lambda: call.ref is not None, "it is sent again")
        late = RouteTimeoutError(waiting_for="its turn", timeout_s=1, may_have_run=False)
        dispatcher.take_in(call, call.ref, Refused(late))
    assert outcome(dispatcher, call).may_have_run  # type: ignore[attr-defined]


def test_an_argument_that_comes_back_meanwhile_is_waited_for(
    dispatcher: Dispatcher, session: Session, router: Router
) -> None:
    session.near.pop(("rooms", "ann"))
    argument = made("bob", 1)
    call = made("ann", argument)
    dispatcher.send(argument)
    dispatcher.send(call)
    dispatcher.take_in(argument, argument.ref, fenced(ran=False))
    router.answers["ann"].set()
    with pytest.raises(RouteTimeoutError):  # it is not sent without its argument
        run(taken(dispatcher, call), Deadline.after(0.3))
    router.answers["bob"].set()
    eventually(lambda: argument.ref is not None, "the argument is sent again")
    assert call.ref is None
    dispatcher.settled(argument, argument.ref)
    eventually(lambda: call.ref is not None, "both are sent")
    assert all(value is not None for args in session.pod.called for value in args)


def test_a_call_waits_for_an_argument_that_is_repeated_after_its_pod_died(
    dispatcher: Dispatcher, session: Session, router: Router
) -> None:
    for answer in router.answers.values():
        answer.set()
    argument = made("bob", 1, idempotent=True)
    call = made("ann", argument)
    dispatcher.send(argument)
    dispatcher.send(call)
    dispatcher.troubled(argument, argument.ref, LifeEndedError("pod"))
    eventually(lambda: argument.ref is not None, "the argument is sent again")
    assert len(session.pod.called) == 2, "it was not sent without"
    dispatcher.settled(argument, argument.ref)
    eventually(lambda: call.ref is not None, "it is sent")
    dispatcher.troubled(call, call.ref, ray.exceptions.RayActorError())
    assert isinstance(outcome(dispatcher, call), PodUnavailableError)
    assert len(session.pod.called) == 3


def test_a_call_is_not_sent_after_its_waiter_has_heard_that_it_did_not_run(
    dispatcher: Dispatcher, session: Session, router: Router
) -> None:
    session.near.clear()
    call = made(timeout=0.3)
    dispatcher.send(call)
    eventually(lambda: router.asked, "its uid is being looked up")
    with dispatcher.lanes.of(call).lock:  # as another thread does, whose argument is large
        router.answers["ann"].set()
        error = outcome(dispatcher, call)
    assert error.may_have_run is False  # type: ignore[attr-defined]
    eventually(lambda: call.over, "it is over")
    assert session.pod.called == []


def test_a_call_that_can_not_be_pickled_leaves_no_gap(
    dispatcher: Dispatcher, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise TypeError

    dispatcher.send(made())
    with monkeypatch.context() as patch:
        patch.setattr(session.pod._ray_route_call, "remote", fail)
        with pytest.raises(TypeError):
            dispatcher.send(made())
    call = made()
    dispatcher.send(call)
    assert call.order[1] == 1
