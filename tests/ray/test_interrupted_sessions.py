"""A client that is interrupted at any line, while it is made or closed, leaves nothing behind.

Who has made it closes it again. See `interrupting`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from helpers import eventually, own_namespace, unique_name
from interrupting import at_every_line
from leftovers import Taken, users_of
from services import Counter

import ray_route
from ray_route import deploying
from ray_route import deployment as deployment_module
from ray_route.client import async_client, base, connect, sessions, sync_client
from ray_route.runtime import given_up, waiting

pytestmark = pytest.mark.slow

OPENING = (
    *(async_client, base, connect, deploying, deployment_module, sessions, sync_client),
    *(given_up, waiting),
)
SERVICE = "rooms"
SOON_S = 60.0


@dataclass
class Process:
    """This process, which has no client of a namespace where a service is deployed."""

    namespace: str
    taken: Taken
    made: list[Any] = field(default_factory=list)

    def keep(self, made: Any) -> Any:
        """Keep what is made, to close it again where it was interrupted."""
        self.made.append(made)
        return made

    def check(self) -> None:
        """Close what was made, and find that nothing is left, and that another client is served."""
        for each in self.made:
            closed = each.close()
            if closed is not None:
                asyncio.run(closed)
            assert each._client.closed if isinstance(each, ray_route.Deployment) else each.closed
        self.made.clear()
        self.taken.check_given_back(SOON_S)
        with ray_route.connect(self.namespace) as client:
            assert client.call("ann", SERVICE, "add", "ann", timeout=SOON_S)
        self.taken.check_given_back(SOON_S)


@pytest.fixture(scope="module")
def process(ray_session: None) -> Iterator[Process]:
    with own_namespace() as namespace:
        deployment = ray_route.deploy(Counter, namespace=namespace, service=SERVICE, replicas=1)
        port = deployment._session.namespace.url.nodes[0][1]
        deployment.close()
        yield Process(namespace, Taken(namespace, port))
        ray_route.get_deployment(namespace, SERVICE).shutdown()


def connected(process: Process) -> None:
    process.keep(ray_route.connect(process.namespace)).close()


def awaited(process: Process) -> None:
    asyncio.run(opened_and_closed(process))


async def opened_and_closed(process: Process) -> None:
    await process.keep(await ray_route.connect_async(process.namespace)).close()


def held(process: Process) -> None:
    process.keep(ray_route.get_deployment(process.namespace, SERVICE)).close()


def deployed(process: Process) -> None:
    where = {"namespace": process.namespace, "service": SERVICE, "replicas": 1}
    process.keep(ray_route.deploy(Counter, **where)).close()


@pytest.mark.parametrize(
    ("work", "stride"),
    [
        (connected, 1),
        (awaited, 1),
        *((held, 5), pytest.param(held, 1, marks=pytest.mark.long)),
        *((deployed, 11), pytest.param(deployed, 1, marks=pytest.mark.long)),
    ],
)
def test_a_client_that_is_interrupted_anywhere_is_closed_by_closing_it_again(
    process: Process, work: Callable[[Process], None], stride: int
) -> None:
    # contextlib, too: on the way out of its blocks an interrupt is not theirs to see.
    lines = at_every_line(lambda: work(process), process.check, *OPENING, contextlib, stride=stride)
    assert lines > 30


def test_a_task_that_is_cancelled_while_it_opens_or_closes_a_client_leaves_nothing_behind(
    process: Process,
) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    choose = random.Random(seed)

    async def cancelled(after_s: float) -> None:
        task = asyncio.create_task(opened_and_closed(process))
        await asyncio.sleep(after_s)  # it has come so far
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    for _ in range(20):
        asyncio.run(cancelled(choose.choice([0.0, choose.uniform(0.0, 0.1)])))
        process.check()


def test_a_shutdown_that_is_interrupted_anywhere_gives_its_session_back_when_it_is_asked_again(
    client: Any,
) -> None:
    where = {"namespace": client.namespace, "service": unique_name()}
    deployment = ray_route.deploy(Counter, replicas=1, **where)
    handles = [ray_route.get_deployment(**where) for _ in range(100)]
    deployment.shutdown()
    users = users_of(client.namespace)

    def work() -> None:
        handles[-1].shutdown()  # another each time

    def check() -> None:
        nonlocal users
        handles.pop().shutdown()
        users -= 1
        eventually(lambda: users_of(client.namespace) == users, "its session is given back")

    ending = (base, deployment_module, sessions)
    assert at_every_line(work, check, *ending) > 10
    for handle in handles:
        handle.close()
