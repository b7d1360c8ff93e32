"""All that may befall a service at once, faults and what its owners do. Long form: `make chaos`.

Users have one object each, whose state moves with them. CHAOS_SEED repeats a run.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from figures import report
from helpers import unique_name
from history import unexplained_moves, violations
from planned import PLANNED, Planned
from states import state_violations
from storm import TIMEOUT_S
from witness import UserWitness
from world import deployed, read_logs

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("CHAOS_S", "8"))
SEED = int(os.environ.get("CHAOS_SEED", random.randrange(10**6)))
LEASE_S = 3.0
OF_PODS = ["kill", "move", "freeze", "hasty", "scale", "restart", "router", "drain", "remove"]
OF_THE_STORE = ["partition", "flush", "cut", "stall", "pause", "crash"]


@pytest.mark.timeout(SECONDS + 400)
def test_what_owners_do_among_faults_costs_no_call_and_no_state(
    ray_session: None, tmp_path: Path
) -> None:
    print(f"seed {SEED}, {SECONDS:g} s")
    with deployed(UserWitness, unique_name(), tmp_path, SEED, LEASE_S, per_uid=True) as world:
        storm = Planned(world, SEED)
        storm.first = ["kill", "partition", "controller", "upgrade", "rebalance"]
        history = storm.run(SECONDS, 6, [*OF_PODS, *OF_THE_STORE, *PLANNED])
    read_logs(tmp_path, history)
    storm.note_lives_amid(history)
    history.shut_down = True

    wrong = violations(history, unserved_bound_s=TIMEOUT_S) + state_violations(history)
    wrong += unexplained_moves(history)
    report(history, storm.failures, wrong)
    print(storm.done)
    assert wrong == []
    assert storm.failures == []
    assert "controller" in storm.done
    assert any(what.startswith("upgrade") for what in storm.done)
