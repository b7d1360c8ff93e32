"""Seeded faults under load. Long form: `make chaos`; repeat one with CHAOS_SEED.

CHAOS_FAULTS="kill freeze" strikes with those alone, so that figures of a kind rest on many users.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from figures import p99, report
from helpers import unique_name
from history import recovery_s, unexplained_moves, violations
from states import state_violations
from storm import TIMEOUT_S, Storm
from witness import CarryingWitness
from world import deployed, read_logs

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("CHAOS_S", "15"))
SEED = int(os.environ.get("CHAOS_SEED", random.randrange(10**6)))
LEASE_S = 3.0
OF_PODS = ["kill", "move", "freeze", "hasty", "scale", "restart", "move", "router", "drain"]
OF_ALL_PROCESSES = ["doze", "stun", "daze"]
OF_LINKS_AND_STORE = ["remove", "cut", "stall", "pause", "full", "unreplicated", "ahead", "back"]
FAULTS = os.environ.get("CHAOS_FAULTS", "").split() or [
    *(*OF_PODS, *OF_ALL_PROCESSES, *OF_LINKS_AND_STORE)
]

# The bounds of the design: after the end of a process, and after a freeze. They need a machine that
# has little else to do, and many faults of a kind: the long form's.
KILL_BOUND_S = 1.5
FREEZE_BOUND_S = LEASE_S + 2
LONG_S = 120


@pytest.mark.timeout(SECONDS + 240)
def test_no_fault_makes_two_owners_or_loses_a_call_or_a_state(
    ray_session: None, tmp_path: Path
) -> None:
    name = unique_name()
    print(f"seed {SEED}, {SECONDS:g} s")
    with deployed(CarryingWitness, name, tmp_path, SEED, LEASE_S) as world:
        storm = Storm(world, SEED)
        storm.first = ["move"] if "move" in FAULTS else []  # it carries states
        history = storm.run(SECONDS, clients=6, faults=FAULTS)
    read_logs(tmp_path, history)
    history.shut_down = True

    wrong = violations(history, unserved_bound_s=TIMEOUT_S) + state_violations(history)
    if set(FAULTS) <= set(OF_ALL_PROCESSES):  # which give nobody a reason to move
        wrong += unexplained_moves(history)
    report(history, storm.failures, wrong)
    assert wrong == []
    assert storm.failures == []
    assert len(history.acknowledged) > SECONDS
    carried = len((tmp_path / "carried").read_text().splitlines())
    print(f"{carried} states moved with their users")
    assert carried or "move" not in FAULTS
    assert {hook.kind for hook in history.hooks} >= {"acquire", "release"}
    if SECONDS >= LONG_S:
        assert p99(recovery_s(history, "kill")) <= KILL_BOUND_S
        assert p99(recovery_s(history, "freeze")) <= FREEZE_BOUND_S
