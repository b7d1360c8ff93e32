"""A service has as many pods as its load needs: more at once; the emptiest goes, with its users."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from deploying import recipe_of
from helpers import eventually, unique_name
from lives import Service
from tallies import Tally, Weighted

import ray_route
from ray_route.cli.app import main
from ray_route.controller.making import PodMaker
from ray_route.store.scripts import plain_call

pytestmark = pytest.mark.slow

SOON_S = 120.0
"""For what takes a few seconds where the machine has time."""
TARGET = 10
QUICK_S, NEVER_S = 1.0, 3_000.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tallies")


@pytest.fixture(scope="module")
def how(client: Any, folder: Path) -> dict[str, Any]:
    """How the service is deployed: no pod goes before a test says so."""
    return {
        "namespace": client.namespace,
        "service": unique_name(),
        "replicas": (1, 4),
        "target_uids": TARGET,
        "down_s": NEVER_S,
        "args": (str(folder),),
        "ray_actor_options": {"max_concurrency": 16},
    }


@pytest.fixture(scope="module")
def tallies(how: dict[str, Any]) -> Iterator[ray_route.Deployment]:
    with ray_route.deploy(Tally, **how) as deployment:
        yield deployment


class Users:
    """Users of a service, and how often each has been counted."""

    def __init__(self, client: Any, service: str) -> None:
        self.client, self.service = client, service
        self.counts: dict[str, int] = {}

    def come(self, *uids: str) -> None:
        for uid in uids:
            self.counts[uid] = self.client.call(uid, self.service, "add", uid)

    def go(self, *uids: str) -> None:
        for uid in uids:
            self.client.remove(uid, self.service)
            del self.counts[uid]

    def count(self) -> None:
        """Count each once more: none may have lost its count, and no call fails."""
        for uid in self.counts:
            self.counts[uid] += 1
            assert self.client.call(uid, self.service, "add", uid) == self.counts[uid]

    def at(self) -> dict[int, set[str]]:
        """Return whom each pod has."""
        links = self.client.compute_linked_pods(list(self.counts), self.service)
        return {
            pod: {uid for uid, link in links.items() if link.pod == pod}
            for pod in {link.pod for link in links.values()}
        }

    def put(self, uids: set[str], pod: int) -> None:
        for uid in sorted(uids):
            self.client.move(uid, self.service, pod)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count them all, again and again, within the block."""
        stop = threading.Event()

        def go_on() -> None:
            while not stop.is_set():
                self.count()

        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(go_on)
            try:
                yield
            finally:
                stop.set()
            done.result(SOON_S)


@pytest.fixture
def users(client: Any, tallies: ray_route.Deployment) -> Iterator[Users]:
    """One pod without users at first, which autoscales, though none goes."""
    tallies.scale(1)
    tallies.scale((1, 4), target_uids=TARGET, down_s=NEVER_S)
    users = Users(client, tallies.service)
    yield users
    users.go(*list(users.counts))


def names(count: int, kind: str = "u") -> list[str]:
    return [f"{kind}{number}" for number in range(count)]


def serve(tallies: ray_route.Deployment, *indexes: int) -> None:
    """Wait until these pods serve, and no others."""

    def alive() -> bool:
        pods = tallies.pods().values()
        ready = [
            pod.pod
            for pod in pods
            if pod.life is ray_route.Life.ALIVE and pod.state is ray_route.RoutingState.READY
        ]
        return ready == list(indexes) == list(tallies.status().wanted)

    eventually(alive, f"pods {indexes} serve", SOON_S)


def uneven(users: Users, tallies: ray_route.Deployment) -> tuple[set[str], set[str], set[str]]:
    """Have 20, 3 and 7 users at pods 0, 1 and 2; return them."""
    users.come(*names(30))
    serve(tallies, 0, 1, 2)
    everybody = set(users.counts)
    few, some = set(names(3)), set(names(10)) - set(names(3))
    for uids, pod in ((few, 1), (some, 2), (everybody - few - some, 0)):
        users.put(uids, pod)
    users.count()
    return everybody - few - some, few, some


