"""Faults on a real service, for tests: of pods on this machine, of the store, of the router."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from ray_route.client.sync_client import RouteClient
from ray_route.clock import Deadline
from ray_route.errors import InvalidInputError
from ray_route.model import PodRecord
from ray_route.protocol.names import RAY_NAMESPACE, router_name
from ray_route.runtime.namespace import Namespace
from ray_route.store.connect import AsyncStore
from ray_route.store.pods import PodCalls, parse_table
from ray_route.store.scripts import plain_call

_ENDED_S = 30.0
_POLL_S = 0.01


def kill_pod(client: RouteClient, service: str, pod: int) -> None:
    """End a pod's process as `kill -9` does; Ray makes it again. Returns when it has ended.

    Raises `InvalidInputError` if it is on another machine, or is none.
    """
    pid = pid_of(client, service, pod)
    os.kill(pid, signal.SIGKILL)
    deadline = Deadline.after(_ENDED_S)
    while _runs(pid):
        deadline.check(f"process {pid} to end")
        time.sleep(_POLL_S)


@contextmanager
def frozen_pod(client: RouteClient, service: str, pod: int) -> Iterator[int]:
    """Stop a pod's process within: it answers nobody and renews nothing, and does not know it.

    After `pod_lease_s` the router gives its uids to others. Gives the process id; raises
    `InvalidInputError` if the pod is on another machine, or is none.
    """
    pid = pid_of(client, service, pod)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield pid
    finally:
        if _runs(pid):
            os.kill(pid, signal.SIGCONT)


def pid_of(client: RouteClient, service: str, pod: int) -> int:
    """Return the process id of a pod, as it has told it; raises `InvalidInputError`."""
    record = _record(client, service, pod)
    if record is None:
        raise InvalidInputError(argument="pod", value=pod, reason=f"is no pod of {service!r}")
    pid = record.process.partition("-")[0]
    if record.node != ray.get_runtime_context().get_node_id() or not pid.isdecimal():
        raise InvalidInputError(argument="pod", value=pod, reason="is on another machine")
    return int(pid)


def _record(client: RouteClient, service: str, pod: int) -> PodRecord | None:
    namespace = _namespace(client)
    table = parse_table(namespace.store.one(PodCalls(namespace.keys).table(service)))
    return next((record for record in table if record.pod == pod), None)


def _namespace(client: RouteClient) -> Namespace:
    return client._session.namespace  # noqa: SLF001 - of our own class


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wipe_store(client: RouteClient) -> None:
    """Delete all that Redis has of the client's namespace, and of no other, as a loss would.

    The router and the pods notice, and write it back.
    """
    asyncio.run(_wipe(_namespace(client)))


async def _wipe(namespace: Namespace) -> None:
    store = AsyncStore(namespace.url)
    try:
        async for key in store.scan(namespace.keys.everything()):
            await store.one(plain_call("UNLINK", key))
    finally:
        await store.close()


def restart_router(client: RouteClient) -> None:
    """End the router's process; Ray makes it again, and what it knew is in Redis."""
    router = ray.get_actor(router_name(client.namespace), namespace=RAY_NAMESPACE)
    ray.kill(router, no_restart=False)
