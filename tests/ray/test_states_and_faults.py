"""States on their way, while one of the pods is killed or frozen at each step."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers import eventually
from tallies import AsyncTally, Tally

import ray_route
from ray_route import RouteError
from ray_route.testing.faults import frozen_pod, kill_pod

pytestmark = pytest.mark.slow

Deploy = Callable[..., ray_route.Deployment]


class Scene:
    """One service whose states wait, on their way, wherever a test says so."""

    def __init__(self, client: ray_route.RouteClient, service: str, folder: Path) -> None:
        self.client = client
        self.service = service
        self.folder = folder

    def call(self, method: str, *args: Any, uid: str = "ann") -> Any:
        return self.client.call(uid, self.service, method, uid, *args, timeout=40)

    def pod(self) -> int:
        return self.client.compute_linked_pod("ann", self.service, timeout=40).pod

    @contextmanager
    def waits(self, step: str) -> Iterator[None]:
        """Have whoever comes to a step wait there; begin when somebody has."""
        (self.folder / f"{step}.waits").touch()
        try:
            yield
        finally:
            (self.folder / f"{step}.waits").unlink()

    def seen(self, step: str) -> None:
        eventually((self.folder / f"{step}.seen").exists, f"{step} has begun")

    def move(self, pod: int, timeout: float = 40) -> list[RouteError | None]:
        """Begin a move; the list has its error, or None, when it has ended."""
        ended: list[RouteError | None] = []

        def run() -> None:
            try:
                self.client.move("ann", self.service, pod, timeout=timeout)
            except RouteError as error:
                ended.append(error)
            else:
                ended.append(None)

        threading.Thread(target=run, daemon=True).start()
        return ended


@pytest.fixture
def scene(client: ray_route.RouteClient, deploy: Deploy, tmp_path: Path) -> Scene:
    made = Scene(client, deploy(Tally, 2, args=(str(tmp_path),)).service, tmp_path)
    assert made.call("add") == 1
    made.call("carry", "gated")
    return made


@pytest.mark.parametrize("step", ["write", "read"])
def test_a_target_that_dies_before_it_has_the_state_costs_nothing(scene: Scene, step: str) -> None:
    home = scene.pod()
    with scene.waits(step):
        ended = scene.move(1 - home)
        scene.seen(step)
        kill_pod(scene.client, scene.service, 1 - home)
        eventually(lambda: ended, "the mover is told")
    assert ended[0] is not None
    assert scene.call("add") == 2
    assert scene.pod() == home


def test_an_owner_that_dies_before_its_state_was_fetched_takes_it_along(scene: Scene) -> None:
    home = scene.pod()
    with scene.waits("write"):
        ended = scene.move(1 - home)
        scene.seen("write")
        kill_pod(scene.client, scene.service, home)
        eventually(lambda: ended, "the mover is told")
    assert scene.call("add") == 1, "memory dies with its process"
    assert scene.call("add") == 2


def test_an_owner_that_dies_after_its_state_was_fetched_costs_nothing(scene: Scene) -> None:
    home = scene.pod()
    with scene.waits("read"):
        ended = scene.move(1 - home)
        scene.seen("read")
        kill_pod(scene.client, scene.service, home)
    eventually(lambda: ended, "the mover is told")
    assert scene.call("add") == 2
    assert scene.pod() == 1 - home


@pytest.mark.parametrize(("cls", "step"), [(AsyncTally, "write"), (Tally, "read")])
def test_a_state_that_hangs_on_its_way_holds_up_nobody_else(
    client: ray_route.RouteClient, deploy: Deploy, tmp_path: Path, cls: type, step: str
) -> None:
    deployment = deploy(cls, 2, args=(str(tmp_path),))
    scene = Scene(client, deployment.service, tmp_path)
    scene.call("carry", "gated")
    home = scene.pod()
    others = [f"u{number}" for number in range(20)]
    for uid in others:
        client.move(uid, scene.service, home)
        assert scene.call("add", uid=uid) == 1
    with ThreadPoolExecutor(1) as pool, scene.waits(step):
        drained = pool.submit(list, deployment.drain(home, 60))
        scene.seen(step)
        assert {scene.call("add", uid=uid) for uid in others} == {2}
        links = client.compute_linked_pods(others, scene.service)
        assert {link.pod for link in links.values()} == {1 - home}
        assert scene.pod() == home
    assert drained.result()[-1].problem is None, "it follows, since it hangs no more"
    assert scene.pod() == 1 - home
    assert scene.call("add") == 1


@pytest.mark.parametrize("who", ["owner", "target"])
def test_a_mover_that_gives_up_on_a_frozen_pod_leaves_the_uid_as_it_was(
    scene: Scene, who: str
) -> None:
    home = scene.pod()
    pod, step = {"owner": (home, "write"), "target": (1 - home, "read")}[who]
    with scene.waits(step):
        ended = scene.move(1 - home, timeout=2)
        scene.seen(step)
        with frozen_pod(scene.client, scene.service, pod):
            eventually(lambda: ended, "the mover is told")
    assert ended[0] is not None
    assert scene.call("add") == 2
    assert scene.pod() == home
    assert scene.call("add") == 3, "what comes late to the target is never used"
    eventually(lambda: "ann" in scene.call("here"), "it is held there")
