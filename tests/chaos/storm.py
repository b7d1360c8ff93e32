"""Calls without a pause, and seeded faults in between."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import ray
from helpers import eventually, router_handle
from history import Acknowledged, Fault, History, Served

import ray_route
from ray_route.store.connect import Store
from ray_route.store.embedded import EmbeddedServer
from ray_route.store.scripts import Call
from ray_route.store.url import parse_url

SERVICE = "storm"
CALL_S = 0.002
TIMEOUT_S = 30.0


class Storm:
    """One run against one deployment."""

    def __init__(
        self,
        client: ray_route.RouteClient,
        deployment: ray_route.Deployment,
        folder: Path,
        seed: int,
        server: EmbeddedServer | None = None,
    ) -> None:
        self.client = client
        self.deployment = deployment
        self.folder = folder
        self.server = server
        self.random = random.Random(seed)
        self.history = History()
        self.failures: list[str] = []
        self.uids = [f"user-{number}" for number in range(60)]
        self._numbers = count()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.lease_s = client._session.namespace.config.pod_lease_s

    def run(self, seconds: float, clients: int, faults: list[str]) -> History:
        """Call and strike for that long; return what was seen."""
        callers = [
            threading.Thread(target=self._call_on, args=(n, clients)) for n in range(clients)
        ]
        callers.append(threading.Thread(target=self._call_by_old_links))
        for caller in callers:
            caller.start()
        ends = time.monotonic() + seconds
        strikes = {name: getattr(self, f"_{name}") for name in faults}
        turn: list[str] = []
        while time.monotonic() < ends:
            turn = turn or self.random.sample(faults, len(faults))
            if self._alive() > 2:
                self._strike(turn.pop(), strikes)
            self._wait(self.random.uniform(0.2, 0.8))
        self._wait(1.0)
        self._stop.set()
        for caller in callers:
            caller.join(TIMEOUT_S + 5)
        self.history.served = list(read_logs(self.folder))
        return self.history

    def _wait(self, seconds: float) -> None:
        self._stop.wait(seconds)

    def _alive(self) -> int:
        pods = self.client.pods(SERVICE).values()
        return sum(pod.life is ray_route.Life.ALIVE for pod in pods)

    def _call_on(self, number: int, clients: int) -> None:
        mine = self.uids[number::clients]
        choose = random.Random(number)
        while not self._stop.is_set():
            uid = choose.choice(mine)
            call = f"{uid}#{next(self._numbers)}"
            asked = time.monotonic()
            try:
                call_patiently(self.client, uid, call, CALL_S)
            except ray_route.RouteError as error:
                self.failures.append(f"{call}: {error!r} {error}")
                continue
            acknowledged = Acknowledged(call, uid, asked, time.monotonic())
            with self._lock:
                self.history.acknowledged.append(acknowledged)

    def _call_by_old_links(self) -> None:
        """Call past owners by the links that they had: whoever does not own it must refuse."""
        choose = random.Random(0)
        known: list[tuple[str, ray_route.Link, Any]] = []
        while not self._stop.is_set():
            uid = choose.choice(self.uids)
            with contextlib.suppress(ray_route.RouteError, ray.exceptions.RayError):
                link = self.client.compute_linked_pod(uid, SERVICE, timeout=1)
                known.append((uid, link, self.client.actor(uid, SERVICE, timeout=1)))
                uid, link, handle = choose.choice(known)
                header = (uid, link.epoch, link.incarnation, "serve")
                call = f"{uid}#old-{next(self._numbers)}"
                ray.get(handle._ray_route_call.remote(header, call, CALL_S), timeout=1)
            self._wait(0.01)

    def _strike(self, kind: str, strikes: dict[str, Callable[[], None]]) -> None:
        try:
            strikes[kind]()
        except (ProcessLookupError, ray_route.NoAvailablePodError, ray_route.RouteTimeoutError):
            pass  # what it was to strike is down already
        except (ray_route.RouteError, ray.exceptions.RayError) as error:
            self.failures.append(f"the fault {kind} itself: {error!r} {error}")

    def _victim(self) -> tuple[ray_route.Link, int]:
        uid = self.random.choice(self.uids)
        while True:
            link = self.client.compute_linked_pod(uid, SERVICE)
            pid = int(self.client.call(uid, SERVICE, "pid", idempotent=True, timeout=TIMEOUT_S))
            if self.client.compute_linked_pod(uid, SERVICE) == link:
                return link, pid

    def _note(self, kind: str, link: ray_route.Link | None = None, until: float = 0) -> None:
        incarnation = link.incarnation if link else 0
        at = time.monotonic()
        self.history.faults.append(Fault(kind, at, incarnation, until or float("inf")))

    def _move(self) -> None:
        """Move uids between living pods, where only fencing keeps the old owner out."""
        self._note("move")
        for uid in self.random.sample(self.uids, 20):
            pod = self.random.randrange(4)
            with contextlib.suppress(ray_route.PodUnavailableError):  # it is down, or draining
                self.client.move(uid, SERVICE, pod)

    def _kill(self) -> None:
        link, pid = self._victim()
        self._note("kill", link)
        os.kill(pid, signal.SIGKILL)

    def _freeze(self) -> None:
        link, pid = self._victim()
        os.kill(pid, signal.SIGSTOP)
        eventually(lambda: _is_stopped(pid), "the pod's process is stopped")
        # Not before: a call that begins in between would seem to run on for the whole freeze.
        self._note("freeze", link)
        self._wait(self.lease_s + self.random.uniform(0.5, 1.5))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    def _restart(self) -> None:
        _, pid = self._victim()
        self._note("restart")
        os.kill(pid, signal.SIGTERM)

    def _router(self) -> None:
        self._note("router")
        ray.kill(router_handle(self.client.namespace), no_restart=False)

    def _flush(self) -> None:
        """Have Redis forget everything."""
        assert self.server is not None
        self._note("flush")
        redis = Store(parse_url(self.server.url))
        redis.one(Call("", ("FLUSHALL",)))
        redis.close()

    def _crash(self) -> None:
        """Kill Redis, which keeps nothing on disk, and start it again after a moment."""
        assert self.server is not None
        self._note("crash")
        self.server.stop()
        self._wait(0.3)
        self.server.start()

    def _scale(self) -> None:
        """Drain the highest pod and end it, then bring it back."""
        top = self.client.pods(SERVICE)[3]
        link = ray_route.Link(3, top.incarnation, 0, persistent=False, lease_s=0)
        self._note("scale", link)
        with contextlib.suppress(ray_route.PodUnavailableError):  # it died while it was drained
            self.deployment.scale(3)
        self.deployment.scale(4)


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "TZ"


def call_patiently(client: ray_route.RouteClient, uid: str, call: str, seconds: float) -> None:
    """Make a call; try again while Redis is away, which is said at once and is no miss."""
    ends = time.monotonic() + TIMEOUT_S
    while True:
        try:
            client.call(uid, SERVICE, "serve", call, seconds, idempotent=True, timeout=TIMEOUT_S)
        except ray_route.StoreUnavailableError:
            if time.monotonic() >= ends:
                raise
            time.sleep(0.02)
        else:
            return


def read_logs(folder: Path) -> list[Served]:
    """Read what all lives of all pods wrote down."""
    served = []
    for log in folder.glob("*.jsonl"):
        running: dict[str, dict] = {}
        for line in log.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # cut off by a kill
                note = json.loads(line)
                if "start" in note:
                    running[note["call"]] = note
                else:
                    served.append(Served(**running.pop(note["call"]), end=note["end"]))
        served += [Served(**note, end=None) for note in running.values()]
    return served
