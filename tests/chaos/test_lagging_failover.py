"""A replica that lags by a second takes over while eight processes read links by themselves."""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import ray
from helpers import eventually, unique_name
from history import Acknowledged, Fault, History, violations
from replicated import Replicated, cluster, one_server, sentinel
from servers import is_in_step
from states import state_violations
from storm import CALL_S, TIMEOUT_S, call_patiently
from witness import AsyncWitness
from world import SERVICE, deployed_on, read_logs, watch_this_process

import ray_route
from ray_route.runtime.metrics import LOOKUPS

pytestmark = pytest.mark.slow

LEASE_S = 3.0
PROCESSES = 8
UIDS = [f"user-{number}" for number in range(40)]
LAG_S = 1.0
# A Sentinel, and the masters of a Cluster, need some time to agree.
BEFORE_S, TAKES_S, AFTER_S = 2.0, 4.0, 8.0
LATE_S = 60.0
LEAST_LOOKS = 20


@dataclass
class Seen:
    """What one process saw."""

    acknowledged: list[Acknowledged] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    by_redis: int = 0


@ray.remote(num_cpus=0)
class Caller:
    """A client process: looks uids up, mostly not in its near cache, and calls them."""

    def __init__(self, namespace: str, url: str) -> None:
        self._client = ray_route.connect(namespace, redis_url=url)
        self._session = self._client._session
        self._epochs: defaultdict[str, int] = defaultdict(int)

    def ready(self) -> bool:
        return self._session.may_read()

    def run(self, name: int, until: float) -> Seen:
        seen, choose = Seen(), random.Random(name)
        number = 0
        while time.monotonic() < until or self._lacks(number, until):
            number += 1
            uid = choose.choice(UIDS)
            if choose.random() < 0.7:
                self._session.near.flush()
            try:
                self._look(uid, seen)
                call, asked = f"{uid}#{name}-{number}", time.monotonic()
                told = call_patiently(self._client, uid, call, CALL_S)
                seen.acknowledged.append(Acknowledged(call, uid, asked, time.monotonic(), told))
            except ray_route.StoreUnavailableError:
                time.sleep(0.02)  # the pace of a caller
            except (ray_route.RouteError, ray.exceptions.RayError) as error:
                seen.problems.append(f"{uid} of process {name}: {error!r} {error}")
        seen.by_redis = self._by_redis()
        return seen

    def _by_redis(self) -> int:
        return int(self._session.meter.counts[LOOKUPS.name, ("redis", "link")])

    def _lacks(self, number: int, until: float) -> bool:
        """True if a busy machine has let it do too little to tell anything."""
        little = self._by_redis() <= LEAST_LOOKS or number <= LEAST_LOOKS
        return little and time.monotonic() < until + LATE_S

    def _look(self, uid: str, seen: Seen) -> None:
        link = self._client.compute_linked_pod(uid, SERVICE)
        if link.epoch < self._epochs[uid]:
            seen.problems.append(f"{uid} went back from {self._epochs[uid]} to {link.epoch}")
        self._epochs[uid] = max(link.epoch, self._epochs[uid])


def move_on(client: ray_route.RouteClient, stop: threading.Event) -> None:
    """Move users about: what the replica does not hear of are moves and counters."""
    choose = random.Random(0)
    while not stop.is_set():
        with suppress(ray_route.RouteError, ray.exceptions.RayError):
            client.move(choose.choice(UIDS), SERVICE, choose.randrange(4), timeout=3)
        stop.wait(0.02)


def fail_over(store: Replicated) -> Fault:
    """Have a replica take over that has heard nothing for a second."""
    store.cut_off()
    time.sleep(LAG_S)  # how much the replica misses
    at = time.monotonic()
    store.take_over()
    return Fault("cut", at, until=at + TAKES_S)


@pytest.mark.timeout(420)
@pytest.mark.parametrize("how", [one_server, sentinel, cluster])
def test_a_failover_that_lags_makes_no_two_owners_and_takes_no_epoch_back(
    ray_session: None, tmp_path: Path, how: Callable[[], AbstractContextManager[Replicated]]
) -> None:
    with how() as store:
        name = next(name for name in iter(unique_name, "") if store.fits(name))
        with deployed_on(store.url, AsyncWitness, name, tmp_path, 1, LEASE_S) as (client, pods):
            (tmp_path / "calm").touch()  # hooks take no time
            eventually(lambda: is_in_step(store.replica), "the replica is in step")
            client.compute_linked_pods(UIDS, SERVICE)
            processes = PROCESSES if how is one_server else PROCESSES // 2
            callers = [Caller.remote(name, store.url) for _ in range(processes)]
            ray.get([caller.ready.remote() for caller in callers], timeout=180)  # they have started
            eventually(
                lambda: all(ray.get([caller.ready.remote() for caller in callers])),
                "every process reads by itself",
                60,
            )
            history, seen = strike(client, store, callers)
            for caller in callers:
                ray.kill(caller)
            pods.shutdown()
    read_logs(tmp_path, history)
    history.shut_down = True
    print(f"{len(history.acknowledged)} calls, {sum(one.by_redis for one in seen)} direct reads")
    wrong = violations(history, unserved_bound_s=TIMEOUT_S) + state_violations(history)
    assert wrong == []
    assert [problem for one in seen for problem in one.problems] == []
    assert all(one.by_redis > LEAST_LOOKS for one in seen)
    assert len(history.acknowledged) > LEAST_LOOKS / 2 * len(callers)


def strike(
    client: ray_route.RouteClient, store: Replicated, callers: list[Any]
) -> tuple[History, list[Seen]]:
    history, stop = History(), threading.Event()
    watch_this_process(history, LEASE_S)
    mover = threading.Thread(target=move_on, args=(client, stop))
    mover.start()
    until = time.monotonic() + BEFORE_S + LAG_S + AFTER_S
    running = [caller.run.remote(number, until) for number, caller in enumerate(callers)]
    time.sleep(BEFORE_S)  # the load before the fault
    history.faults.append(fail_over(store))
    seen: list[Seen] = ray.get(running, timeout=120)
    stop.set()
    mover.join(30)
    history.acknowledged = [call for one in seen for call in one.acknowledged]
    return history, seen
