"""At 80 columns no digit is lost by which a node, a pod, a life or a uid differs from the next."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
import ray
from commands import COMMAND
from helpers import end_router, unique_name
from services import Weighed
from terminals import Terminal, printed, terminal

import ray_route
from ray_route.cli.app import app, main
from ray_route.cli.page.server import PageServer

pytestmark = pytest.mark.slow

LONG = 40
UIDS = [f"6f1c2d3e-8a4b-4c5d-9e6f-7a8b9c0d1e2{digit}" for digit in "0123"]


@dataclass
class Place:
    """A namespace and a service with long names, three pods, and users who differ little."""

    client: ray_route.RouteClient
    service: str
    pods: dict[int, ray_route.Pod] = field(default_factory=dict)

    @property
    def lives(self) -> list[int]:
        return [pod.incarnation for pod in self.pods.values()]

    @property
    def actors(self) -> list[str]:
        return [self.pods[self.link(uid).pod].actor for uid in UIDS]

    def link(self, uid: str) -> ray_route.Link:
        link = self.client.get_linked_pod_not_cache(uid, self.service)
        assert link is not None
        return link


@pytest.fixture(scope="module")
def place(ray_session: None) -> Iterator[Place]:
    namespace, service = (unique_name().ljust(LONG, letter) for letter in "ns")
    with ray_route.connect(namespace) as client:
        deployed = ray_route.deploy(Weighed, namespace=namespace, service=service, replicas=3)
        found = Place(client, service, client.pods(service))
        for uid in UIDS:
            client.call(uid, service, "weigh", uid, 1.5)
        yield found
        with suppress(ray_route.ClosedError):
            deployed.shutdown()
    end_router(namespace)


# What each command is asked, and what must be there to be read.
ENTRIES: dict[str, tuple[Callable[[Place], list[str]], Callable[[Place], list[Any]]]] = {
    "status": (lambda _: ["status"], lambda it: [it.client.namespace, it.service, *it.lives]),
    "where": (
        lambda _: ["where", UIDS[0]],
        lambda it: [it.service, it.link(UIDS[0]).incarnation, it.actors[0]],
    ),
    "explain": (lambda it: ["explain", UIDS[1], it.service], lambda _: [UIDS[1]]),
    "pods": (lambda it: ["pods", it.service], lambda it: [it.service, *it.lives]),
    "service": (lambda it: ["service", it.service], lambda it: [it.service, "incarnation"]),
    "top": (
        lambda it: ["top", it.service, "--count", "1", "--uids", "9"],
        lambda it: [it.service, *it.lives, *UIDS],
    ),
    "ui": (lambda _: ["ui"], lambda it: [it.client.namespace, "http://127.0.0.1:"]),
    "doctor": (lambda _: ["doctor"], lambda it: [f"{it.client.namespace}/{it.service}"]),
    "rebalance": (
        lambda it: ["rebalance", it.service, "--dry-run"],
        lambda it: [it.service, "0 uids are to move"],
    ),
    "move": (lambda it: ["move", UIDS[2], it.service, "1"], lambda _: [UIDS[2], "epoch"]),
    "remove": (lambda it: ["remove", UIDS[3], it.service], lambda _: [UIDS[3], "is removed"]),
    "cordon": (lambda it: ["cordon", it.service, "2"], lambda it: [it.service, "pod 2"]),
    "uncordon": (lambda it: ["uncordon", it.service, "2"], lambda it: [it.service, "pod 2"]),
    "drain": (
        lambda it: ["drain", it.service, "2"],
        lambda it: [it.service, "is drained"],
    ),
    "upgrade": (
        lambda it: ["upgrade", it.service, "services:Weighed"],
        lambda it: [it.service, "runs generation 2"],
    ),
    "scale": (lambda it: ["scale", it.service, "1"], lambda it: [it.service]),
    "shutdown": (lambda it: ["shutdown", it.service], lambda it: [it.service, "is ended"]),
}
# These print no id of anybody's.
NUMBERS_ALONE = {"bench", "demo"}


def test_every_command_is_tried_in_a_narrow_terminal() -> None:
    assert ENTRIES.keys() | NUMBERS_ALONE == app.commands.keys()


def ran(
    place: Place,
    patch: pytest.MonkeyPatch,
    words: list[str],
    serve: Callable[[PageServer], object] = lambda _: None,
    columns: int = 80,
) -> Terminal:
    patch.setattr(PageServer, "serve_forever", serve)
    with printed(patch, columns) as shown, pytest.raises(SystemExit):
        main([*words, "-n", place.client.namespace])
    return shown


def test_the_installed_command_finds_the_width_of_its_terminal(place: Place) -> None:
    at = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "TERM": "xterm"}
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    with terminal() as (shown, screen):
        words = [COMMAND, "pods", "-n", place.client.namespace]
        ends = {"stdin": screen, "stdout": screen, "stderr": screen}
        subprocess.run(words, env={**environment, **at}, check=True, timeout=250, **ends)
    shown.check_whole(place.service, *place.lives)


@pytest.mark.parametrize("command", ENTRIES)
def test_no_digit_is_lost(place: Place, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    words, expected = ENTRIES[command]
    texts = expected(place)
    ran(place, monkeypatch, words(place)).check_whole(*texts)


def test_the_address_of_the_page_is_printed_in_one_line_to_be_copied(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[str] = []
    noted = lambda server: served.append(server.url)  # noqa: E731
    shown = ran(place, monkeypatch, ["ui"], noted, columns=40)
    assert any(served[0] in line for line in shown.lines), shown.lines
