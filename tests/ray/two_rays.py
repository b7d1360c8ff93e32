"""A program that leaves its Ray with everything open, and joins another. See its test."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from helpers import eventually, router_handle

import ray_route
from ray_route.store.embedded import EmbeddedServer

HOW: dict[str, Any] = {"num_cpus": 1, "include_dashboard": False, "log_to_driver": False}
# A node of the first Ray is unknown to the second, so its pods are dead once they were silent.
OPTIONS = {"heartbeat_s": 0.3, "pod_lease_s": 3.0}
# Far less than what anybody here waits for; a machine that has much else to do needs some of it.
WITHIN_S = 60


def refused(work: Callable[[], Any]) -> None:
    """See that something says that its Ray is gone, and starts none."""
    was_in_one = ray.is_initialized()
    with pytest.raises(
        ray_route.RayGoneError, match=r"left the Ray \(ray\.shutdown, or a fork\) of .*left"
    ):
        work()
    assert ray.is_initialized() == was_in_one


class Room:
    """Answers at once, or never."""

    def say(self) -> str:
        return "heard"

    def count(self, number: int = 1) -> Iterator[int]:
        yield from range(number)

    def ponder(self, begun: str) -> None:
        Path(begun).touch()
        threading.Event().wait()


class Waiting:
    """A thread that waits for something that does not come, and what it hears in the end."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._raised: list[Exception] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except ray_route.RouteError as error:
            self._raised.append(error)

    def heard(self) -> Any:
        began = time.monotonic()
        self._thread.join(WITHIN_S)
        (error,) = self._raised
        print(f"heard after {time.monotonic() - began:.1f} s: {error!r}", file=sys.stderr)
        return error


def waiting_for_a_call(client: ray_route.RouteClient) -> Waiting:
    """Have a thread wait for a call that is under way and does not end."""
    with tempfile.TemporaryDirectory() as folder:
        begun = Path(folder) / "begun"
        calling = partial(client.call, "slow", "svc", "ponder", str(begun), timeout=600)
        waiting = Waiting(calling)
        eventually(begun.exists, "the call is under way")
    return waiting


def waiting_for_the_router(client: ray_route.RouteClient) -> Waiting:
    """Have a thread wait for a router that does not answer."""
    pid, _ = ray.get(router_handle("left").whereabouts.remote())
    os.kill(pid, signal.SIGSTOP)
    waiting = Waiting(partial(client.compute_linked_pod, "new", "svc", timeout=600))
    deciding = client._session.computing.deciding
    eventually(lambda: any(q.is_busy for q in deciding._queues.values()), "it is asked")
    return waiting


def main() -> None:
    with EmbeddedServer() as server:  # one store for both, so that they look alike
        leave_one_and_join_another(server.url)


def leave_one_and_join_another(url: str) -> None:
    pods: dict[str, Any] = {"namespace": "left", "service": "svc", "replicas": 1, "redis_url": url}
    ray.init("local", **HOW)
    client = ray_route.connect("left", url, **OPTIONS)
    deployment = ray_route.deploy(Room, **pods)
    told = threading.Event()
    by_hand: dict[str, Any] = {"redis_url": url, "on_lost": told.set, **OPTIONS}
    agent = ray_route.PodAgent("left-too", "by-hand", 0, **by_hand).start()
    assert client.call("ann", "svc", "say") == "heard"
    room = client.service("svc", Room)["ann"]
    response, stream = room.say.remote(), room.count.remote(3)
    assert next(stream) == 0
    call, look_up = waiting_for_a_call(client), waiting_for_the_router(client)
    of_first = ray.get_runtime_context().get_worker_id()
    ray.shutdown()
    print("left", flush=True)
    everything: list[Callable[[], Any]] = [
        lambda: client.call("ann", "svc", "say"),
        lambda: client.call_many([("ann", ())], "svc", "say"),
        room.say.remote,
        response.result,
        response.ref,
        response.cancel,
        room.count.remote,
        lambda: next(stream),
        lambda: client.compute_linked_pod("new", "svc"),
        lambda: client.batch_get_linked_pod(["ann"], "svc"),
        lambda: client.actor("ann", "svc"),
        deployment.pods,
        lambda: deployment.scale(2),
        lambda: next(deployment.drain(0)),
        deployment.shutdown,
        lambda: agent.set_linked_pod("ann", 0),
    ]
    for each in everything:
        refused(each)
    error = call.heard()
    # By which was heard of first.
    assert isinstance(error, (ray_route.RayGoneError, ray_route.PodUnavailableError)), error
    assert error.may_have_run
    assert isinstance(look_up.heard(), ray_route.RayGoneError)
    assert not ray.is_initialized(), "nobody has started another"

    assert told.wait(30), "the agent has let its lease run out"

    ray.init("local", **HOW)
    assert ray.get_runtime_context().get_worker_id() == of_first, "that alone tells no difference"
    for each in everything:
        refused(each)
    with ray_route.connect("left-too", url) as other:
        eventually(
            lambda: other.pods("by-hand")[0].life is ray_route.Life.GONE, "its pod is dead", 30
        )
    with (
        ray_route.connect("left", url) as live,
        ray_route.deploy(Room, **pods),
    ):
        assert live.call("ann", "svc", "say") == "heard"
        refused(lambda: client.compute_linked_pod("ann", "svc"))
        client.close()
        client.close()
        assert live.call("bob", "svc", "say") == "heard"
    print("live", flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
