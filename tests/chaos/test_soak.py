"""Clients, pods and faults of Redis and of pods together, for a while. Long form: `make soak`."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import ray
from figures import report
from helpers import router_handle, unique_name
from history import unexplained_moves, violations
from states import state_violations
from storm import TIMEOUT_S, Storm, call_patiently
from witness import Witness
from world import SERVICE, deployed, read_logs

import ray_route

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("SOAK_S", "15"))
SEED = int(os.environ.get("SOAK_SEED", random.randrange(10**6)))
LEASE_S = 3.0
FAULTS = [
    *("flush", "kill", "flush", "crash", "scale", "flush", "freeze", "hasty", "remove", "full"),
    *("ahead", "back"),
]
THREADS = {"max_concurrency": 32}
CROWD = [f"crowd-{number}" for number in range(2_000)]
# A client's first calls, of uids that are acquired at once: what its allocators keep, they take.
FIRST_CALLS = 2_000
FIRST_UIDS = [f"crowd-of-caller-{number}" for number in range(60)]
# Of the storm's time: caches fill. Then memory may grow by so much, and by some bytes: those
# allocators take once, when a fault ends and calls come in a burst, be it late in a short storm.
WARM_UP = 0.3
GROWTH = 1.05
ONCE = 8e6


@ray.remote(num_cpus=0)
class Caller:
    """A client process whose memory is watched; it keeps no record of what it did."""

    def __init__(self, namespace: str, url: str, uids: list[str]) -> None:
        self._client = ray_route.connect(namespace, redis_url=url)
        self._uids = uids
        self._stop = threading.Event()
        self._numbers = count()
        self._calls = 0
        self._thread = threading.Thread(target=self._go_on)

    def _go_on(self) -> None:
        while not self._stop.is_set():
            self._call_one_of(self._uids)
            self._calls += 1

    def _call_one_of(self, uids: list[str]) -> None:
        uid = random.choice(uids)
        call_patiently(self._client, uid, f"{uid}#soak-{next(self._numbers)}", 0.0)

    def start(self) -> int:
        """Begin to call, and return the process' pid."""
        for _ in range(FIRST_CALLS):
            self._call_one_of(FIRST_UIDS)
        self._thread.start()
        return os.getpid()

    def stop(self) -> int:
        self._stop.set()
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive(), "a call did not end"
        self._client.close()
        return self._calls


class Memory:
    """Resident bytes of some processes, sampled once per second by a thread."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._samples: dict[str, list[int]] = {name: [] for name in pids}
        self._pids = pids
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.5):
            for name, pid in self._pids.items():
                self._samples[name].append(_resident(pid))

    def growth(self) -> Iterator[tuple[str, float, float]]:
        """Yield each process with its bytes after the warm-up, and at the end."""
        for name, samples in self._samples.items():
            settled = samples[int(len(samples) * WARM_UP) :]
            third = max(1, len(settled) // 3)
            before, after = median(settled[:third]), median(settled[-third:])
            yield name, before, after


def _resident(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def call_crowd(client: ray_route.RouteClient, which: str) -> list[Any]:
    """Have every uid of the crowd served once; return what each was told."""
    calls = [(uid, (f"{uid}#{which}", 0.0)) for uid in CROWD]
    return client.call_many(calls, SERVICE, "serve", idempotent=True, timeout=TIMEOUT_S)


@pytest.mark.timeout(SECONDS + 180)
def test_no_fault_of_redis_or_of_pods_costs_anybody_else_their_link(
    ray_session: None, tmp_path: Path
) -> None:
    name = unique_name()
    print(f"seed {SEED}, {SECONDS:g} s")
    with deployed(Witness, name, tmp_path, SEED, LEASE_S, ray_actor_options=THREADS) as world:
        client = world.client
        assert call_crowd(client, "first") == [1] * len(CROWD)
        links = client.compute_linked_pods(CROWD, SERVICE)
        storm = Storm(world, SEED)
        caller = Caller.remote(name, world.url, storm.uids)  # type: ignore[attr-defined]
        router, _ = ray.get(router_handle(name).whereabouts.remote())
        pids = {"router": router, "client": ray.get(caller.start.remote())}
        with Memory(pids) as memory:
            history = storm.run(SECONDS, clients=4, faults=FAULTS)
        called = ray.get(caller.stop.remote())
        now = client.compute_linked_pods(CROWD, SERVICE, timeout=TIMEOUT_S)
        last = call_crowd(client, "last")
    read_logs(tmp_path, history)
    history.shut_down = True

    struck = {fault.incarnation for fault in history.faults}
    lost = [
        uid for uid, link in links.items() if link.incarnation not in struck and now[uid] != link
    ]
    forgotten = [
        uid
        for uid, told in zip(CROWD, last, strict=True)
        if links[uid].incarnation not in struck and told != 2
    ]
    wrong = violations(history, unserved_bound_s=TIMEOUT_S) + unexplained_moves(history)
    wrong += state_violations(history)
    report(history, storm.failures, wrong)
    print(f"links {len(CROWD)}, lost or moved {len(lost)}, users forgotten {len(forgotten)}")
    growths = list(memory.growth())
    for process, before, after in growths:
        print(f"{process}: {before / 1e6:.0f} MB, then {100 * (after / before - 1):+.1f} %")
    assert wrong == []
    assert storm.failures == []
    assert lost == []
    assert forgotten == []
    assert called
    assert [name for name, before, after in growths if after > before * GROWTH + ONCE] == []