def test_load_makes_pods_and_the_emptiest_goes_with_its_users_and_without_a_failed_call(
    users: Users, tallies: ray_route.Deployment
) -> None:
    many, few, some = uneven(users, tallies)
    assert users.at() == {0: many, 1: few, 2: some}, "those who were there have not moved"
    users.go(*sorted(many)[:15])
    many = set(sorted(many)[15:])

    with users.counting():
        tallies.scale((1, 4), target_uids=TARGET, down_s=QUICK_S)
        serve(tallies, 0, 2)
    users.count()
    at = users.at()
    assert at[0] | at[2] == many | few | some
    assert (at[0] >= many, at[2] >= some) == (True, True), "only the emptiest pod's have moved"
    told = eventually(  # those who have just moved are held again
        lambda: (it := tallies.status().autoscaling) and it.why.startswith("15 uids") and it,
        "all are counted",
        SOON_S,
    )
    assert (told.policy.least, told.policy.most, told.desired) == (1, 4, 2)
    assert told.why.startswith("15 uids need 2 pods of 10 each")

    users.come(*names(10, "more"))
    serve(tallies, 0, 1, 2)  # the lowest index that is free is taken


def test_a_load_that_falls_and_rises_again_ends_nobody(
    users: Users, tallies: ray_route.Deployment
) -> None:
    crowd = names(25)
    for _ in range(3):
        users.come(*crowd)
        serve(tallies, 0, 1, 2)
        users.go(*crowd)
        told = eventually(
            lambda: (it := tallies.status().autoscaling) and it.why.startswith("0 uids") and it,
            "it is seen that nobody is there",
            SOON_S,
        )
        assert told.desired == 3
        assert told.why.endswith("fewer once 3000 s have needed no more")


def test_a_controller_that_is_killed_goes_on_as_it_was_told(
    users: Users, tallies: ray_route.Deployment, folder: Path
) -> None:
    os.kill(tallies.status().process, signal.SIGKILL)
    many, few, some = uneven(users, tallies)
    users.go(*sorted(many)[:15])
    waits = folder / "release.waits"
    waits.touch()
    try:
        tallies.scale((1, 4), target_uids=TARGET, down_s=QUICK_S)
        eventually(lambda: tallies.status().doing.startswith("drain"), "a drain", SOON_S)
        os.kill(tallies.status().process, signal.SIGKILL)
    finally:
        waits.unlink()
    with users.counting():
        eventually(lambda: len(tallies.status().wanted) == 2, "two pods are left", SOON_S)
        eventually(lambda: len(users.at()) == 2, "all are there", SOON_S)
    users.count()
    assert set(users.counts) == few | some | set(sorted(many)[15:])


@contextmanager
def held_drain(users: Users, tallies: ray_route.Deployment, folder: Path) -> Iterator[None]:
    """Have the drain of pod 1, which has two users of eight, not come to its end in the block."""
    users.put({"u0", "u1"}, 1)
    users.count()  # now they are held there, and are to be released
    life = tallies.pods()[1].incarnation
    waits = folder / "release.waits"
    waits.touch()
    try:
        tallies.scale((1, 4), target_uids=TARGET, down_s=QUICK_S)
        eventually(lambda: tallies.status().doing.startswith("drain"), "a drain", SOON_S)
        yield
        assert tallies.pods()[1].incarnation == life, "it has not come to its end"
    finally:
        waits.unlink()


def test_a_drain_gives_way_to_a_load_that_rises_and_to_whoever_scales(
    users: Users, tallies: ray_route.Deployment, folder: Path
) -> None:
    users.come(*names(11))
    serve(tallies, 0, 1)
    users.go(*names(11)[8:])  # one pod has room for those who are left

    with held_drain(users, tallies, folder):
        users.come(*names(9, "more"))
        eventually(lambda: not tallies.status().doing, "the drain has ended", SOON_S)
        told = tallies.status()
        assert told.autoscaling is not None
        assert (told.wanted, told.autoscaling.desired) == ((0, 1), 2)
    serve(tallies, 0, 1)
    users.count()
    users.go(*names(9, "more"))

    with held_drain(users, tallies, folder):
        tallies.scale(2, timeout=SOON_S)
        assert tallies.status().autoscaling is None
    serve(tallies, 0, 1)
    users.count()


def test_who_is_drained_by_hand_is_ended_and_made_anew_if_it_is_needed_and_strays_are_wanted(
    client: Any, users: Users, tallies: ray_route.Deployment, folder: Path
) -> None:
    users.come(*names(11))
    serve(tallies, 0, 1)
    before = tallies.pods()[0].incarnation
    *_, last = tallies.drain(0)
    assert last.problem is None
    eventually(lambda: tallies.pods()[0].incarnation != before, "it is made anew", SOON_S)
    serve(tallies, 0, 1)

    PodMaker(recipe_of(Tally, client, tallies.service, str(folder)), Tally, []).make(3)
    serve(tallies, 0, 1, 3)  # as an earlier life of the controller may leave it
    users.count()


