"""Replicas come, leave and die: who moves, how often, and what requests meet."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import ray
from helpers import end_router, eventually
from ray import serve
from serveapp import App, Run, Walk, sessions

pytestmark = pytest.mark.slow

SOME = 60


def scaled(chat: App, replicas: int) -> dict[str, int]:
    chat.redeploy(replicas)
    return eventually(lambda: len(chat.alive()) == replicas and chat.alive(), "all have joined")


def test_adding_a_replica_moves_nobody_and_removing_it_only_its_own(chat: App) -> None:
    names = sessions(SOME)
    with Walk(chat, names) as walk:
        before = chat.alive()
        after = scaled(chat, 5)
        walk.go_on()
        assert walk.moved() == {}, "on scale-out"
        added = set(after) - set(before)
        fresh = list(chat.homes(sessions(10)).values())
        share = sum(home in added for home in fresh)
        assert 0 < share <= 4, "the new one gets twice an equal share of new sessions at most"

        left = scaled(chat, 4)
        removed = set(after) - set(left)
        walk.go_on()
    assert walk.errors == []
    assert {path[0] for path in walk.moved().values()} <= removed
    assert all(len(path) == 2 for path in walk.moved().values()), "each once"
    theirs = {name for name, path in walk.path.items() if path[0] in removed}
    assert set(walk.moved()) == theirs
    assert chat.gets(names) == {name: path[-1] for name, path in walk.path.items()}


def test_a_death_moves_the_victims_sessions_alone_and_once(chat: App) -> None:
    names = sessions(SOME)
    victim = chat.say(names[0])
    with Walk(chat, names) as walk:
        walk.go_on()
        theirs = {name for name, path in walk.path.items() if path[-1] == victim["replica"]}
        os.kill(victim["pid"], signal.SIGKILL)
        walk.go_on()
        eventually(lambda: len(chat.alive()) == 4, "the replacement has joined")
        walk.go_on()
    assert set(walk.moved()) == theirs
    assert all(len(path) == 2 for path in walk.moved().values()), "each once"
    assert all(isinstance(error, ray.exceptions.RayActorError) for error in walk.errors)
    assert len(walk.errors) <= len(theirs), "only what was in flight there"
    assert len(chat.alive()) == 4
    assert sorted(chat.alive().values()) == [0, 1, 2, 3], "the replacement has a free index"


def test_a_replica_that_is_stopped_serves_its_sessions_while_it_runs_something(run: Run) -> None:
    app = run(replicas=2)
    names = sessions(12)
    homes = app.homes(names)
    slow = {name: app.saying(name, 4.0) for name in names}
    with ThreadPoolExecutor(1) as pool:
        scaling = pool.submit(app.redeploy, 1)
        stayed = eventually(lambda: len(app.alive()) == 1 and app.alive(), "one stops")
        gone = next(home for home in homes.values() if home not in stayed)
        theirs = next(name for name in names if homes[name] == gone)
        assert app.say(theirs)["replica"] == app.get(theirs)["replica"] == gone, "not gone yet"
        assert set(app.homes(sessions(20)).values()) == set(stayed), "it gets no new ones"
        assert {name: a.result(timeout_s=20)["replica"] for name, a in slow.items()} == homes
        eventually(lambda: app.say(theirs)["replica"] in stayed, "it is gone: its sessions move")
        scaling.result(30)
    assert set(app.homes(names).values()) == set(stayed)

    serve.delete(app.name)
    lives = {pod.life.value for pod in app.client.pods(app.service).values()}
    assert lives == {"resigned"}, "a deleted application leaves its service"


def test_requests_go_on_while_the_directorys_router_is_killed(chat: App) -> None:
    names = sessions(50)
    with Walk(chat, names) as walk:
        end_router(chat.client.namespace)
        fresh = chat.homes(sessions(100))
        assert len(fresh) == 100
        walk.go_on()
    assert walk.errors == []
    assert walk.moved() == {}


@pytest.mark.long
def test_autoscaling_moves_nobody_up_and_leaves_nobody_behind_down(run: Run) -> None:
    app = run(
        autoscaling_config={
            "min_replicas": 1,
            "max_replicas": 2,
            "target_ongoing_requests": 2,
            "upscale_delay_s": 0.2,
            "downscale_delay_s": 0.5,
            "metrics_interval_s": 0.2,
            "look_back_period_s": 0.5,
        }
    )
    names = sessions(10)
    homes = app.homes(names)
    busy = {name: app.saying(name, 6.0) for name in names}
    eventually(lambda: len(app.alive()) == 2, "there are more replicas")
    assert app.homes(names) == homes
    fresh = app.homes(sessions(10))
    assert set(fresh.values()) == set(app.alive()) - set(homes.values())
    for answer in busy.values():
        answer.result(timeout_s=30)
    left = eventually(lambda: len(app.alive()) == 1 and app.alive(), "one is enough again")
    assert set(app.homes([*names, *fresh]).values()) == set(left)
