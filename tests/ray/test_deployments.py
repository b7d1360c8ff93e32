"""What `deploy` has made outlives its driver, is kept as it is wanted, and is anyone's to hold."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from deploying import drive, driver
from helpers import eventually, unique_name
from services import Asks, Counter, FailsAtWill, Given

import ray_route
from ray_route.controller import handle
from ray_route.protocol.names import RAY_NAMESPACE, controller_name, pod_name
from ray_route.store.keys import Keys
from ray_route.store.scripts import plain_call

pytestmark = pytest.mark.slow

DEPLOY = """
ray_route.deploy(services.Given, args=(b"x" * 300_000,), namespace=namespace, service=service,
                 replicas=2)
print("1")
"""


@pytest.fixture(scope="module")
def left(client: Any) -> Iterator[ray_route.Deployment]:
    """A service of two pods with 300 KB of arguments, whose driver has left."""
    service = unique_name()
    drive(DEPLOY, client.namespace, service=service)
    with ray_route.get_deployment(client.namespace, service) as deployment:
        yield deployment


def controller(deployment: ray_route.Deployment) -> Any:
    name = controller_name(deployment.namespace, deployment.service)
    return ray.get_actor(name, namespace=RAY_NAMESPACE)


def kill_controller(deployment: ray_route.Deployment) -> None:
    """End its process; Ray makes it again."""
    before = deployment.status().controller
    ray.kill(controller(deployment), no_restart=False)
    eventually(lambda: deployment.status().controller > before, "its next life")


def give_up(deployment: ray_route.Deployment, pod: int) -> None:
    name = pod_name(deployment.namespace, deployment.service, pod)
    ray.kill(ray.get_actor(name, namespace=RAY_NAMESPACE), no_restart=True)


def served(client: Any, service: str, method: str) -> Callable[[], Any]:
    """Return a condition: a call for uid "u" is served; its result."""

    def attempt() -> Any:
        try:
            return client.call("u", service, method, idempotent=True, timeout=5)
        except ray_route.RouteError:
            return None

    return attempt


def sizes(client: Any, deployment: ray_route.Deployment, pods: int) -> Callable[[], bool]:
    """Return a condition: so many pods serve, each with its arguments."""

    def attempt() -> bool:
        found = client.pods(deployment.service)
        alive = [index for index, pod in found.items() if pod.life is ray_route.Life.ALIVE]
        if alive != list(range(pods)):
            return False
        for pod in alive:
            client.move("u", deployment.service, pod)
            assert client.call("u", deployment.service, "size") == 300_000
        return True

    return attempt


def state(client: Any, deployment: ray_route.Deployment, pod: int) -> str:
    found = client.pods(deployment.service)[pod]
    return found.state.value if found.life is ray_route.Life.ALIVE else found.life.value


def test_a_pod_starts_again_with_its_arguments_when_its_driver_has_left(
    client: Any, left: ray_route.Deployment
) -> None:
    assert client.call("u", left.service, "size") == 300_000
    link = client.compute_linked_pod("u", left.service)
    os.kill(client.call("u", left.service, "pid"), signal.SIGKILL)
    eventually(
        lambda: client.pods(left.service)[link.pod].incarnation > link.incarnation, "again", 30
    )
    eventually(sizes(client, left, 2), "all serve")


def test_another_driver_scales_it(client: Any, left: ray_route.Deployment) -> None:
    left.scale(3)
    assert sizes(client, left, 3)()
    assert left.status().replicas == 3
    left.scale(2)
    assert sizes(client, left, 2)()


def test_pods_that_ray_has_given_up_are_made_again(client: Any, left: ray_route.Deployment) -> None:
    for pod in (0, 1):
        give_up(left, pod)
    eventually(lambda: left.status().pods == (0, 1), "both are made", 60)
    eventually(sizes(client, left, 2), "and serve", 60)


def test_a_controller_that_dies_takes_up_what_was_wanted(
    client: Any, left: ray_route.Deployment
) -> None:
    left.cordon(1)
    kill_controller(left)
    status = left.status()
    assert (status.replicas, status.cordons) == (2, (1,))
    left.uncordon(1)
    assert sizes(client, left, 2)()


def test_what_redis_has_lost_the_controller_writes_back(
    client: Any, left: ray_route.Deployment
) -> None:
    namespace = client._session.namespace
    key = Keys(client.namespace, 1).wanted(left.service)
    read = plain_call("HGETALL", key)
    before = namespace.store.one(read)
    namespace.store.one(plain_call("DEL", key))
    eventually(lambda: namespace.store.one(read) == before, "all is there again")


def test_a_controller_that_lost_all_in_a_wipe_keeps_what_is_there(
    client: Any, left: ray_route.Deployment
) -> None:
    store, key = client._session.namespace.store, Keys(client.namespace, 1).wanted(left.service)
    pid = left.status().process
    os.kill(pid, signal.SIGSTOP)
    store.one(plain_call("DEL", key))
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: left.status().replicas == 2, "as many as there are", 60)
    assert left.status().pods == (0, 1)
    assert sizes(client, left, 2)()


def test_a_cordoned_pod_gets_no_new_uids_and_keeps_those_it_has(
    client: Any, left: ray_route.Deployment
) -> None:
    client.move("old", left.service, 0)
    left.cordon(0)
    placed = client.compute_linked_pods([unique_name() for _ in range(20)], left.service)
    assert {link.pod for link in placed.values()} == {1}
    assert client.compute_linked_pod("old", left.service).pod == 0
    before = client.pods(left.service)[0].incarnation
    os.kill(client.call("old", left.service, "pid"), signal.SIGKILL)
    eventually(lambda: client.pods(left.service)[0].incarnation > before, "it lives again", 60)
    eventually(lambda: state(client, left, 0) == "DENY_NEW", "its next life is closed, too", 60)
    left.uncordon(0)
    assert state(client, left, 0) == "READY"
    with pytest.raises(ray_route.InvalidInputError, match="has pods"):
        left.cordon(7)


def test_a_drained_pod_is_opened_again(client: Any, left: ray_route.Deployment) -> None:
    *_, last = left.drain(1)
    assert last.problem is None
    left.uncordon(1)
    assert state(client, left, 1) == "READY"
    assert sizes(client, left, 2)()


def test_whoever_deploys_what_is_there_gets_it(client: Any, left: ray_route.Deployment) -> None:
    where = {"namespace": client.namespace, "service": left.service}
    given = (b"x" * 300_000,)
    same = ray_route.deploy(Given, args=given, replicas=2, **where)
    assert same.status() == left.status()
    with pytest.raises(ray_route.ConfigError, match=r"replicas 2; .* scale it") as caught:
        ray_route.deploy(Given, args=given, replicas=3, **where)
    assert caught.value.option == "replicas"
    with pytest.raises(ray_route.ConfigError) as caught:
        ray_route.deploy(Counter, replicas=2, release_s=3.0, **where)
    assert caught.value.option == "cls, code, args, kwargs, store, release_s"


def test_two_drivers_that_deploy_at_once_get_one_service(client: Any) -> None:
    service = unique_name()
    drivers = [driver(DEPLOY, client.namespace, service=service) for _ in range(2)]
    for each in drivers:
        out, err = each.communicate(timeout=250)
        assert out.splitlines()[-1:] == ["1"], err
    deployment = ray_route.get_deployment(client.namespace, service)
    assert sizes(client, deployment, 2)()
    deployment.shutdown()
    with pytest.raises(ray_route.InvalidInputError, match="is not deployed"):
        ray_route.get_deployment(client.namespace, service)


def test_who_held_a_service_that_was_ended_does_nothing_to_the_next_of_its_name(
    client: Any, deploy: Any
) -> None:
    deployment = deploy(Counter, replicas=1)
    held = ray_route.get_deployment(client.namespace, deployment.service)
    deployment.shutdown()
    again = deploy(Counter, replicas=1, service=deployment.service)
    for use in (held.status, lambda: held.scale(2), lambda: held.cordon(0)):
        with pytest.raises(ray_route.ClosedError):
            use()
    held.shutdown()
    assert client.call("u", again.service, "add", "u") == 1
    assert again.status().pods == (0,)


@pytest.mark.parametrize("is_told", [True, False])
def test_nor_does_who_is_just_ending_it_as_another_has_done_so_and_deployed_the_next(
    client: Any, deploy: Any, monkeypatch: pytest.MonkeyPatch, is_told: bool
) -> None:
    service = deploy(Counter, replicas=1).service
    held = ray_route.get_deployment(client.namespace, service)
    has_ended = handle.ControllerHandle._has_ended

    def late(*given: Any) -> bool:
        """Hear of the end, or have its answer lost, when the next service is there."""
        assert has_ended(*given)
        deploy(Counter, replicas=1, service=service)
        assert client.call("u", service, "add", "u") == 1
        return is_told

    with monkeypatch.context() as patched:
        patched.setattr(handle.ControllerHandle, "_has_ended", late)
        held.shutdown()
    assert client.call("u", service, "add", "u") == 2


def test_nor_if_the_next_is_there_at_whatever_moment_it_looks(
    client: Any, deploy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to its question whose the name is may be old by the time it comes."""
    service = deploy(Counter, replicas=1).service
    held = ray_route.get_deployment(client.namespace, service)
    named, has_ended = handle.ControllerHandle._named, handle.ControllerHandle._has_ended

    def old(controller: Any) -> Any:
        told = named(controller)
        if told is None:
            patched.undo()
            deploy(Counter, replicas=1, service=service)
            assert client.call("u", service, "add", "u") == 1
        return told

    def unheard(*given: Any) -> bool:
        """Lose the answer of a controller that has ended all by then."""
        assert has_ended(*given)
        patched.setattr(handle.ControllerHandle, "_named", old)
        return False

    with monkeypatch.context() as patched:
        patched.setattr(handle.ControllerHandle, "_has_ended", unheard)
        held.shutdown()
    assert client.call("u", service, "add", "u") == 2


