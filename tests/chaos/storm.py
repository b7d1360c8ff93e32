"""Calls without a pause, and seeded faults in between."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import ray
from helpers import eventually, router_handle
from history import Acknowledged, Fault, History
from servers import admin
from world import SERVICE, World, watch_this_process

import ray_route
from ray_route.clock import Deadline
from ray_route.runtime.waiting import run
from ray_route.store.connect import Store
from ray_route.store.scripts import Call
from ray_route.store.url import parse_url

CALL_S = 0.002
TIMEOUT_S = 60.0
# Of the lease.
OUTAGE_LEASES = 3.0
# Of the lease: how long a pod's process may stop and none of its users moves (one that stops for
# longer than a third counts as starved), and for how long the router's; and how often in a row.
DOZE_LEASES = (0.1, 0.25)
STUN_LEASES = (0.1, 1.5)
STUTTERS = 3
# Of the server's clock: more than leases last, and their margin, up to more than links live.
STEP_S = (400.0, 4_000.0)

# What a fault may meet: it was to strike what is down, or is leaving, already.
_MISSED = (
    ProcessLookupError,
    ray_route.NoAvailablePodError,
    ray_route.PodUnavailableError,
    ray_route.RouteTimeoutError,
    ray_route.StoreUnavailableError,
)


class Storm:
    """One run against one deployment."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.client = world.client
        self.deployment = world.deployment
        self.random = random.Random(seed)
        self.history = History()
        self.failures: list[str] = []
        self.uids = [f"user-{number}" for number in range(60)]
        self._numbers = count()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._ends = 0.0
        self._faults: list[str] = []
        self.first: list[str] = []
        """What strikes before all else, however short the storm; the last of these first."""
        self.lease_s = world.client._session.namespace.config.pod_lease_s

    def run(self, seconds: float, clients: int, faults: list[str]) -> History:
        """Call and strike for that long; return what callers saw, without what the pods wrote."""
        watch_this_process(self.history, self.lease_s)
        callers = [
            threading.Thread(target=self._call_on, args=(n, clients)) for n in range(clients)
        ]
        callers.append(threading.Thread(target=self._call_by_old_links))
        for caller in callers:
            caller.start()
        self._faults = faults
        self._let_them_be_served()
        self._ends = time.monotonic() + seconds
        strikes = {name: getattr(self, f"_{name}") for name in faults}
        turn: list[str] = []
        while self.first or time.monotonic() < self._ends:
            turn = self.first or turn or self.random.sample(faults, len(faults))
            if self._alive() > 2:
                self._strike(turn.pop(), strikes)
            self._wait(self.random.uniform(0.2, 0.8))
        self._wait(1.0)
        self._stop.set()
        for caller in callers:
            caller.join(TIMEOUT_S + 5)
        (self.world.folder / "calm").touch()  # hooks take no more time: the pods end soon
        return self.history

    def _let_them_be_served(self) -> None:
        """Let uids have states that can be lost, before the first fault."""
        served = self.history.acknowledged
        try:
            eventually(lambda: len(served) > len(self.uids), "users are served", TIMEOUT_S)
        except BaseException:
            self._stop.set()
            raise

    def _wait(self, seconds: float) -> None:
        self._stop.wait(seconds)

    def _alive(self) -> int:
        try:
            pods = self.client.pods(SERVICE).values()
        except ray_route.RouteError:
            return 0
        return sum(pod.life is ray_route.Life.ALIVE for pod in pods)

    # Callers.

    def _call_on(self, number: int, clients: int) -> None:
        mine = self.uids[number::clients]
        choose = random.Random(number)
        while not self._stop.is_set():
            uid = choose.choice(mine)
            call = f"{uid}#{next(self._numbers)}"
            seconds = CALL_S if choose.random() < 0.98 else choose.uniform(0.0, self.lease_s)
            asked = time.monotonic()
            try:
                told = call_patiently(self.client, uid, call, seconds)
            except (ray_route.RouteError, ray.exceptions.RayError) as error:
                self.failures.append(f"{call}, asked at {asked:.4f}: {error!r} {error}")
                continue
            self._acknowledge(call, uid, asked, told)

    def _acknowledge(self, call: str, uid: str, asked: float, told: int) -> None:
        acknowledged = Acknowledged(call, uid, asked, time.monotonic(), told)
        with self._lock:
            self.history.acknowledged.append(acknowledged)

    def _call_by_old_links(self) -> None:
        """Call past owners by the links that they had: whoever does not own it must refuse."""
        choose = random.Random(0)
        known: list[tuple[str, ray_route.Link, Any]] = []
        while not self._stop.is_set():
            uid = choose.choice(self.uids)
            with contextlib.suppress(ray_route.RouteError, ray.exceptions.RayError):
                link = self.client.compute_linked_pod(uid, SERVICE, timeout=0.3)
                known.append((uid, link, self.client.actor(uid, SERVICE, timeout=0.3)))
            if not known:
                continue
            with contextlib.suppress(ray_route.RouteError, ray.exceptions.RayError):
                # Also while links can't be had: then above all an owner may be a past one.
                uid, link, handle = choose.choice(known)
                header = (uid, link.epoch, link.incarnation, "serve")
                call, asked = f"{uid}#old-{next(self._numbers)}", time.monotonic()
                told = ray.get(handle._ray_route_call.remote(header, call, CALL_S), timeout=1)
                if isinstance(told, int):
                    self._acknowledge(call, uid, asked, told)
            self._wait(0.01)

    # Faults.

    def _strike(self, kind: str, strikes: dict[str, Callable[[], None]]) -> None:
        try:
            with contextlib.suppress(*_MISSED):
                strikes[kind]()
        except (ray_route.RouteError, ray.exceptions.RayError) as error:
            self.failures.append(f"the fault {kind} itself: {error!r} {error}")

    def _victim(self) -> tuple[ray_route.Link, int]:
        uid = self.random.choice(self.uids)
        while True:
            link = self.client.compute_linked_pod(uid, SERVICE)
            pid = int(self.client.call(uid, SERVICE, "pid", idempotent=True, timeout=TIMEOUT_S))
            if self.client.compute_linked_pod(uid, SERVICE) == link:
                return link, pid

    def _note(
        self, kind: str, link: ray_route.Link | None = None, uids: list[str] | None = None
    ) -> Fault:
        incarnation = link.incarnation if link else 0
        fault = Fault(kind, time.monotonic(), incarnation, uids=frozenset(uids or []))
        self.history.faults.append(fault)
        return fault

    def _over(self, fault: Fault, in_s: float = 0.0) -> None:
        place = self.history.faults.index(fault)
        self.history.faults[place] = replace(fault, until=time.monotonic() + in_s)

    def _move(self) -> None:
        """Move uids between living pods, where only fencing keeps the old owner out."""
        self._move_some("move", lambda: TIMEOUT_S)

    def _hasty(self) -> None:
        """Move uids, and give up while their hooks run."""
        self._move_some("hasty", lambda: self.random.uniform(0.02, 0.5 * self.lease_s))

    def _move_some(self, kind: str, timeout_s: Callable[[], float]) -> None:
        uids = self.random.sample(self.uids, 20)
        fault = self._note(kind, uids=uids)
        pods = self._indexes()
        plans = [(uid, self.random.choice(pods), timeout_s()) for uid in uids]

        def move(plan: tuple[str, int, float]) -> None:
            uid, pod, patience_s = plan
            with contextlib.suppress(*_MISSED):  # it is down, or draining, or not soon enough
                self.client.move(uid, SERVICE, pod, timeout=patience_s)

        with ThreadPoolExecutor(len(plans)) as pool:
            list(pool.map(move, plans))
        self._over(fault)

    def _remove(self) -> None:
        """Have some links removed after a while: what they counted is saved, and loaded again."""
        uids = self.random.sample(self.uids, 10)
        fault = self._note("remove", uids=uids)
        for uid in uids:
            with contextlib.suppress(*_MISSED):
                after_s = self.random.uniform(0.05, self.lease_s)
                ask = self.client._session.namespace.ask
                asked = ask("remove_link", SERVICE, uid, None, after_s=after_s, timeout_s=10.0)
                run(asked, Deadline.after(TIMEOUT_S))
        self._over(fault, self.lease_s)

    def _kill(self) -> None:
        link, pid = self._victim()
        self._note("kill", link)
        os.kill(pid, signal.SIGKILL)

    def _freeze(self) -> None:
        link, pid = self._victim()
        os.kill(pid, signal.SIGSTOP)
        eventually(lambda: _is_stopped(pid), "the pod's process is stopped")
        # Not before: a call that begins in between would seem to run on for the whole freeze.
        fault = self._note("freeze", link)
        self._wait(self.lease_s + self.random.uniform(0.5, 1.5))
        self._over(fault)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    def _partition(self) -> None:
        """Cut one pod alone off from the store, for less or for more than its lease.

        Right after a heartbeat: so it is known until when it may serve, and when others may.
        """
        link, pid = self._victim()
        seconds = self._away_s()
        eventually(lambda: self._silence_s(link) < self.lease_s / 30, "a heartbeat", TIMEOUT_S)
        begun = time.monotonic()
        stops = begun + 0.9 * self.lease_s
        lapses = begun + seconds > stops
        told = ("partition", stops, link.incarnation) if lapses else ("short partition", begun, -1)
        self.world.proxy.part(pid, refuse=self.random.random() < 0.5)
        try:
            self._wait(seconds)
        finally:
            self.world.proxy.heal()
            self.history.faults.append(Fault(*told, until=time.monotonic()))

    def _silence_s(self, link: ray_route.Link) -> float:
        """Return how long ago a life's last heartbeat was, of the store; none if it has ended."""
        table = self.client._session.namespace.keys.pods(SERVICE)
        names = [f"{link.pod}:{name}" for name in ("incarnation", "heartbeat")]
        with contextlib.closing(admin(self.world.server)) as redis:
            life, heartbeat_us = redis.hmget(table, names)
            seconds, microseconds = redis.time()
        lives = life is not None and int(life) == link.incarnation
        return seconds + (microseconds - int(heartbeat_us)) / 1e6 if lives else 0.0

    def _doze(self) -> None:
        """Stop a pod's process a few times, for less than a lease: it goes on as if nothing was."""
        _, pid = self._victim()
        self._stutter("doze", {pid: DOZE_LEASES})

    def _stun(self) -> None:
        """Stop the router's process a few times, for less than a lease and for more."""
        self._stutter("stun", {self._router_pid(): STUN_LEASES})

    def _daze(self) -> None:
        """Stop the router, the server and a pod at once, each a few times by its own measure."""
        stops = {self.world.server.pid: STUN_LEASES, self._router_pid(): STUN_LEASES}
        _, pid = self._victim()
        self._stutter("daze", {**stops, pid: DOZE_LEASES})

    def _router_pid(self) -> int:
        asked = router_handle(self.client.namespace).whereabouts.remote()
        return int(ray.get(asked, timeout=TIMEOUT_S)[0])

    def _stutter(self, kind: str, stops: dict[int, tuple[float, float]]) -> None:
        """Stop and continue some processes, each for so many leases at a time."""
        fault = Fault(kind, time.monotonic(), incarnation=-1)  # it moves nobody
        self.history.faults.append(fault)
        plans = {
            pid: [self.random.uniform(*leases) * self.lease_s for _ in range(STUTTERS)]
            for pid, leases in stops.items()
        }
        with ThreadPoolExecutor(len(plans)) as pool:
            list(pool.map(self._stop_and_go, plans, plans.values()))
        self._over(fault)

    def _stop_and_go(self, pid: int, stops: list[float]) -> None:
        for seconds in stops:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
            self._wait(seconds)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
            self._wait(seconds / 3)

    def _restart(self) -> None:
        link, pid = self._victim()
        self._note("restart", link)
        os.kill(pid, signal.SIGTERM)

    def _router(self) -> None:
        self._note("router")
        ray.kill(router_handle(self.client.namespace), no_restart=False)

    def _scale(self) -> None:
        """Drain the highest pod and end it, then bring it back."""
        highest = self._indexes()[-1]
        fault = self._note("scale", self._life(highest))
        with contextlib.suppress(ray_route.PodUnavailableError):  # it died while it was drained
            self.deployment.scale(3)
        drained = self._life(highest).incarnation
        if drained != fault.incarnation:  # a pod that had just died had come back meanwhile
            self.history.faults.append(replace(fault, incarnation=drained))
        self.deployment.scale(4)
        self._over(fault)

    def _drain(self) -> None:
        """Drain a pod, whose users are busy, for so short a time that it may not succeed."""
        pod = self.random.choice(self._indexes())
        fault = self._note("drain", self._life(pod))
        for _ in self.deployment.drain(pod, self.random.uniform(0.3, 2.0) * self.lease_s):
            pass
        self.deployment.scale(4)
        self._over(fault)

    def _indexes(self) -> list[int]:
        """The pods that there are to be, in order."""
        return [0, 1, 2, 3]

    def _life(self, pod: int) -> ray_route.Link:
        life = self.client.pods(SERVICE)[pod].incarnation
        return ray_route.Link(pod, life, 0, persistent=False, lease_s=0)

    # Faults of the store.

    def _away_s(self) -> float:
        """How long an outage is: up to three leases, but not for long past the storm's end."""
        left = max(0.3, self._ends - time.monotonic())
        return min(left, self.random.uniform(0.1, OUTAGE_LEASES * self.lease_s))

    def _outage(
        self,
        kind: str,
        begin: Callable[[], Any],
        end: Callable[[], Any],
        besides: tuple[str, ...] = ("kill", "router", "", ""),
    ) -> None:
        """Have the store away for a while; in some outages a pod or the router ends, too."""
        beside = self.random.choice(besides)
        _, pid = victim = self._victim()
        seconds = self._away_s()
        fault = self._note(kind)
        try:
            begin()
            self._wait(seconds / 2)
            if beside == "kill":
                self._note("kill", victim[0])
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            elif beside in self._faults:
                self._router()
            self._wait(seconds / 2)
        finally:
            end()
            self._over(fault)

    def _cut(self) -> None:
        """Reset all connections, and refuse new ones."""
        proxy = self.world.proxy
        self._outage("cut", proxy.cut, proxy.heal)

    def _stall(self) -> None:
        """Let nothing through on connections that stay open."""
        proxy = self.world.proxy
        self._outage("stall", proxy.stall, proxy.heal)

    def _pause(self) -> None:
        """Stop the server's process."""
        pid = self.world.server.pid

        def on() -> None:
            os.kill(pid, signal.SIGCONT)

        self._outage("pause", lambda: os.kill(pid, signal.SIGSTOP), on)

    def _full(self) -> None:
        """Let the server take nothing more."""
        self._outage("full", *self._set("maxmemory", "1mb", "0"))

    def _unreplicated(self) -> None:
        """Let the server refuse writes, since it has no replica."""
        setting = self._set("min-replicas-to-write", "1", "0")
        self._outage("unreplicated", *setting)

    def _set(self, name: str, begin: str, end: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
        def to(value: str) -> None:
            with contextlib.closing(admin(self.world.server)) as redis:
                redis.config_set(name, value)

        return lambda: to(begin), lambda: to(end)

    # With these the router must live: where both forget, nobody knows which lives had ended.

    def _flush(self) -> None:
        """Have Redis forget everything."""
        fault = self._note("flush")
        redis = Store(parse_url(self.world.server.url))
        redis.one(Call("", ("FLUSHALL",)))
        redis.close()
        self._over(fault)

    def _crash(self) -> None:
        """Kill Redis, which keeps nothing on disk, and start it again after a while."""
        self._outage("crash", self.world.server.stop, self.world.clock.start, ("kill", "", ""))
        # Nor is the router struck before the pods whose leases have run out serve again.
        with ThreadPoolExecutor(len(self.uids)) as pool:
            list(pool.map(self._await_served, self.uids))

    def _await_served(self, uid: str) -> None:
        with contextlib.suppress(*_MISSED):
            self.client.call(uid, SERVICE, "pid", idempotent=True, timeout=TIMEOUT_S)

    # Faults of the store's clock.

    def _ahead(self) -> None:
        """Set the server's clock forward, by so much that every link there has ended."""
        self._step("ahead", 1)

    def _back(self) -> None:
        self._step("back", -1)

    def _step(self, kind: str, sign: int) -> None:
        """Step, and wait until the router has looked: two steps in between may hide each other.

        Some uids are asked for anew at once, whose links may have ended.
        """
        fault = self._note(kind)
        self.world.clock.step(sign * self.random.uniform(*STEP_S))
        for uid in self.random.sample(self.uids, 20):
            self.client.cache_expired(uid, SERVICE, timeout=TIMEOUT_S)
        eventually(self._has_looked, "the router has looked at the clock", TIMEOUT_S)
        self._over(fault)

    def _has_looked(self) -> bool:
        with contextlib.closing(admin(self.world.server)) as redis:
            keys = self.client._session.namespace.keys
            looks = filter(None, redis.hmget(keys.meta, "looked", "looking"))
            now_s, _ = redis.time()
        return any(abs(int(look) / 1e6 - now_s) < STEP_S[0] / 2 for look in looks)


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "TZ"


def call_patiently(client: ray_route.RouteClient, uid: str, call: str, seconds: float) -> int:
    """Make a call; try again while Redis is away, which is said at once and is no miss."""
    ends = time.monotonic() + TIMEOUT_S
    while True:
        try:
            return int(
                client.call(
                    *(uid, SERVICE, "serve", call, seconds), idempotent=True, timeout=TIMEOUT_S
                )
            )
        except ray_route.StoreUnavailableError:
            if time.monotonic() >= ends:
                raise
            time.sleep(0.02)
