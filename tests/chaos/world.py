"""What a storm strikes, and what its pods have written down."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers import end_router
from history import Fault, History, Hook, Served
from parting import PartingProxy
from stepping import SteppingServer, stepping_server
from witness import Heart

import ray_route
from ray_route.store.embedded import EmbeddedServer

SERVICE = "storm"
# Of the lease: how long a hook may take, and after how long without a turn of the processor a
# process counts as stopped.
HOOK_LEASES = 1.5
STARVED_LEASES = 1 / 3


@dataclass
class World:
    """What a storm strikes: a service of four pods, and its store, which is behind a proxy."""

    clock: SteppingServer
    server: EmbeddedServer
    proxy: PartingProxy
    client: ray_route.RouteClient
    deployment: ray_route.Deployment
    folder: Path
    url: str
    cls: type


@contextmanager
def deployed(
    cls: type, namespace: str, folder: Path, seed: int, lease_s: float, **options: Any
) -> Iterator[World]:
    """Deploy a witness behind a store of its own; shut it down in order."""
    with stepping_server() as clock, PartingProxy(clock.server.port) as proxy:
        server = clock.server
        url = server.url.replace(str(server.port), str(proxy.port))
        with deployed_on(url, cls, namespace, folder, seed, lease_s, **options) as made:
            yield World(clock, server, proxy, *made, folder, url, cls)


@contextmanager
def deployed_on(
    url: str, cls: type, namespace: str, folder: Path, seed: int, lease_s: float, **options: Any
) -> Iterator[tuple[ray_route.RouteClient, ray_route.Deployment]]:
    """Deploy a witness on a store; shut it down in order."""
    lives = {"pod_lease_s": lease_s, "heartbeat_s": lease_s / 6}
    args = (str(folder), seed, HOOK_LEASES * lease_s, STARVED_LEASES * lease_s)
    what = {"namespace": namespace, "service": SERVICE, "replicas": 4, "args": args}
    with (
        ray_route.connect(namespace, redis_url=url, **lives) as client,
        ray_route.deploy(cls, **what, redis_url=url, **options) as deployment,
    ):
        yield client, deployment
    end_router(namespace)


def watch_this_process(history: History, lease_s: float) -> None:
    """Note when this process does not run, and with it the way from all pods to the store."""

    def starved(start: float, end: float) -> None:
        history.faults.append(Fault("starved", start, until=end))

    Heart(STARVED_LEASES * lease_s, starved).start()


def read_logs(folder: Path, history: History) -> None:
    """Add what all lives of all pods wrote down to a history."""
    for log in folder.glob("*.jsonl"):
        running: dict[int, dict[str, Any]] = {}
        starved: list[tuple[float, float]] = []
        lives: set[int] = set()
        for line in log.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # cut off by a kill
                note = json.loads(line)
                if "starved" in note:
                    starved.append(note["starved"])
                elif "end" in note:
                    _add(history, {**running.pop(note["n"]), **note})
                else:
                    running[note["n"]] = note
                    lives.add(note["incarnation"])
        for note in running.values():
            _add(history, {**note, "end": None})
        for life in lives:
            frozen = [it for it in history.faults if it.kind == "freeze" and it.incarnation == life]
            history.faults += [
                Fault("starved", start, life, until=end)
                for start, end in starved
                if not any(it.at <= end and start <= it.until for it in frozen)
            ]


def _add(history: History, note: dict[str, Any]) -> None:
    kind = note.pop("what")
    del note["n"]
    if kind == "call":
        history.served.append(Served(**note))
    else:
        history.hooks.append(Hook(kind, **note))
