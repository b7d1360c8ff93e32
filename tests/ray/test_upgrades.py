"""An upgrade moves each uid once, with its state, no call fails; one that can't be, is undone."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
from deploying import drive, driver
from helpers import eventually
from ray.util import list_named_actors
from upgraded import Count, Mended, New, Old, OneWay, OneWayForSome, Refusing, Unborn

import ray_route
from ray_route.controller.draining import is_draining
from ray_route.protocol.names import RAY_NAMESPACE, is_recipe_of

pytestmark = pytest.mark.slow

SOON_S = 120.0
UIDS = [f"u{number}" for number in range(60)]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path)


@pytest.fixture
def rooms(deploy: Any, folder: str) -> ray_route.Deployment:
    """Two pods of the old version."""
    deployment: ray_route.Deployment = deploy(Old, replicas=2, args=(folder,), per_uid=True)
    return deployment


def alive(client: Any, service: str) -> dict[int, str]:
    pods = client.pods(service).items()
    return {index: pod.state.value for index, pod in pods if pod.life is ray_route.Life.ALIVE}


def holders(deployment: ray_route.Deployment) -> list[str]:
    names = [it["name"] for it in list_named_actors(all_namespaces=True)]
    return [n for n in names if is_recipe_of(deployment.namespace, deployment.service, n)]


class Callers:
    """Calls every uid again and again, and notes what became of that."""

    def __init__(self, client: Any, service: str) -> None:
        self.client, self.service = client, service
        self.said: Counter[str] = Counter()
        self.versions: dict[str, list[int]] = {uid: [] for uid in UIDS}
        self.failed: list[Any] = []
        self.ended = threading.Event()

    def run(self) -> None:
        rooms = self.client.service(self.service)
        while not self.ended.is_set():
            asked = {uid: rooms[uid].say.remote(self.said[uid]) for uid in UIDS}
            for uid, response in asked.items():
                self.note(uid, response)

    def note(self, uid: str, response: Any) -> None:
        try:
            version, said = response.result(timeout_s=SOON_S)
        except Exception as error:  # noqa: BLE001 - told below
            self.failed.append(error)
            return
        if said != list(range(self.said[uid] + 1)):
            self.failed.append((uid, said))
        self.said[uid] += 1
        self.versions[uid].append(version)


@contextmanager
def called(client: Any, service: str) -> Iterator[Callers]:
    made = Callers(client, service)
    thread = threading.Thread(target=made.run)
    thread.start()
    try:
        eventually(lambda: all(made.said[uid] for uid in UIDS), "each uid was called", SOON_S)
        yield made
        eventually(lambda: made.failed or len({*made.said.values()}) == 1, "a round", SOON_S)
    finally:
        made.ended.set()
        thread.join()


def moves(client: Any, service: str) -> list[int]:
    """Return how often the uids have moved with their states, each count once."""
    return sorted(set(client.call_many([(uid, ()) for uid in UIDS], service, "moved")))


def epochs(client: Any, service: str) -> dict[str, int]:
    return {uid: it.epoch for uid, it in client.compute_linked_pods(UIDS, service).items()}


def test_each_uid_moves_once_with_its_state_and_no_call_fails(
    client: Any, rooms: ray_route.Deployment
) -> None:
    seen: list[ray_route.UpgradeProgress] = []
    rooms.cordon(1)
    with called(client, rooms.service) as under:
        rooms.uncordon(1)  # old and empty: were it open, it would get uids that move again
        rooms.upgrade(New, on_progress=seen.append)
    assert under.failed == []
    assert moves(client, rooms.service) == [1]
    assert all(versions == sorted(versions) for versions in under.versions.values())
    assert client.call("u0", rooms.service, "say", under.said["u0"])[0] == 2
    assert alive(client, rooms.service) == {2: "READY", 3: "READY"}
    status = rooms.status()
    assert (status.generation, status.generations) == (2, {2: 2, 3: 2})
    assert (seen[-1].done, seen[-1].moved, seen[-1].left) == (True, len(UIDS), ())
    assert max(len(it.pods) + len(it.left) for it in seen) <= 3, "more than one beyond those wanted"


def test_what_was_upgraded_is_anyones_to_hold_scale_and_upgrade_again(
    client: Any, rooms: ray_route.Deployment, folder: str
) -> None:
    service = rooms.service
    code = """
