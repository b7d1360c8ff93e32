"""A program that joins by Ray Client and prints what works there, as JSON. See its test."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
import ray
from helpers import end_router, eventually
from talkers import Talker

import ray_route
from ray_route.testing import faults


def outcome(use: Callable[[], Any]) -> Any:
    """Return what came of something, or the error's first words."""
    try:
        return use()
    except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - the test says which
        return f"{type(error).__name__}: {error}"


class Louder(Talker):
    """The class of an upgrade: pods get it by value, since no module has it there."""

    def louder(self) -> str:
        return "!"


async def awaited(namespace: str, url: str) -> Any:
    async with await ray_route.connect_async(namespace, url) as client:
        room = client.service("talkers", Talker)["carl"]
        return [await client.call("carl", "talkers", "say", "carl", 1), await room.three.remote()]


def attached(namespace: str, url: str) -> Any:
    found = ray_route.get_deployment(namespace, "talkers", redis_url=url)
    try:
        return found.status().replicas
    finally:
        found.close()


def process_told(namespace: str, url: str) -> str:
    """Return what the agent has told of its process, which the server's node can't look up."""
    with ray_route.connect(namespace, url) as client:
        record = faults._record(client, "by-hand", 0)
    assert record is not None
    return record.process.partition("-")[0]


def by_hand(namespace: str, url: str) -> Any:
    agent = ray_route.PodAgent(namespace, "by-hand", 0, redis_url=url).start()
    try:
        link = agent.set_linked_pod("ann")
        with agent.serving("ann", link.epoch, link.incarnation):
            return [link.pod, process_told(namespace, url)]
    finally:
        agent.stop()


def nowhere(namespace: str, url: str) -> None:
    """Deploy what no node has room for."""
    where: dict[str, Any] = {"namespace": namespace, "service": "nowhere", "redis_url": url}
    options = {"num_gpus": 3}
    ray_route.deploy(Talker, **where, replicas=1, ray_actor_options=options, timeout=3)


def uses(client: ray_route.RouteClient, deployment: Any, url: str) -> dict[str, Callable[[], Any]]:
    room = client.service("talkers", Talker)["ann"]
    other = client.service("talkers", Talker)["bob"]
    many = [f"user-{number}" for number in range(5_000)]
    untaken = lambda: len(client._session.dispatcher.untaken)  # noqa: E731
    owner: Callable[[], int] = lambda: client.compute_linked_pod("ann", "talkers").pod  # noqa: E731
    return {
        "call": lambda: client.call("ann", "talkers", "say", "ann", "hi"),
        "handle": lambda: room.say.remote("ann", "ho").result(),
        "error": lambda: room.fail.remote("my fault").result(),
        "order": lambda: [room.say.remote("ann", n) for n in range(20)][-1].result()[-20:],
        "map": lambda: client.service("talkers").map("three", {"ann": (), "bob": ()}),
        "many": lambda: client.call_many([("ann", ()), ("bob", ())], "talkers", "three"),
        "pass on": lambda: other.echo.remote(room.three.remote()).result(),
        "ref": lambda: ray.get(room.three.remote().ref()),
        "large": lambda: other.size.remote(room.big.remote(1_000_000)).result(),
        "done": lambda: eventually(room.three.remote().done, "it is there", 30),
        "cancel": lambda: room.three.remote().cancel(),
        "untaken": lambda: eventually(lambda: not untaken(), "none is on its way", 30),
        "stream": lambda: list(room.count.remote(3)),
        "actor": lambda: ray.get(client.actor("ann", "talkers").three.remote()),
        "batch": lambda: len(client.batch_get_linked_pod(["ann", "bob"], "talkers").missing),
        "move": lambda: client.move("ann", "talkers", 1 - owner()).pod + 1 - owner(),
        "after": lambda: [room.three.remote().result(), untaken()][0],
        "awaited": lambda: asyncio.run(awaited(client.namespace, url)),
        "explain": lambda: client.explain("ann", "talkers").uid,
        "remove": lambda: client.remove("ann", "talkers"),
        "sweep": lambda: client.sweep("talkers"),
        "scale": lambda: [deployment.scale(3), len(deployment.pods())][1],
        "known": lambda: client.get_linked_pod("bob", "talkers") is not None,
        "large batch": lambda: len(client.batch_get_linked_pod(many, "talkers").missing),
        "pods": lambda: sorted(client.pods("talkers")),
        "status": lambda: deployment.status().replicas,
        "cordon": lambda: [deployment.cordon(2), deployment.status().cordons][1],
        "uncordon": lambda: [deployment.uncordon(2), deployment.status().cordons][1],
        "rebalance": lambda: deployment.rebalance().problem,
        "nowhere": lambda: nowhere(client.namespace, url),
        "attach": lambda: attached(client.namespace, url),
        "agent": lambda: by_hand(client.namespace, url),
        "upgrade": lambda: deployment.upgrade(Louder),
        "upgraded": lambda: client.call("bob", "talkers", "louder"),
        "drain": lambda: list(deployment.drain(min(deployment.status().pods)))[-1].problem,
    }


def main(address: str, namespace: str, url: str) -> None:
    ray.init(address)
    said = {"no url": outcome(lambda: ray_route.connect(namespace))}
    pods: dict[str, Any] = {"namespace": namespace, "service": "talkers", "redis_url": url}
    with ray_route.connect(namespace, url) as client:
        with ray_route.deploy(Talker, **pods, replicas=2) as deployment:
            for what, use in uses(client, deployment, url).items():
                said[what] = outcome(use)
        end_router(namespace)
    print(json.dumps(said))
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
