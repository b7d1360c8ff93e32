"""A uid's state moves with it, whole and once, whatever is done to its pods."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
from helpers import eventually, router_handle
from tallies import AsyncTally, Tally

import ray_route
from ray_route import StateNotMovedError

pytestmark = pytest.mark.slow

Deploy = Callable[..., ray_route.Deployment]

BOTH = pytest.mark.parametrize("cls", [Tally, AsyncTally])
LARGE = 200 << 20


def call(client: ray_route.RouteClient, service: str, uid: str, method: str, *args: Any) -> Any:
    return client.call(uid, service, method, uid, *args, timeout=30)


def pod_of(client: ray_route.RouteClient, uid: str, service: str) -> int:
    return client.compute_linked_pod(uid, service).pod


def move(client: ray_route.RouteClient, uid: str, service: str, **options: Any) -> None:
    client.move(uid, service, 1 - pod_of(client, uid, service), timeout=30, **options)


@BOTH
def test_a_moved_uid_finds_its_state(
    client: ray_route.RouteClient, deploy: Deploy, cls: type
) -> None:
    service = deploy(cls, 2).service
    for expected in range(1, 6):
        assert call(client, service, "ann", "add") == expected
        move(client, "ann", service)
    assert call(client, service, "ann", "news") == ["new", *["came"] * 5]
    # Once more, before anybody has called it there.
    move(client, "ann", service)
    move(client, "ann", service)
    assert call(client, service, "ann", "add") == 6


def test_states_go_along_when_pods_are_drained_and_scaled_away(
    client: ray_route.RouteClient, deploy: Deploy
) -> None:
    deployment = deploy(Tally, 3)
    uids = [f"u{number}" for number in range(300)]
    calls = {uid: (uid,) for uid in uids}
    service = deployment.service
    assert set(_add_all(client, service, calls)) == {1}
    *_, last = deployment.drain(0, 60)
    assert (last.done, last.problem, last.left) == (True, None, 0)
    assert set(_add_all(client, service, calls)) == {2}
    deployment.scale(1)
    assert set(_add_all(client, service, calls)) == {3}


def _add_all(client: Any, service: str, calls: dict[str, tuple[str]]) -> list[Any]:
    return list(client.service(service).map("add", calls).values())


def test_a_pod_that_is_told_to_end_takes_nobodys_state_with_it(
    client: ray_route.RouteClient, deploy: Deploy
) -> None:
    service = deploy(Tally, 2).service
    uids = [f"u{number}" for number in range(40)]
    assert {call(client, service, uid, "add") for uid in uids} == {1}
    victim = next(uid for uid in uids if pod_of(client, uid, service) == 0)
    os.kill(call(client, service, victim, "pid"), signal.SIGTERM)
    eventually(lambda: pod_of(client, victim, service) == 1, "its uids have moved")
    for expected in (2, 3):
        assert {call(client, service, uid, "add") for uid in uids} == {expected}


def test_a_large_state_goes_by_itself(client: ray_route.RouteClient, deploy: Deploy) -> None:
    service = deploy(Tally, 2).service
    call(client, service, "ann", "carry", "bytes", LARGE)
    move(client, "ann", service)
    assert call(client, service, "ann", "size") == LARGE


def test_what_cannot_be_pickled_stays_where_it_is_and_the_mover_is_told(
    client: ray_route.RouteClient, deploy: Deploy
) -> None:
    deployment = deploy(Tally, 2)
    service = deployment.service
    call(client, service, "ann", "add")
    home = pod_of(client, "ann", service)
    for what in ("lock", "unreadable"):
        call(client, service, "ann", "carry", what)
        with pytest.raises(StateNotMovedError) as told:
            move(client, "ann", service)
        error = told.value
        facts = (error.uid, error.pod, error.target, error.is_final, error.service)
        assert facts == ("ann", home, 1 - home, True, service)
        assert pod_of(client, "ann", service) == home
    assert call(client, service, "ann", "add") == 2, "it is served there, with its state"
    *_, last = deployment.drain(home, 20)
    assert [error.uid for error in last.stuck] == ["ann"]
    assert last.problem is not None
    assert "'ann'" in last.problem
    assert call(client, service, "ann", "add") == 3
    call(client, service, "ann", "drop")
    *_, last = deployment.drain(home, 20)
    assert last.problem is None
    assert call(client, service, "ann", "add") == 4


def test_what_cannot_be_pickled_may_be_dropped(
    client: ray_route.RouteClient, deploy: Deploy
) -> None:
    service = deploy(Tally, 2, on_unpicklable="drop").service
    assert call(client, service, "ann", "add") == 1
    call(client, service, "ann", "carry", "lock")
    move(client, "ann", service)
    assert call(client, service, "ann", "add") == 1
    assert call(client, service, "ann", "news") == ["new"]


def test_two_pods_that_fetch_from_each_other_wait_for_nobody(
    client: ray_route.RouteClient, deploy: Deploy
) -> None:
    service = deploy(Tally, 2).service
    uids = [f"u{number}" for number in range(40)]
    assert {call(client, service, uid, "add") for uid in uids} == {1}
    homes = {uid: pod_of(client, uid, service) for uid in uids}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda uid: move(client, uid, service), uids))
    assert all(pod_of(client, uid, service) == 1 - homes[uid] for uid in uids)
    assert {call(client, service, uid, "add") for uid in uids} == {2}


def test_an_on_acquire_that_fails_keeps_the_state_for_the_next_call(
    client: ray_route.RouteClient, deploy: Deploy, tmp_path: Path
) -> None:
    service = deploy(Tally, 2, args=(str(tmp_path),)).service
    assert call(client, service, "ann", "add") == 1
    fails = tmp_path / "acquire.fails"
    fails.touch()
    move(client, "ann", service)
    with pytest.raises(RuntimeError, match="as it was told"):
        call(client, service, "ann", "add")
    move(client, "ann", service)
    fails.unlink()
    assert call(client, service, "ann", "add") == 2


@pytest.mark.parametrize("step", ["release", "acquire"])
def test_a_router_that_is_killed_in_the_middle_costs_nobody_their_state(
    client: ray_route.RouteClient, deploy: Deploy, tmp_path: Path, step: str
) -> None:
    service = deploy(Tally, 2, args=(str(tmp_path),)).service
    uids = [f"u{number}" for number in range(30)]
    assert {call(client, service, uid, "add") for uid in uids} == {1}
    (tmp_path / f"{step}.waits").touch()
    (tmp_path / f"{step}.seen").unlink(missing_ok=True)
    home = pod_of(client, uids[0], service)
    begun = router_handle(client.namespace).drain.remote(service, home, 60, go_on=False)
    ray.get(begun, timeout=30)
    eventually((tmp_path / f"{step}.seen").exists, f"{step} has begun")
    ray.kill(router_handle(client.namespace), no_restart=False)
    (tmp_path / f"{step}.waits").unlink()
    assert {call(client, service, uid, "add") for uid in uids} == {2}
