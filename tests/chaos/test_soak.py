"""Clients, pods and faults of Redis and of pods together, for a while. Long form: `make soak`."""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import ray
from helpers import end_router, router_handle, unique_name
from history import History, recovery_s, unexplained_moves, violations
from storm import SERVICE, TIMEOUT_S, Storm, call_patiently
from witness import Witness

import ray_route
from ray_route.store.embedded import EmbeddedServer

SECONDS = float(os.environ.get("SOAK_S", "15"))
SEED = int(os.environ.get("SOAK_SEED", random.randrange(10**6)))
LEASE_S = 3.0
FAULTS = ["flush", "kill", "flush", "crash", "scale", "flush", "freeze"]
CROWD = [f"crowd-{number}" for number in range(2_000)]
# Of the time: caches fill, allocators settle. Then memory may grow by so much.
WARM_UP = 0.3
GROWTH = 1.05


@ray.remote(num_cpus=0)
class Caller:
    """A client process whose memory is watched; it keeps no record of what it did."""

    def __init__(self, namespace: str, url: str, uids: list[str]) -> None:
        self._client = ray_route.connect(namespace, redis_url=url)
        self._uids = uids
        self._stop = threading.Event()
        self._calls = 0
        self._thread = threading.Thread(target=self._go_on)
        self._thread.start()

    def _go_on(self) -> None:
        while not self._stop.is_set():
            uid = random.choice(self._uids)
            call_patiently(self._client, uid, f"{uid}#soak", 0.0)
            self._calls += 1

    def pid(self) -> int:
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
        """Yield each process with its MB after the warm-up, and what it grew by until the end."""
        for name, samples in self._samples.items():
            settled = samples[int(len(samples) * WARM_UP) :]
            third = max(1, len(settled) // 3)
            before, after = median(settled[:third]), median(settled[-third:])
            yield name, before / 1e6, after / before


def _resident(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def settle(client: ray_route.RouteClient) -> dict[str, Any]:
    """Have every uid of the crowd served once; return their links."""
    calls = [(uid, (f"{uid}#first", 0.0)) for uid in CROWD]
    outcomes = client.call_many(calls, SERVICE, "serve", idempotent=True, timeout=60)
    assert outcomes == [None] * len(CROWD)
    return client.compute_linked_pods(CROWD, SERVICE)


def report(history: History, storm: Storm, wrong: list[str], lost: list[str]) -> None:
    kinds = Counter(fault.kind for fault in history.faults)
    print(f"calls {len(history.acknowledged)}, faults {dict(kinds)}, links {len(CROWD)}")
    print(f"wrong {len(wrong)}, failed {len(storm.failures)}, links lost or moved {len(lost)}")
    for kind in kinds:
        waits = recovery_s(history, kind)
        print(f"{kind}: longest unserved {max(waits, default=0):.2f} s")


@pytest.mark.timeout(SECONDS + 180)
def test_no_fault_of_redis_or_of_pods_costs_anybody_else_their_link(
    ray_session: None, tmp_path: Path
) -> None:
    name = unique_name()
    print(f"seed {SEED}, {SECONDS:g} s")
    with EmbeddedServer() as server:
        lives = {"pod_lease_s": LEASE_S, "heartbeat_s": 0.5}
        with (
            ray_route.connect(name, redis_url=server.url, **lives) as client,
            ray_route.deploy(
                Witness,
                namespace=name,
                service=SERVICE,
                replicas=4,
                args=(str(tmp_path),),
                redis_url=server.url,
            ) as deployment,
        ):
            links = settle(client)
            storm = Storm(client, deployment, tmp_path, SEED, server)
            caller = Caller.remote(name, server.url, storm.uids)  # type: ignore[attr-defined]
            router, _ = ray.get(router_handle(name).whereabouts.remote())
            pids = {"router": router, "client": ray.get(caller.pid.remote())}
            with Memory(pids) as memory:
                history = storm.run(SECONDS, clients=4, faults=FAULTS)
            called = ray.get(caller.stop.remote())
            struck = {fault.incarnation for fault in history.faults}
            now = client.compute_linked_pods(CROWD, SERVICE, timeout=60)
            lost = [
                uid
                for uid, link in links.items()
                if link.incarnation not in struck and now[uid] != link
            ]
            end_router(name)

    wrong = violations(history, unserved_bound_s=TIMEOUT_S) + unexplained_moves(history)
    report(history, storm, wrong, lost)
    growths = list(memory.growth())
    for process, before, grown in growths:
        print(f"{process}: {before:.0f} MB, then {100 * (grown - 1):+.1f} %")
    assert wrong == []
    assert storm.failures == []
    assert lost == []
    assert called > 5 * SECONDS
    assert [process for process, _, grown in growths if grown > GROWTH] == []
