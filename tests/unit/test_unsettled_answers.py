"""What a router can't tell yet of a uid is asked for again, for as long as its caller waits."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ray_route.client import many_uids, operations
from ray_route.client.coalescer import Batch
from ray_route.client.shared_future import SharedFuture
from ray_route.clock import Deadline
from ray_route.errors import RouterUnavailableError, RouteTimeoutError
from ray_route.model import Link
from ray_route.runtime.namespace import Namespace
from ray_route.runtime.waiting import run

LATE = RouterUnavailableError(reason="after an outage it waits to hear from every living pod")
LINK = Link(1, 7, 100, persistent=False, lease_s=9.0)


class Session:
    """A router that can't tell so many times, and then can."""

    def __init__(self, late: int) -> None:
        self.answers: Iterator[Any] = iter([LATE] * late)
        self.namespace: Any = SimpleNamespace(
            name="ns", check_here=lambda: None, find_router=lambda: None
        )
        self.namespace.until_answered = lambda *args: Namespace.until_answered(
            self.namespace, *args
        )
        self.deciding = self

    def may_know(self, _: str) -> bool:
        return False

    def join(self, *_: Any) -> Batch:
        told: SharedFuture[Any] = SharedFuture()
        told.set_result({"ann": next(self.answers, LINK)})
        return Batch(lambda: None, answers=told)

    def recover(self, uids: list[str]) -> Any:
        assert not uids
        yield from ()


def one(session: Any, timeout_s: float) -> Any:
    return run(operations._answer(session, session, "ann", "rooms", 0), Deadline.after(timeout_s))


def many(session: Any, timeout_s: float) -> Any:
    answers: dict[str, Any] = {"ann": None, "bob": None}

    def told(_: Any, __: str, uids: list[str]) -> Any:
        yield from ()
        return {uid: next(session.answers, LINK) for uid in uids}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(many_uids, "_decided_many", told)
        run(many_uids._decide(session, "rooms", list(answers), answers), Deadline.after(timeout_s))
    assert answers["bob"] == LINK
    return answers["ann"]


@pytest.mark.parametrize("ask", [one, many])
def test_it_is_asked_again_until_it_tells(ask: Any) -> None:
    assert ask(Session(late=3), 60.0) == LINK


@pytest.mark.parametrize("ask", [one, many])
def test_it_is_asked_until_the_callers_deadline_alone(ask: Any) -> None:
    with pytest.raises(RouteTimeoutError, match="hear from every living pod"):
        ask(Session(late=10**6), 0.5)


@pytest.mark.parametrize("ask", [one, many])
def test_what_the_router_has_failed_at_is_not_asked_for_again(ask: Any) -> None:
    session = Session(late=0)
    failed = RouterUnavailableError(reason="it failed", passes=False)
    session.answers = iter([failed, *[LINK] * 9])
    try:
        answer = ask(session, 60.0)
    except RouterUnavailableError as error:
        answer = error
    assert answer is failed
