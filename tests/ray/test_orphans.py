"""No actor of a pod is left that nobody keeps, and none is made twice, whoever dies in between."""

from __future__ import annotations

import os
import random
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
from deploying import recipe_of
from helpers import eventually
from interrupting import at_every_line
from lives import SOON_S, Life, Service
from services import Counter, Gated, made_in
from tallies import Tally

from ray_route.clock import Deadline
from ray_route.controller import doing, healing, keeping, making, marks, recipes, starts, upkeep
from ray_route.controller.making import PodMaker, handles_of, named_pods
from ray_route.controller.marks import BEGUN, forget, note, noted
from ray_route.controller.recipes import holders_of
from ray_route.pod import stopping
from ray_route.protocol.names import RAY_NAMESPACE, pod_name

pytestmark = pytest.mark.slow

MOST_LINES = 16
"""Of a step, so many at the most lie between two deaths that are tried."""


def given_up(service: Service, pod: int) -> None:
    """Have Ray give a pod up."""
    name = pod_name(service.client.namespace, service.service, pod)
    ray.kill(ray.get_actor(name, namespace=RAY_NAMESPACE), no_restart=True)
    eventually(lambda: pod not in service.life().upkeep.named(), "its name is free", SOON_S)


def stride() -> int:
    """Choose how many lines lie between two deaths, so that runs differ."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    return random.Random(seed).randint(MOST_LINES // 2, MOST_LINES)


@pytest.mark.timeout(300)
def test_a_life_that_ends_at_any_line_of_making_a_pod_leaves_one_and_it_is_made_once(
    service: Service, tmp_path: Path
) -> None:
    (tmp_path / "go").touch()
    service.recipe = recipe_of(Gated, service.client, service.service, str(tmp_path))
    lives, kills = [service.life()], 0

    def prepare() -> None:
        nonlocal kills
        given_up(service, 1)
        kills += 1
        lives.append(service.life())

    def check() -> None:
        later = service.life()
        eventually(lambda: later.looked(2), "both are there", SOON_S)
        eventually(lambda: len(made_in(tmp_path)) >= kills, "it is made", SOON_S)
        eventually(lambda: service.alive() == [0, 1], "both serve", SOON_S)

    def check_and_prepare() -> None:
        check()
        prepare()

    prepare()
    modules = (doing, healing, keeping, making, marks, recipes, starts, upkeep)
    look = lambda: lives[-1].keeping.look()  # noqa: E731, PLW0108 - each time the last one's
    lines = at_every_line(look, check_and_prepare, *modules, stride=stride())
    check()
    assert lines > MOST_LINES
    assert len(made_in(tmp_path)) == kills, "each time once"


@pytest.mark.timeout(300)
def test_an_end_that_is_cut_short_at_any_line_leaves_no_actor(service: Service) -> None:
    namespace, name = service.client.namespace, service.service
    lives = [service.life()]
    lives[0].keeping.look()

    def check() -> None:
        later = service.life()
        eventually(lambda: ended(later), "the service is ended", SOON_S)
        assert (named_pods(namespace, name), holders_of(namespace, name)) == ({}, [])

    def check_and_prepare() -> None:
        check()
        note(service.actor, BEGUN)
        lives.append(life := service.life())
        deadline = Deadline.after(SOON_S)
        life.upkeep.recipes.make(life.upkeep.recipes.name, [0], service.actor, deadline)
        life.keeping.look()

    lines = at_every_line(
        lambda: lives[-1].keeping.finish(0.0),
        check_and_prepare,
        *(keeping, marks, stopping),
        stride=stride(),
    )
    check()
    assert lines > MOST_LINES


def ended(life: Life) -> bool:
    """Look once more, and ask again for the end, as its caller does, if that has not begun."""
    life.keeping.look()
    if not life.keeping.done:
        life.keeping.finish(0.0)
    return life.keeping.done


def test_a_service_whose_deployment_was_cut_short_at_its_very_end_is_kept(
    service: Service,
) -> None:
    forget(service.actor)  # it wants something, and has not noted yet that it has begun
    given_up(service, 1)
    life = service.life()
    eventually(lambda: life.looked(2), "its pod is made anew", SOON_S)
    assert noted(service.actor) == BEGUN


def test_what_a_maker_makes_after_the_end_is_ended_by_itself(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    life, make = service.life(), PodMaker.make
    life.keeping.look()
    made: list[Any] = []

    def late(maker: PodMaker, index: int) -> Any:
        if not made:
            life.keeping.finish(0.0)
        made.append(make(maker, index))
        return made[-1]

    monkeypatch.setattr(PodMaker, "make", late)
    making._make_all([5, 6], service.actor, [], *service.recipe.pieces())
    assert len(made) == 1, "and no more are made"
    eventually(lambda: not life.upkeep.named(), "it is ended", SOON_S)


@pytest.mark.parametrize("is_given_up", [False, True])
def test_a_pod_in_its_constructor_outlives_its_controller_or_is_made_anew(
    client: Any, deploy: Any, tmp_path: Path, is_given_up: bool
) -> None:
    go = tmp_path / "go"
    go.touch()
    deployment = deploy(Gated, replicas=1, args=(str(tmp_path),))
    go.unlink()
    with ThreadPoolExecutor(1) as callers:
        scaled = callers.submit(deployment.scale, 2, timeout=2 * SOON_S)
        eventually(lambda: len(made_in(tmp_path)) == 2, "its constructor runs", SOON_S)
        before = deployment.status()
        os.kill(before.process, signal.SIGKILL)
        if is_given_up:
            pod = handles_of(client.namespace, deployment.service, [1])[1]
            ray.kill(pod, no_restart=True)
            eventually(lambda: len(made_in(tmp_path)) == 3, "it is made anew", SOON_S)
        go.touch()
        scaled.result(2 * SOON_S)
    after = deployment.status()
    assert (after.controller > before.controller, after.pods, after.wanted) == (
        True,
        *2 * ((0, 1),),
    )
    assert len(made_in(tmp_path)) == 2 + is_given_up, "and not once more"


def test_a_pod_that_nobody_wants_is_drained_and_ended_unless_something_else_is_asked_for(
    client: Any, deploy: Any, tmp_path: Path
) -> None:
    tallies = deploy(Tally, replicas=2, args=(str(tmp_path),))
    service, waits = tallies.service, tmp_path / "release.waits"
    waits.touch()
    PodMaker(recipe_of(Tally, client, service, str(tmp_path)), Tally, []).make(7)
    eventually(lambda: 7 in client.pods(service), "it joins", SOON_S)
    assert client.call("u", service, "add", "u") == 1
    client.set_linked_pod_if_absent("v", service, 7)
    counts = [client.call("v", service, "add", "v") for _ in range(2)]
    eventually(lambda: tallies.status().doing == "drain pod 7", "it is drained", SOON_S)
    tallies.cordon(1, SOON_S)
    tallies.uncordon(1, SOON_S)
    waits.unlink()
    eventually(lambda: tallies.status().pods == (0, 1), "it is ended", SOON_S)
    counts.append(client.call("v", service, "add", "v"))
    assert counts == [1, 2, 3], "its user has moved with the state"
    assert tallies.status().replicas == 2


def test_what_is_seen_but_once_is_no_stray(service: Service) -> None:
    life = service.life()
    life.keeping.look()
    stray = PodMaker(service.recipe, Counter, []).make(5)
    life.keeping.look()
    assert 5 in life.upkeep.named(), "it may be one that is just being ended"
    life.keeping.look()
    assert 5 not in life.upkeep.named()
    del stray
