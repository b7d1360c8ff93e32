"""A driver of its own: deploys what it is told, says so, and leaves, or is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ray


def driver(code: str, namespace: str, **names: Any) -> subprocess.Popen[str]:
    """Start a driver that runs `code` on this Ray, with `ray_route`, `services` and these names."""
    given = {"namespace": namespace, **names}
    text = f"import ray_route, services\nglobals().update({given!r})\n{code}"
    here = Path(__file__).parent
    return subprocess.Popen(
        [sys.executable, "-c", text],
        env={
            **os.environ,
            "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
            "PYTHONPATH": str(here),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def drive(code: str, namespace: str, **names: Any) -> Any:
    """Run such a driver to its end; return what it printed last, from JSON."""
    out, err = driver(code, namespace, **names).communicate(timeout=100)
    assert out, err
    return json.loads(out.splitlines()[-1])
