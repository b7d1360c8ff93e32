"""Seeded faults under load. Long form: `make chaos`; repeat one with CHAOS_SEED."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path
from statistics import quantiles

import pytest
from helpers import end_router, unique_name
from history import recovery_s, violations
from storm import SERVICE, TIMEOUT_S, Storm
from witness import Witness

import ray_route

SECONDS = float(os.environ.get("CHAOS_S", "15"))
SEED = int(os.environ.get("CHAOS_SEED", random.randrange(10**6)))
LEASE_S = 3.0
FAULTS = ["kill", "move", "freeze", "move", "scale", "restart", "move", "router"]

# The bounds of the design: after the end of a process, and after a freeze.
KILL_BOUND_S = 1.5
FREEZE_BOUND_S = LEASE_S + 2


@pytest.mark.timeout(SECONDS + 180)
def test_no_fault_makes_two_owners_or_loses_a_call(ray_session: None, tmp_path: Path) -> None:
    name = unique_name()
    print(f"seed {SEED}, {SECONDS:g} s")
    with ray_route.connect(name, pod_lease_s=LEASE_S, heartbeat_s=0.5) as client:
        options = {"namespace": name, "service": SERVICE, "replicas": 4, "args": (str(tmp_path),)}
        with ray_route.deploy(Witness, **options) as deployment:
            storm = Storm(client, deployment, tmp_path, SEED)
            history = storm.run(SECONDS, clients=6, faults=FAULTS)
    end_router(name)

    wrong = violations(history, unserved_bound_s=TIMEOUT_S)
    kinds = Counter(fault.kind for fault in history.faults)
    relinks = len({(call.uid, call.epoch) for call in history.served}) - len(storm.uids)
    print(f"calls {len(history.acknowledged)}, faults {dict(kinds)}, relinks {relinks}")
    print(f"wrong {len(wrong)}, failed calls {len(storm.failures)}")
    for kind in ("kill", "freeze", "restart"):
        print(f"{kind}: {_spread(recovery_s(history, kind))}")
    assert wrong == []
    assert storm.failures == []
    assert len(history.acknowledged) > 20 * SECONDS
    assert _p99(recovery_s(history, "kill")) <= KILL_BOUND_S
    assert _p99(recovery_s(history, "freeze")) <= FREEZE_BOUND_S


def _p99(waits: list[float]) -> float:
    return waits[int(len(waits) * 0.99)] if waits else 0.0


def _spread(waits: list[float]) -> str:
    if len(waits) < 2:
        return "none"
    return f"p50 {quantiles(waits)[1]:.2f} s, p99 {_p99(waits):.2f} s, of {len(waits)} uids"
