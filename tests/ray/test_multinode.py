from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path


def test_nodes_come_and_go() -> None:
    """In a process of its own: this one has joined another cluster."""
    here = Path(__file__).parent
    # In a folder of its own: Ray's test cluster leaves its address for any Ray program to join.
    with tempfile.TemporaryDirectory(prefix="rr-", dir="/tmp") as place:
        environment = {**os.environ, "PYTHONPATH": str(here.parent), "RAY_TMPDIR": place}
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
    assert "no uid has lost its state" in done.stdout
    assert "told to end has ended" in done.stdout
    assert "a miss is answered" in done.stdout