def test_an_actor_among_the_arguments_lives_as_long_as_the_service(
    client: Any, deploy: Any
) -> None:
    class Shared:
        def hello(self) -> str:
            return "hello"

    deployment = deploy(Asks, replicas=1, args=(ray.remote(Shared).options(num_cpus=0).remote(),))
    gc.collect()
    assert client.call("u", deployment.service, "ask") == "hello"
    give_up(deployment, 0)
    eventually(served(client, deployment.service, "ask"), "its next pod has it, too", 60)


def test_an_argument_that_never_comes_ends_deploy_at_its_time_limit(client: Any) -> None:
    service = unique_name()
    never = ray.remote(num_cpus=100_000)(lambda: 1).remote()  # no node has so many
    where: Any = {"namespace": client.namespace, "service": service, "replicas": 1, "timeout": 1.0}
    late = r"the object of the ObjectRef args\[1\]"
    try:
        with pytest.raises(ray_route.RouteTimeoutError, match=late):
            ray_route.deploy(Given, args=(1, never), **where)
    finally:
        ray.cancel(never)
    with pytest.raises(ray_route.InvalidInputError, match="is not deployed"):
        ray_route.get_deployment(client.namespace, service)
    assert client.pods(service) == {}, "nothing has been made"


def test_a_driver_that_dies_half_way_leaves_what_ends_by_itself(
    client: Any, tmp_path: Path
) -> None:
    """Its controller waits for as long as the deployment may take; here it is told to end."""
    service = unique_name()
    code = """
ray_route.deploy(services.Gated, args=(folder,), namespace=namespace, service=service, replicas=1)
"""
    begun = driver(code, client.namespace, service=service, folder=str(tmp_path))
    eventually((tmp_path / "made").exists, "its pod starts", 60)
    begun.kill()
    begun.communicate()
    deployment = ray_route.get_deployment(client.namespace, service)
    assert deployment.status().replicas == 0
    kill_controller(deployment)
    assert deployment.status().replicas == 0, "its next life waits, too"
    (tmp_path / "go").touch()
    deployment.shutdown()
    with pytest.raises(ray_route.InvalidInputError, match="is not deployed"):
        ray_route.get_deployment(client.namespace, service)


def test_a_pod_that_fails_to_start_is_made_again_and_reported(
    client: Any, deploy: Any, tmp_path: Any
) -> None:
    deployment = deploy(FailsAtWill, replicas=2, args=(str(tmp_path),))
    (tmp_path / "fail").touch()
    give_up(deployment, 1)
    eventually(lambda: "as told" in deployment.status().problems.get(1, ""), "it is told why", 60)
    with pytest.raises(ray_route.PodStartError, match="as told"):
        deployment.scale(3)
    assert deployment.status().replicas == 2
    (tmp_path / "fail").unlink()
    eventually(lambda: state(client, deployment, 1) == "READY", "it serves", 60)
    eventually(lambda: not deployment.status().problems, "nothing is in the way")


def test_a_service_without_its_controller_can_be_ended(client: Any, deploy: Any) -> None:
    deployment = deploy(Counter, replicas=2)
    ray.kill(controller(deployment), no_restart=True)
    again = lambda: deploy(Counter, replicas=2, service=deployment.service)  # noqa: E731
    with pytest.raises(ray_route.ConfigError, match="has no controller"):
        again()
    ray_route.get_deployment(client.namespace, deployment.service).shutdown()
    assert sorted(again().pods()) == [0, 1]
