"""A process leaves its Ray and joins another; what was opened in the first says so."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


def test_a_process_that_leaves_its_ray_starts_none_unasked_and_can_join_another() -> None:
    path = os.pathsep.join([str(HERE.parent), str(HERE)])
    with tempfile.TemporaryDirectory(prefix="rr-", dir="/tmp") as place:  # sockets: a short path
        done = subprocess.run(
            [sys.executable, str(HERE / "two_rays.py")],
            env={**os.environ, "PYTHONPATH": path, "RAY_TMPDIR": place},
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr + told_by_ray(Path(place))
    assert done.stdout.split() == ["left", "live"], done


def told_by_ray(place: Path) -> str:
    """Return the ends of its logs: what Ray's own code ends a process for, it tells there alone."""
    names = ("python-core-driver-*.log", "raylet.out", "raylet.err", "gcs_server.err")
    logs = sorted(log for name in names for log in place.glob(f"session_*_*/logs/{name}"))
    return "".join(f"\n{log.name}:\n{log.read_text(errors='replace')[-2000:]}" for log in logs)
