from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(180)
def test_nodes_come_and_go() -> None:
    """In a process of its own: this one has joined another cluster."""
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(here.parent)}
    done = subprocess.run(
        [sys.executable, str(here / "multinode.py")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    print(*(line for line in done.stdout.splitlines() if "removed" in line), sep="\n")
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]
    assert "all 30 uids served" in done.stdout
    assert "a miss is answered" in done.stdout