import upgraded
with ray_route.connect(namespace) as client:
    client.call("u0", service, "say", 0)
    deployment = ray_route.get_deployment(namespace, service)
    deployment.upgrade(upgraded.New)
print("1")
"""
    drive(code, client.namespace, service=service)
    where = {"namespace": client.namespace, "service": service, "replicas": 2, "per_uid": True}
    again = ray_route.deploy(New, args=(folder,), **where)
    assert again.status().generation == 2
    with pytest.raises(ray_route.ConfigError, match=r"cls upgraded.New.* upgrade it"):
        ray_route.deploy(Old, args=(folder,), **where)
    again.scale(3)
    assert alive(client, service) == {2: "READY", 3: "READY", 4: "READY"}
    name = f"ray_route:{client.namespace}:{service}:3"
    ray.kill(ray.get_actor(name, namespace=RAY_NAMESPACE), no_restart=True)
    eventually(lambda: 3 in alive(client, service), "it is made again, of its class", SOON_S)
    assert client.call("u0", service, "say", 1) == (2, [0, 1])
    again.upgrade(Old, args=(folder,), max_surge=3)
    assert client.call("u0", service, "say", 2) == (1, [0, 1, 2])
    status = again.status()
    assert (status.generation, len(status.pods), len(holders(again))) == (3, 3, 1)
    again.shutdown()
    assert holders(again) == []


def test_indexes_with_gaps_are_brought_back_and_then_left_for_the_next_ones_without_a_failed_call(
    client: Any, deploy: Any, folder: str
) -> None:
    how = {"target_uids": 25, "down_s": 1.0}
    rooms = deploy(Old, replicas=(1, 3), args=(folder,), per_uid=True, **how)
    service, few = rooms.service, UIDS[:2]
    assert moves(client, service) == [0], "all are held"
    eventually(lambda: len(alive(client, service)) == 3, "60 users have three pods", SOON_S)
    for uid in UIDS:
        client.move(uid, service, 1 if uid in few else 0 if uid < "u3" else 2)
    moves(client, service)
    for uid in UIDS[-30:]:
        client.remove(uid, service)
    both = {0: "READY", 2: "READY"}
    eventually(lambda: alive(client, service) == both, "the emptiest one has gone", SOON_S)
    rooms.scale(2)
    assert rooms.status().wanted == (0, 2)

    client.call("odd", service, "say", 0)
    with pytest.raises(ray_route.UpgradeError, match="what is this") as caught:
        rooms.upgrade(Refusing)
    assert (caught.value.undone, alive(client, service)) == (True, both)
    client.remove("odd", service)
    with called(client, service) as under:
        rooms.upgrade(New)
    assert under.failed == []
    new = rooms.status()
    assert (new.pods, new.wanted, set(new.generations.values())) == (*2 * ((3, 4),), {2})
    assert alive(client, service) == {3: "READY", 4: "READY"}
    rooms.scale(3)
    assert rooms.status().pods == (3, 4, 5)


def test_one_object_for_all_uids_hands_its_states_over_and_one_that_fails_to_start_is_undone(
    client: Any, deploy: Any, folder: str
) -> None:
    deployment = deploy(Count, replicas=2, args=(folder,))
    service = deployment.service
    client.call_many([(uid, (uid,)) for uid in UIDS], service, "add")
    before = epochs(client, service)
    with pytest.raises(ray_route.UpgradeError, match=f"no {folder}") as caught:
        deployment.upgrade(Unborn)
    assert (caught.value.undone, type(caught.value.__cause__)) == (True, ray_route.PodStartError)
    assert alive(client, service) == {0: "READY", 1: "READY"}
    assert epochs(client, service) == before, "nobody has moved"
    assert (deployment.status().generation, holders(deployment)) == (1, [])
    deployment.upgrade(Count, max_surge=2)
    assert client.call("u0", service, "add", "u0") == (1, 2)
    assert alive(client, service) == {2: "READY", 3: "READY"}


def test_a_state_that_the_new_class_cannot_read_stops_it_and_all_come_back(
    client: Any, rooms: ray_route.Deployment
) -> None:
    service = rooms.service
    for uid in [*UIDS, "odd"]:
        client.call(uid, service, "say", 0)
    with pytest.raises(ray_route.UpgradeError, match="what is this") as caught:
        rooms.upgrade(Refusing, deadline_s=30)
    assert caught.value.undone
    assert alive(client, service) == {0: "READY", 1: "READY"}
    for uid in [*UIDS, "odd"]:
        assert client.call(uid, service, "say", 1) == (1, [0, 1]), uid
    assert rooms.status().generations == {0: 1, 1: 1}


def test_states_that_cannot_come_back_are_served_where_they_are_until_another_class_takes_all(
    client: Any, rooms: ray_route.Deployment
) -> None:
    service = rooms.service
    uids = [*UIDS, "odd"]
    for uid in uids:
        client.call(uid, service, "say", 0)
    with pytest.raises(ray_route.UpgradeError, match="what is this") as caught:
        rooms.upgrade(OneWay)
    assert (caught.value.undone, set(caught.value.left) <= {2, 3}) == (False, True)
    said = {uid: client.call(uid, service, "say", 1) for uid in uids}
    assert {uid: it for uid, (_, it) in said.items() if it != [0, 1]} == {}
    assert {version for version, _ in said.values()} == {1, 3}
    rooms.upgrade(Mended)
    said = {uid: client.call(uid, service, "say", 2) for uid in uids}
    assert {uid: it for uid, it in said.items() if it != (4, [0, 1, 2])} == {}
    status = rooms.status()
    assert (set(status.generations.values()), len(status.pods)) == ({3}, 2)
    assert len(holders(rooms)) == 1


def test_one_pod_that_cannot_be_left_keeps_nobody_elses_users_from_coming_back(
    client: Any, rooms: ray_route.Deployment
) -> None:
    service = rooms.service
    for uids, other in ((["stuck"], 1), ([*UIDS, "odd"], 0)):
        rooms.cordon(other)
        for uid in uids:
            client.call(uid, service, "say", 0)
        rooms.uncordon(other)
    with pytest.raises(ray_route.UpgradeError, match="what is this") as caught:
        rooms.upgrade(OneWayForSome)
    assert caught.value.left == (2,)
    eventually(lambda: set(rooms.status().generations) == {0, 1, 2}, "pod 0 is back", SOON_S)
    uids = [*UIDS, "odd", "stuck"]
    said = {uid: client.call(uid, service, "say", 1) for uid in uids}
    assert said == {uid: (3 if uid == "stuck" else 1, [0, 1]) for uid in uids}


def test_an_interrupted_upgrade_is_undone_and_one_whose_driver_was_killed_goes_on(
    client: Any, rooms: ray_route.Deployment, folder: str
) -> None:
    service = rooms.service
    for uid in UIDS:
        client.call(uid, service, "say", 0)
    held = client.service(service)["u0"].hold.options(timeout_s=4 * SOON_S).remote()
    eventually((Path(folder) / "held").exists, "a call runs", SOON_S)
    before = client.compute_linked_pod("u0", service)

    def is_under_way() -> bool:
        return is_draining(client._session, service, before.pod)

    frozen: list[int] = []

    def interrupt(_: ray_route.UpgradeProgress) -> None:
        if is_under_way():
            raise KeyboardInterrupt

    def freeze_and_interrupt(_: ray_route.UpgradeProgress) -> None:
        if is_under_way():
            frozen.append(rooms.status().process)
            os.kill(frozen[0], signal.SIGSTOP)
            raise KeyboardInterrupt

    for told in (interrupt, freeze_and_interrupt):  # then its next life alone hears of it
        with pytest.raises(KeyboardInterrupt):
            rooms.upgrade(New, on_progress=told)
        for pid in frozen:
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: rooms.status().generations == {0: 1, 1: 1}, "it is undone", SOON_S)
        eventually(lambda: alive(client, service) == {0: "READY", 1: "READY"}, "as before", SOON_S)
        assert not is_under_way(), "that would take the pod later"
        assert epochs(client, service)["u0"] == before.epoch
    code = """