def test_the_load_that_pods_report_decides_and_one_that_is_none_harms_nobody(
    client: Any, deploy: Any, tmp_path: Path
) -> None:
    how = {"target_load": 10, "down_s": NEVER_S, "args": (str(tmp_path),)}
    heavy = deploy(Weighted, replicas=(1, 3), **how)
    users, pods = Users(client, heavy.service), client._session.namespace.keys.pods(heavy.service)
    store = client._session.namespace.store
    users.come(*names(3))

    def report(load: float | None) -> None:
        client.call("u0", heavy.service, "report", "u0", load)

    report(25)
    serve(heavy, 0, 1, 2)
    assert heavy.status().autoscaling.why.startswith("25 of load needs 3 pods of 10 each")
    assert users.at() == {0: set(users.counts)}, "who was there has not moved"
    for load in (math.nan, math.inf, -1.0):
        with pytest.raises(ray_route.NestedCallError, match="finite number from 0 on"):
            report(load)
    frozen = Service(client, heavy)
    frozen.recipe = recipe_of(Weighted, client, heavy.service, str(tmp_path))
    try:
        life = frozen.life()
        for spoil in (("HSET", pods, "0:load", "nan"), ("HDEL", pods, "0:load")):

            def told(spoil: tuple[str, ...] = spoil) -> str:
                store.one(plain_call(*spoil))
                life.keeping.look()
                told = life.keeping.autoscaler.told()
                assert told is not None
                assert (told.desired, life.upkeep.named().keys()) == (3, {0, 1, 2})
                return told.why

            eventually(lambda: told().startswith("0 of load needs"), "it is seen", SOON_S)
    finally:
        os.kill(frozen.pid, signal.SIGKILL)  # its next life goes on
    for uid, pod in (("u1", 1), ("u2", 2)):
        client.move(uid, heavy.service, pod)
    users.count()
    report(None)  # now it is as many as it has uids
    heavy.scale((1, 3), target_load=10, down_s=QUICK_S)
    eventually(lambda: len(heavy.status().pods) == 1, "one of them is left", SOON_S)
    serve(heavy, *heavy.status().wanted)
    users.count()

    def told_of_all() -> bool:
        told = heavy.status().autoscaling
        return told is not None and told.why.startswith("3 of load needs 1 pods of 10 each")

    eventually(told_of_all, "all three are counted", SOON_S)


def status_of(*command: str) -> object:
    """Run a command; return its exit status."""
    with pytest.raises(SystemExit) as ended:
        main([*command])
    return ended.value.code


def test_who_decides_is_said_and_changed_as_replicas_are(
    users: Users,
    tallies: ray_route.Deployment,
    how: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    users.come(*names(25))
    serve(tallies, 0, 1, 2)
    ray_route.deploy(Tally, **how).close()  # as it is, however many pods there are
    with pytest.raises(ray_route.ConfigError, match=r"replicas \(1, 4\)"):
        ray_route.deploy(Tally, **{**how, "replicas": (1, 5)})
    with pytest.raises(ray_route.ConfigError, match="rebalance not set"):
        ray_route.deploy(Tally, **how, rebalance=0.5)
    tallies.keep_even(0.5)
    ray_route.deploy(Tally, **how, rebalance=0.5).close()
    assert tallies.status().tolerance == 0.5
    with pytest.raises(ray_route.ConfigError, match=r"rebalance 0\.5"):
        ray_route.deploy(Tally, **how)
    tallies.keep_even(None)
    ray_route.deploy(Tally, **how).close()
    where = ["-n", tallies.namespace, "--json"]
    assert status_of("scale", tallies.service, "2", *where) == 0
    assert tallies.status().autoscaling is None, "a number that somebody asks for stands"
    limits = ("2-3", "--target-load", "1")
    assert status_of("scale", tallies.service, *limits, *where) == 0
    serve(tallies, 0, 1, 2)
    capsys.readouterr()
    assert status_of("service", tallies.service, *where) == 0
    told = json.loads(capsys.readouterr().out)["autoscaling"]
    assert told["policy"] == {
        "least": 2,
        "most": 3,
        "target_uids": None,
        "target_load": 1.0,
        "down_s": 300.0,
    }
    assert status_of("scale", tallies.service, "2-3", *where) == 2, "a range needs a target"
    users.count()
