"""Loads of pods are evened out on request: with states, at a bounded rate, and then never again."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from helpers import eventually, unique_name
from tallies import Weighted

import ray_route
from ray_route.cli.app import main
from ray_route.clock import Deadline
from ray_route.errors import NestedCallError
from ray_route.runtime.waiting import run

pytestmark = pytest.mark.slow

UIDS = [f"user-{number}" for number in range(60)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rooms")


@pytest.fixture(scope="module")
def rooms(client: Any, folder: Path) -> Iterator[ray_route.Deployment]:
    """Three pods of one service; tests put everybody where they want them."""
    with ray_route.deploy(
        Weighted,
        namespace=client.namespace,
        service=unique_name(),
        replicas=3,
        args=(str(folder),),
        ray_actor_options={"max_concurrency": 16},
    ) as deployment:
        yield deployment


@pytest.fixture
def crowded(client: Any, rooms: ray_route.Deployment) -> dict[str, int]:
    """All users at pod 0, each with a count; returns the counts."""
    for uid in UIDS:
        client.remove(uid, rooms.service)
        client.set_linked_pod_if_absent(uid, rooms.service, 0)
    return {uid: client.call(uid, rooms.service, "add", uid) for uid in UIDS}


def placed(client: Any, rooms: ray_route.Deployment) -> dict[str, ray_route.Link]:
    """Return the links as Redis has them: what is near may lag behind what has just moved."""
    return {uid: client.get_linked_pod_not_cache(uid, rooms.service) for uid in UIDS}


def test_a_run_evens_out_moves_states_fails_no_call_and_a_second_moves_nobody(
    client: Any, rooms: ray_route.Deployment, crowded: dict[str, int]
) -> None:
    planned = rooms.rebalance(dry_run=True)
    assert planned.before == pytest.approx({0: 60, 1: 0, 2: 0})
    assert planned.moved == 0
    assert max(planned.after.values()) <= 22
    assert {link.pod for link in placed(client, rooms).values()} == {0}, "nobody has moved"

    stop, counts = threading.Event(), dict(crowded)

    def call(some: list[str]) -> None:
        while not stop.is_set():
            for uid in some:
                counts[uid] += 1
                assert client.call(uid, rooms.service, "add", uid) == counts[uid]

    before = placed(client, rooms)
    with ThreadPoolExecutor(2) as pool:
        callers = [pool.submit(call, UIDS[n:10:2]) for n in range(2)]
        try:
            done = rooms.rebalance(max_moves_per_s=200)
        finally:
            stop.set()
        for caller in callers:
            caller.result(20)
    after = placed(client, rooms)
    moved = [uid for uid in UIDS if after[uid] != before[uid]]
    assert (done.problem, done.moved) == ("", len(moved))
    assert len(moved) + len(done.kept) == len(done.moves)
    assert {uid: after[uid].pod for uid in moved} == {
        move.uid: move.target for move in done.moves if move.uid not in done.kept
    }
    for uid in UIDS:
        assert client.call(uid, rooms.service, "add", uid) == counts[uid] + 1

    again = rooms.rebalance()
    assert (again.moves, again.moved) == ((), 0), "a run right after a run moves nobody"


def test_users_with_a_call_stay_while_others_can_go(
    client: Any, rooms: ray_route.Deployment, crowded: dict[str, int], folder: Path
) -> None:
    del crowded
    busy = UIDS[:8]
    handle = client.service(rooms.service, Weighted)
    running = [handle[uid].wait.remote(uid) for uid in busy]
    for uid in busy:
        eventually((folder / f"waits-{uid}").exists, "its call runs")
    try:
        done = rooms.rebalance(max_moves_per_s=500)
        assert not {move.uid for move in done.moves} & set(busy)
        assert done.moved == len(done.moves) > 30
        assert {placed(client, rooms)[uid].pod for uid in busy} == {0}
    finally:
        (folder / "go").touch()
    for response in running:
        response.result(timeout_s=30)


def test_what_users_are_said_to_weigh_counts(
    client: Any, rooms: ray_route.Deployment, crowded: dict[str, int]
) -> None:
    del crowded
    for uid in UIDS[:2]:
        client.call(uid, rooms.service, "weigh", uid, 60)
    planned = rooms.rebalance(dry_run=True)
    assert planned.before[0] == pytest.approx(60 * 2 + 58, abs=0.1)
    assert len({move.uid for move in planned.moves} & set(UIDS[:2])) == 1, "one of the heavy ones"
    hot = client._session.namespace.ask("hottest", rooms.service, 2)
    hottest = run(hot, Deadline.after(30))
    assert {(one.uid, one.pod, one.load) for one in hottest} == {(uid, 0, 60) for uid in UIDS[:2]}
    for load in (-1, float("nan"), "much"):
        with pytest.raises(NestedCallError, match="must be a finite number"):
            client.call(UIDS[0], rooms.service, "weigh", UIDS[0], load)
    for uid in UIDS[2:30]:
        client.call(uid, rooms.service, "weigh", uid, 60)
    done = rooms.rebalance(max_moves_per_s=500)
    assert done.moved == len(done.moves) > 0
    assert rooms.rebalance(dry_run=True).moves == (), "though their new pods can't tell yet"
    with pytest.raises(NestedCallError, match="is not held by this pod"):
        client.call(UIDS[0], rooms.service, "weigh", "nobody", 1)


def test_a_cordoned_pod_takes_no_part(
    client: Any, rooms: ray_route.Deployment, crowded: dict[str, int]
) -> None:
    del crowded
    rooms.cordon(2)
    try:
        planned = rooms.rebalance(dry_run=True)
        assert set(planned.before) == {0, 1}
        assert {move.target for move in planned.moves} == {1}
    finally:
        rooms.uncordon(2)


def test_a_run_stops_when_a_pod_dies_and_at_its_deadline(
    client: Any, rooms: ray_route.Deployment, crowded: dict[str, int]
) -> None:
    done = rooms.rebalance(max_moves_per_s=2, deadline_s=1.5)
    assert "the time is over, 1.5 s" in done.problem
    assert 1 <= done.moved < 10
    pid = next(
        client.call(uid, rooms.service, "pid", uid)
        for uid, link in placed(client, rooms).items()
        if link.pod != 0
    )
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(rooms.rebalance, max_moves_per_s=2, deadline_s=120)
        eventually(lambda: "even loads out" in rooms.status().doing, "it has begun")
        os.kill(pid, signal.SIGKILL)
        done = running.result(60)
    assert "have died, or take no new uids" in done.problem
    assert done.moved < len(done.moves)
    kept = [uid for uid, link in placed(client, rooms).items() if link.pod == 0]
    assert kept
    for uid in kept:
        assert client.call(uid, rooms.service, "add", uid) == crowded[uid] + 1


def told(
    capsys: pytest.CaptureFixture[str], name: str, rooms: ray_route.Deployment, *words: str
) -> tuple[object, str]:
    """Run a command on the service; return its status, and all that it has printed."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([name, rooms.service, "-n", rooms.namespace, *words])
    printed = capsys.readouterr()
    return ended.value.code, printed.out or printed.err


