"""What anyone asks of a deployed service may be interrupted at any line: nothing stays half-done.

By its handle, and by the command line, which follows until a wish is done. See `interrupting`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import click
import pytest
from helpers import eventually, unique_name
from interrupting import at_every_line
from leftovers import users_of, workers
from services import Counter
from upgraded import Count

import ray_route
from ray_route import deploying
from ray_route import deployment as deployment_module
from ray_route.cli import change, keep, output
from ray_route.cli.app import app
from ray_route.client import base, connect, sessions, sync_client
from ray_route.controller import handle, making, marks
from ray_route.runtime import given_up, waiting

pytestmark = [pytest.mark.slow, pytest.mark.own_namespace]

BY_HANDLE = (deployment_module, handle, making, marks, waiting, given_up)
OPENING = (deploying, connect, base, sync_client, sessions, waiting, given_up)
BY_COMMAND = (change, keep, output, *BY_HANDLE, *OPENING)
SOON_S = 60.0
strides = pytest.mark.parametrize("stride", [11, pytest.param(1, marks=pytest.mark.long)])


class Deployed:
    """A service of one pod, and what it is to be like whatever became of what was asked of it."""

    def __init__(self, client: Any, deployment: ray_route.Deployment) -> None:
        self.client = client
        self.deployment = deployment
        self.namespace, self.service = deployment.namespace, deployment.service

    def is_at_rest(self) -> bool:
        """True once its controller does nothing, for nobody, and there is what is wanted."""
        status = self.deployment.status(SOON_S)
        is_as_wanted = status.pods == status.wanted and not status.problem and not status.problems
        is_of_one_kind = set(status.generations.values()) <= {status.generation}
        return is_as_wanted and is_of_one_kind and not status.doing

    def check(self) -> None:
        """Find it at rest, its users served, and no thread of this process left at it."""
        eventually(lambda: not workers(), "nobody is about to ask for anything", SOON_S)
        eventually(self.is_at_rest, "the service is as it is wanted", SOON_S)
        assert self.client.call("ann", self.service, "add", "ann", timeout=SOON_S)
        eventually(lambda: not workers(), "no thread is left at it", SOON_S)


@pytest.fixture(scope="module")
def rooms(client: Any) -> Iterator[Deployed]:
    where = {"namespace": client.namespace, "service": unique_name(), "replicas": 1}
    with ray_route.deploy(Counter, **where) as deployment:
        yield Deployed(client, deployment)


def scale(rooms: Deployed) -> None:
    rooms.deployment.scale(1)


def cordon(rooms: Deployed) -> None:
    rooms.deployment.cordon(0)
    rooms.deployment.uncordon(0)


def rebalance(rooms: Deployed) -> None:
    rooms.deployment.rebalance()


def keep_even(rooms: Deployed) -> None:
    rooms.deployment.keep_even(0.5)
    rooms.deployment.keep_even(None)


def look(rooms: Deployed) -> None:
    rooms.deployment.status()
    rooms.deployment.pods()


@strides
@pytest.mark.parametrize(
    "verb", [scale, cordon, rebalance, keep_even, look], ids=lambda verb: verb.__name__
)
def test_a_verb_that_is_interrupted_anywhere_holds_up_no_later_one(
    rooms: Deployed, verb: Callable[[Deployed], None], stride: int
) -> None:
    def check() -> None:
        rooms.deployment.uncordon(0)  # nobody knows whether it was closed
        rooms.check()
        verb(rooms)

    lines = at_every_line(lambda: verb(rooms), check, *BY_HANDLE, stride=stride)
    assert lines > 20


@strides
def test_a_scaling_that_is_interrupted_anywhere_leaves_what_is_wanted(
    rooms: Deployed, stride: int
) -> None:
    def check() -> None:
        rooms.check()
        rooms.deployment.scale(1)
        rooms.check()
        assert rooms.deployment.status().pods == (0,)

    work = lambda: rooms.deployment.scale(2)  # noqa: E731 - as short as it gets
    lines = at_every_line(work, check, *BY_HANDLE, stride=stride)
    rooms.deployment.scale(1)
    assert lines > 30


@pytest.mark.parametrize("stride", [23, pytest.param(1, marks=pytest.mark.long)])
def test_an_upgrade_that_is_interrupted_anywhere_is_undone_or_done(
    client: Any, deploy: Any, stride: int, tmp_path: Any
) -> None:
    deployment = deploy(Count, replicas=1, args=(str(tmp_path),))
    rooms = Deployed(client, deployment)

    def check() -> None:
        rooms.check()
        assert len(deployment.status().generations) == 1

    lines = at_every_line(lambda: deployment.upgrade(Count), check, *BY_HANDLE, stride=stride)
    assert lines > 50


@pytest.mark.parametrize("stride", [11, pytest.param(1, marks=pytest.mark.long)])
def test_a_shutdown_that_is_interrupted_anywhere_may_be_asked_for_again(
    client: Any, stride: int
) -> None:
    where = {"namespace": client.namespace, "replicas": 1}
    made: list[ray_route.Deployment] = []
    users = users_of(client.namespace)

    def work() -> None:
        made[-1].shutdown()

    def begin() -> None:
        made.append(ray_route.deploy(Counter, service=unique_name(), **where))

    def check() -> None:
        made[-1].shutdown()
        with pytest.raises(ray_route.InvalidInputError, match="is not deployed"):
            ray_route.get_deployment(client.namespace, made[-1].service)
        eventually(lambda: users_of(client.namespace) == users, "no session is left", SOON_S)
        begin()

    begin()
    assert at_every_line(work, check, *BY_HANDLE, base, stride=stride) > 20


def run_command(*words: str) -> None:
    """Run a command as `main` does, but for its status."""
    try:
        app.main(words, prog_name="ray-route", standalone_mode=False)
    except click.Abort as error:
        raise KeyboardInterrupt from error


COMMANDS = [
    ("scale {} 1",),
    ("scale {} 2", "scale {} 1"),
    ("cordon {} 0", "uncordon {} 0"),
    ("service {}",),
    ("move ann {} 0",),
    ("remove bob {}",),
]


@pytest.mark.parametrize("stride", [29, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("commands", COMMANDS, ids=lambda commands: commands[0])
def test_a_command_that_is_interrupted_anywhere_holds_up_no_later_one(
    rooms: Deployed, commands: tuple[str, ...], stride: int
) -> None:
    def work() -> None:
        for words in commands:
            run_command(*words.format(rooms.service).split(), "-n", rooms.namespace)

    def check() -> None:
        rooms.deployment.uncordon(0)
        rooms.check()
        work()

    assert at_every_line(work, check, *BY_COMMAND, stride=stride) > 30


@pytest.mark.parametrize("stride", [41, pytest.param(1, marks=pytest.mark.long)])
def test_a_drain_that_a_command_no_longer_follows_goes_on_and_may_be_followed_again(
    rooms: Deployed, stride: int
) -> None:
    rooms.deployment.scale(2)
    words = ("drain", rooms.service, "1", "-n", rooms.namespace)

    def check() -> None:
        run_command(*words)
        assert rooms.client.pods(rooms.service)[1].state is ray_route.RoutingState.SHUTDOWN
        rooms.deployment.uncordon(1)
        rooms.check()

    lines = at_every_line(lambda: run_command(*words), check, *BY_COMMAND, stride=stride)
    rooms.deployment.scale(1)
    assert lines > 50
