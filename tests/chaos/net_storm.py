"""Run as a program on the client's host of a lab: calls without a pause, and cables that are cut.

Writes what it found to `found.json` in the lab's folder.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from helpers import end_router, eventually, router_handle, unique_name
from history import SETTLED_S, Fault, History, unexplained_moves, violations
from net_lab import CLIENT, HEAD, HOSTS, PODS, STORE, Lab, ways
from states import state_violations
from storm import TIMEOUT_S, Storm
from witness import UserWitness
from world import HOOK_LEASES, SERVICE, STARVED_LEASES, World, read_logs

import ray_route

LEASE_S = 3.0
PODS_IN_ALL = 4
# Users, and how long their hooks take at most, in leases.
SHORT = (20, 0.2)
LONG = (60, HOOK_LEASES)
KINDS = ("lost", "refused")
LENGTHS = {"shorter than a lease": 0.4, "longer than a lease": 2.2}
# By Ray's own health checks a node is given up after 15 s.
_SETTLES_S = 90.0


@dataclass(frozen=True)
class Cut:
    """One cut: which ways, how, and for how long."""

    ways: tuple[tuple[str, str], ...]
    kind: str
    length: str

    @property
    def seconds(self) -> float:
        return LENGTHS[self.length] * LEASE_S

    @property
    def name(self) -> str:
        (one, other), *back = self.ways
        return f"{one} {'and' if back else 'to'} {other}, {self.kind}, {self.length}"

    def silences(self, host: str) -> bool:
        """True if pods of a host may be given up for it: they could not renew for a lease."""
        return self.seconds > LEASE_S and any({host, STORE} == set(way) for way in self.ways)


def cuts_of(seed: int, count: int) -> list[Cut]:
    """Return some cuts, shuffled, 0: all. The first is one that costs pods their lease."""
    cuts = [
        Cut(tuple(some), kind, length) for some in ways() for kind in KINDS for length in LENGTHS
    ]
    random.Random(seed).shuffle(cuts)
    if count:
        cuts.sort(key=lambda cut: not cut.silences(PODS))
        cuts[1:] = random.Random(seed).sample(cuts[1:], count - 1)
    return cuts


class NetStorm(Storm):
    """Strikes cables."""

    def __init__(self, world: World, lab: Lab, seed: int, users: int) -> None:
        super().__init__(world, seed)
        self.lab = lab
        self.uids = self.uids[:users]

    def run_cuts(self, cuts: list[Cut], clients: int) -> None:
        callers = [
            threading.Thread(target=self._call_on, args=(n, clients)) for n in range(clients)
        ]
        callers.append(threading.Thread(target=self._call_by_old_links))
        for caller in callers:
            caller.start()
        try:
            for cut in cuts:
                self._spread()
                self._cut_once(cut)
        finally:
            self._stop.set()
            for caller in callers:
                caller.join(TIMEOUT_S + 5)
            (self.world.folder / "calm").touch()

    def _spread(self) -> None:
        """Give every pod its share of users again: pods that were cut off have lost theirs."""
        fault = self._note("move", uids=self.uids)

        def is_moved(number: int) -> bool:
            try:
                self.client.move(self.uids[number], SERVICE, number % PODS_IN_ALL)
            except (ray_route.RouteError, ray.exceptions.RayError):  # the cut's last consequences
                return False
            return True

        def move(number: int) -> None:
            eventually(lambda: is_moved(number), f"{self.uids[number]} moves", _SETTLES_S)

        with ThreadPoolExecutor(10) as pool:
            list(pool.map(move, range(len(self.uids))))
        # What follows is no consequence of this.
        self._over(fault, -SETTLED_S)

    def _cut_once(self, cut: Cut) -> None:
        lives = self._lives()
        print(f"[{time.monotonic():.1f}] {cut.name}", flush=True)
        begun = time.monotonic()
        with self.lab.cut(list(cut.ways), cut.kind):
            self._wait(cut.seconds)
        over = time.monotonic()
        self.history.faults.append(Fault(cut.name, begun, until=over))
        for host, life in lives:
            if cut.silences(host):
                # Until then it may serve; afterwards its users may be another's.
                stopped = begun + 0.9 * self.lease_s
                self.history.faults.append(Fault("freeze", stopped, life, until=over))
        eventually(self._is_settled, f"all is well after the cut {cut.name}", _SETTLES_S)
        print(f"[{time.monotonic():.1f}] all is well", flush=True)

    def _lives(self) -> list[tuple[str, int]]:
        """Return where each life runs."""
        pods = self.client.pods(SERVICE).values()
        return [(host_of(pod.node), pod.incarnation) for pod in pods]

    def _is_settled(self) -> bool:
        """True once four pods live, and users are served."""
        try:
            pods = self.client.pods(SERVICE, timeout=5).values()
            for uid in self.uids[::5]:
                self.client.call(uid, SERVICE, "pid", idempotent=True, timeout=5)
        except (ray_route.RouteError, ray.exceptions.RayError):
            return False
        return sum(pod.life is ray_route.Life.ALIVE for pod in pods) == PODS_IN_ALL


def main(mark: str, folder: str, seed: int, count: int, *, short: bool) -> None:
    lab = Lab(mark)
    lab.folder = Path(folder)
    ray.init(
        address=lab.ray_address,
        _node_ip_address=lab.address(CLIENT),
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    cuts = cuts_of(seed, count)
    if short:
        cuts = [cuts[0], next(cut for cut in cuts_of(seed, 0) if cut.seconds < LEASE_S)]
    found = storm(lab, cuts, seed, *(SHORT if short else LONG))
    written = lab.folder / "found.new"
    written.write_text(json.dumps(found))
    written.rename(lab.folder / "found.json")


def storm(lab: Lab, cuts: list[Cut], seed: int, users: int, hook_leases: float) -> dict[str, Any]:
    """Play some cuts; return what was wrong, and what they have cost."""
    logs = lab.folder / "logs"
    logs.mkdir()
    lives = {"pod_lease_s": LEASE_S, "heartbeat_s": LEASE_S / 6}
    args = (str(logs), seed, hook_leases * LEASE_S, STARVED_LEASES * LEASE_S)
    print(f"[{time.monotonic():.1f}] the program runs", flush=True)
    name = with_router_on(HEAD, lab, lives)
    print(f"[{time.monotonic():.1f}] the router is on the host {HEAD}", flush=True)
    with ray_route.connect(name, lab.url, **lives) as client:
        router_on = host_of(ray.get(router_handle(name).whereabouts.remote())[1])
        deployments = ray_route.deploy(
            UserWitness,
            per_uid=True,
            namespace=name,
            service=SERVICE,
            replicas=PODS_IN_ALL,
            args=args,
            redis_url=lab.url,
            ray_actor_options={"num_cpus": 0, "resources": {"pod": 1}, "max_concurrency": 16},
        )
        with deployments as deployment:
            world = World(None, None, None, client, deployment, logs, lab.url, object)  # type: ignore[arg-type]
            one = NetStorm(world, lab, seed, users)
            one.run_cuts(cuts, clients=4)
            placed = sorted({host for host, _ in one._lives()})
    history = one.history
    read_logs(logs, history)
    history.shut_down = True
    wrong = violations(history, unserved_bound_s=TIMEOUT_S) + state_violations(history, turns=True)
    moved = unexplained_moves(history)
    starved = [it.until - it.at for it in history.faults if it.kind == "starved"]
    return {
        "wrong": wrong + moved,
        "failures": one.failures,
        "router_on": router_on,
        "pods_on": placed,
        "calls": len(history.acknowledged),
        "starved_s": sorted(starved),
        "carried": len((logs / "carried").read_text().splitlines()),
        "cuts": [cost(history, fault) for fault in history.faults if "," in fault.kind],
    }


def with_router_on(host: str, lab: Lab, lives: dict[str, float]) -> str:
    """Open a namespace whose router runs on a host; Ray places routers by chance."""
    while True:
        name = unique_name()
        with ray_route.connect(name, lab.url, **lives):
            node = ray.get(router_handle(name).whereabouts.remote())[1]
        if host_of(node) == host:
            return name
        end_router(name)


def host_of(node: str) -> str:
    at = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
    return {Lab.address(host): host for host in HOSTS}[at[node]]


def cost(history: History, fault: Fault) -> dict[str, Any]:
    """Return what a cut has cost: the longest wait of a call that met it."""
    met = [it for it in history.acknowledged if it.asked <= fault.until and it.answered >= fault.at]
    waited = max((call.answered - call.asked for call in met), default=0.0)
    return {
        "cut": fault.kind,
        "seconds": fault.until - fault.at,
        "calls": len(met),
        "waited_s": waited,
    }


if __name__ == "__main__":
    main(*sys.argv[1:3], int(sys.argv[3]), int(sys.argv[4]), short=sys.argv[5] == "short")
