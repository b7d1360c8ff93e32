from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_nodes_come_and_go() -> None:
    printed = run()
    assert "all 30 uids served" in printed
    assert "no uid has lost its state" in printed
    assert "a miss is answered" in printed


def test_a_node_that_is_told_to_end_costs_no_call() -> None:
    assert "told to end has ended" in run("told")


def run(*parts: str) -> str:
    """Run it in a process of its own: this one has joined another cluster."""
    here = Path(__file__).parent
    # In a folder of its own: Ray's test cluster leaves its address for any Ray program to join.
    with tempfile.TemporaryDirectory(prefix="rr-", dir="/tmp") as place:
        environment = {**os.environ, "PYTHONPATH": str(here.parent), "RAY_TMPDIR": place}
        # Unbuffered: what it has printed says where it stands if it does not end.
        done = subprocess.run(
            [sys.executable, "-u", str(here / "multinode.py"), *parts],
            env=environment,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
    print(*(line for line in done.stdout.splitlines() if "node" in line), sep="\n")
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]
    return done.stdout
