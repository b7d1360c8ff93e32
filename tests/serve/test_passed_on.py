"""A request that its session's home has not let in: paced, and within the replica's places."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import soon
from ray.serve._private.utils import Semaphore

from ray_route.errors import FencedError, RouteError
from ray_route.model import Link
from ray_route.serve.arrival import Arrival
from ray_route.serve.door import Door, NotEnteredError
from ray_route.serve.entrances import Entrances
from ray_route.serve.serves_replica import ServesReplica
from ray_route.serve.statements import Home, Statement, Way

THERE = Home(Link(2, 7, 5, persistent=False, lease_s=1.0), "there")
HERE = Home(Link(1, 7, 6, persistent=False, lease_s=1.0), "here")
IDS = {"namespace": "ns", "service": "chat", "uid": "u"}


def entrances(
    home: Home, patience_s: float, passing: Callable[[], Awaitable[object]]
) -> tuple[Any, Any]:
    """Make those of a replica with one place, whose requests another one refuses."""

    async def find(*_: Any) -> Home:
        return home

    async def forward(*_: Any) -> None:
        await passing()
        raise NotEnteredError(reason="its lease has lapsed", may_have_run=False, **IDS)

    async def enter(*_: Any) -> None:
        pass

    homes: Any = SimpleNamespace(
        namespace="ns", service="chat", near=lambda _: None, find=find, late=lambda *_: RouteError()
    )
    options: Any = SimpleNamespace(ids=None, patience_s=patience_s, on_stray="forward")
    gate = SimpleNamespace(enter_async=enter, leave=lambda _: None)
    agent: Any = SimpleNamespace(gate=gate)
    places = Semaphore(lambda: 1)
    serves = ServesReplica(SimpleNamespace(_replica_impl=SimpleNamespace(_semaphore=places)))
    forwarder: Any = SimpleNamespace(call=forward)
    return Entrances(Door(agent, "here", homes, options), serves, forwarder), places


def arrival() -> Arrival:
    plain = SimpleNamespace(is_direct_ingress=False, is_grpc_request=False, _http_method="")
    return Arrival(plain, Statement(THERE, Way.HOME), "u")


def test_it_goes_on_at_a_pace_while_its_home_stays_the_same() -> None:
    rounds: list[int] = []

    async def passing() -> None:
        rounds.append(1)

    async def story() -> None:
        made, places = entrances(THERE, 0.5, passing)
        async with places:
            with pytest.raises(FencedError, match="lapsed"):
                await made._call(None, arrival(), (), {})

    asyncio.run(story())
    assert 1 < len(rounds) <= 11


def test_where_it_runs_after_that_it_waits_for_a_place() -> None:
    async def story() -> None:
        refused, ran, asked = asyncio.Event(), asyncio.Event(), list[int]()

        async def passing() -> None:
            asked.append(1)
            await refused.wait()

        async def run(*_: Any) -> None:
            ran.set()

        made, places = entrances(HERE, 5.0, passing)

        async def placed() -> None:  # as Serve does it
            async with places:
                await made._call(run, arrival(), (), {})

        tasks = [asyncio.create_task(placed()) for _ in range(2)]
        await soon(lambda: len(asked) == len(tasks), "both are passed on")
        async with places:
            refused.set()
            waiting = lambda: len(places._waiters or ()) == len(tasks)  # noqa: E731
            await soon(waiting, "they wait for their places")
            assert not ran.is_set(), "max_ongoing_requests is 1"
            tasks[0].cancel()
            await asyncio.gather(tasks[0], return_exceptions=True)
            assert places._value == 1
        await tasks[1]
        assert ran.is_set()
        assert places._value == 0

    asyncio.run(asyncio.wait_for(story(), 60))