import upgraded
ray_route.get_deployment(namespace, service).upgrade(upgraded.New)
"""
    upgrading = driver(code, client.namespace, service=service)
    eventually(is_under_way, "it is under way", SOON_S)
    upgrading.kill()
    upgrading.communicate()
    (Path(folder) / "go").touch()
    held.result(timeout_s=SOON_S)
    as_wanted = {2: "READY", 3: "READY"}
    eventually(lambda: alive(client, service) == as_wanted, "it goes on by itself", SOON_S)
    assert client.call("u0", service, "say", 1) == (2, [0, 1])
    eventually(lambda: rooms.status().doing == "", "it has ended", SOON_S)
    assert len(holders(rooms)) == 1


def test_no_second_one_begins_beside_it_and_its_controllers_death_costs_it_nothing(
    client: Any, rooms: ray_route.Deployment, folder: str
) -> None:
    service = rooms.service
    for uid in UIDS:
        client.call(uid, service, "say", 0)
    held = client.service(service)["u0"].hold.options(timeout_s=4 * SOON_S).remote()
    eventually((Path(folder) / "held").exists, "a call runs", SOON_S)
    upgrade = threading.Thread(target=rooms.upgrade, args=(New,))
    pod = client.compute_linked_pod("u0", service).pod
    upgrade.start()
    eventually(lambda: f"drain pod {pod}" in rooms.status().doing, "it drains that", SOON_S)
    with pytest.raises(ray_route.RouteTimeoutError, match="drain pod"):
        rooms.scale(3, timeout=5)
    os.kill(rooms.status().process, signal.SIGKILL)
    (Path(folder) / "go").touch()
    held.result(timeout_s=SOON_S)
    upgrade.join(SOON_S)
    assert not upgrade.is_alive()
    assert moves(client, service) == [1]
    assert client.call("u0", service, "say", 1) == (2, [0, 1])
    assert rooms.status().generations == {2: 2, 3: 2}


def test_an_old_pod_that_dies_in_its_drain_stops_nothing(
    client: Any, rooms: ray_route.Deployment, folder: str
) -> None:
    service = rooms.service
    held = client.service(service)["u0"].hold.options(timeout_s=4 * SOON_S).remote()
    eventually((Path(folder) / "held").exists, "a call runs", SOON_S)
    pod = client.compute_linked_pod("u0", service).pod
    with ThreadPoolExecutor(1) as pool:
        upgrade = pool.submit(rooms.upgrade, New)
        eventually(lambda: is_draining(client._session, service, pod), "it is drained", SOON_S)
        name = f"ray_route:{client.namespace}:{service}:{pod}"
        ray.kill(ray.get_actor(name, namespace=RAY_NAMESPACE), no_restart=False)
        with pytest.raises(ray_route.PodUnavailableError):
            held.result(timeout_s=SOON_S)
        upgrade.result(SOON_S)
    assert rooms.status().generations == {2: 2, 3: 2}
    assert client.call("u0", service, "say", 0) == (2, [0]), "it begins anew"