def test_the_command_shows_the_plan_first(
    client: Any,
    rooms: ray_route.Deployment,
    crowded: dict[str, int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    del crowded
    eventually(lambda: len(serving(client, rooms)) == 3, "all serve")

    def command(*words: str, name: str = "rebalance") -> tuple[object, str]:
        return told(capsys, name, rooms, *words)

    client.call("user-7", rooms.service, "weigh", "user-7", 3)
    status, out = command("--count", "1", "--uids", "2", "--json", name="top")
    assert json.loads(out)["hottest"][0]["uid"] == "user-7"
    assert re.search("hottest uids(.|\n)*user-7", command("--count", "1", name="top")[1])
    client.call("user-7", rooms.service, "weigh", "user-7", None)

    status, out = command("--dry-run")
    assert (status, "uids are to move" in out, "uids that leave" in out) == (0, True, True)
    assert {link.pod for link in placed(client, rooms).values()} == {0}
    status, out = command("--max-moves-per-s", "500")
    assert status == 0
    assert re.search(r"uids are to move(.|\n)*\d+ uids moved", out)
    status, out = command("--json")
    assert (status, json.loads(out)["moves"]) == (0, [])


def test_the_command_has_loads_kept_even_from_now_on_and_no_more(
    rooms: ray_route.Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*words: str) -> tuple[object, str]:
        return told(capsys, "rebalance", rooms, *words)

    for refused in (("--keep", "--dry-run"), ("--keep", "--deadline", "300")):
        status, said = command(*refused)
        assert (status, f"{refused[1]} does not go with --keep" in said) == (2, True)
    assert rooms.status().tolerance is None, "nothing was changed"
    status, said = command("--keep", "--tolerance", "0.2")
    assert (status, "no pod more than 0.2 above the mean" in said) == (0, True)
    assert rooms.status().tolerance == 0.2
    assert "20% more than the mean" in told(capsys, "service", rooms)[1]
    status, said = command("--no-keep", "--tolerance", "0.3")
    assert (status, "--tolerance does not go with --no-keep" in said) == (2, True)
    status, said = command("--no-keep", "--json")
    assert (status, json.loads(said)) == (0, {"service": rooms.service, "tolerance": None})
    assert rooms.status().tolerance is None
    status, said = command("--keep", "--json")
    assert (status, json.loads(said)) == (0, {"service": rooms.service, "tolerance": 0.1})
    rooms.keep_even(None)


def serving(client: Any, rooms: ray_route.Deployment) -> list[int]:
    pods = client.pods(rooms.service)
    return [index for index, pod in pods.items() if pod.life is ray_route.Life.ALIVE]
