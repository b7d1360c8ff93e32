"""Clients and deployments end once, each by itself, and say so when they are used later."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from helpers import eventually
from services import Counter

import ray_route
from ray_route.client import sessions

USES: dict[str, Callable[[Any, str], Any]] = {
    "a look-up": lambda client, uid: client.compute_linked_pod(uid, "svc"),
    "a look-up of many": lambda client, uid: client.compute_linked_pods([uid], "svc"),
    "a look into the cache": lambda client, uid: client.get_linked_in_cache(uid, "svc"),
    "a batch": lambda client, uid: client.batch_get_linked_pod([uid], "svc"),
    "a call": lambda client, uid: client.call(uid, "svc", "pid"),
    "a batch of calls": lambda client, uid: client.call_many([(uid, ())], "svc", "pid"),
    "a drain": lambda client, _: next(client.drain("svc", 0)),
}


def users(namespace: str) -> int:
    """How many in this process use a namespace's session."""
    return sum(each.users for (_, name, *_), each in sessions._shared.items() if name == namespace)


def test_a_client_that_is_closed_twice_ends_no_other(client: Any, svc: Any, u: str) -> None:
    before = users(client.namespace)
    first, second = (ray_route.connect(client.namespace) for _ in range(2))
    threads = [threading.Thread(target=first.close) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert users(client.namespace) == before + 1
    assert second.call(u, "svc", "add", u) == 1
    second.close()
    assert users(client.namespace) == before
    assert client.call(u, "svc", "add", u) == 2


@pytest.mark.parametrize("use", USES)
def test_a_closed_client_says_so(client: Any, u: str, use: str) -> None:
    link = client.compute_linked_pod(u, "svc")
    with ray_route.connect(client.namespace) as closed:
        assert closed.compute_linked_pod(u, "svc") == link
    with pytest.raises(ray_route.ClosedError, match=r"RouteClient.* is closed.*connect again"):
        USES[use](closed, u)
    assert closed.closed
    assert closed.namespace == client.namespace


def test_a_closed_awaited_client_says_so_too(client: Any, u: str) -> None:
    async def use() -> None:
        closed = await ray_route.connect_async(client.namespace)
        assert await closed.compute_linked_pod(u, "svc")
        await closed.close()
        await closed.close()
        for use in (closed.compute_linked_pod, closed.get_linked_pod_not_cache):
            with pytest.raises(ray_route.ClosedError, match="AsyncRouteClient"):
                await use(u, "svc")

    before = users(client.namespace)
    asyncio.run(use())
    assert users(client.namespace) == before


def test_a_forked_process_hears_at_once_that_it_is_in_no_ray(client: Any, svc: Any, u: str) -> None:
    room = client.service("svc", Counter)[u]
    response = room.add.remote(u)
    assert response.result() == 1
    uses: dict[str, Callable[[], Any]] = {
        "a call": lambda: client.call(u, "svc", "add", u),
        "a handle": lambda: room.add.remote(u),
        "a response": response.result,
        "a look-up": lambda: client.compute_linked_pod(f"{u}-new", "svc"),
        "a batch": lambda: client.call_many([(u, (u,))], "svc", "add"),
        "a connection": lambda: ray_route.connect(client.namespace, timeout=20),
    }
    reader, writer = os.pipe()
    with warnings.catch_warnings():  # later Pythons warn of just this
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        signal.alarm(60)  # whatever it waits for
        for what, use in uses.items():
            os.write(writer, f"{what}: {what_raises(use)}\n".encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as said:
        heard = dict(line.strip().split(": ") for line in said)
    os.waitpid(child, 0)
    assert heard == {**dict.fromkeys(uses, "RayGoneError"), "a connection": "RayUnavailableError"}
    assert client.call(u, "svc", "add", u) == 2


def what_raises(use: Callable[[], Any]) -> str:
    try:
        use()
    except BaseException as error:  # noqa: BLE001 - what it is, the test says
        return type(error).__name__
    return "nothing"


def test_a_deployment_that_was_shut_down_says_so(client: Any) -> None:
    before = users(client.namespace)
    with ray_route.deploy(Counter, namespace=client.namespace, service="ends", replicas=1) as ended:
        assert list(ended.pods()) == [0]
        ended.shutdown()
    for use in (ended.pods, lambda: ended.scale(1), lambda: next(ended.drain(0))):
        with pytest.raises(ray_route.ClosedError, match=r"Deployment.* is closed") as caught:
            use()
        assert caught.value.service == "ends"
    ended.shutdown()
    assert users(client.namespace) == before


def test_a_connect_that_is_cancelled_leaves_no_session_open(client: Any) -> None:
    before = users(client.namespace)

    async def give_up() -> None:
        connecting = asyncio.create_task(ray_route.connect_async(client.namespace))
        await asyncio.sleep(0)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting

    asyncio.run(give_up())
    eventually(lambda: users(client.namespace) == before, "what it opened is closed")
