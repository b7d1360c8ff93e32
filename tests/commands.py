"""The installed command, run in processes of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest

COMMAND = Path(sys.executable).with_name("ray-route")
MARK = "RAY_ROUTE_TEST_MARK"

# Ray gives its own start 30 s, and has no setting for that.
_TOO_BUSY = "a new one did not start: The current node timed out during startup"


@dataclass
class Finished:
    status: int
    out: str
    err: str

    @property
    def kept(self) -> int:
        return self.out.count("✓")

    @property
    def seconds(self) -> float:
        found = re.search(r"events in ([\d.]+) s", self.out)
        assert found, self
        return float(found[1])

    @property
    def rows(self) -> list[list[str]]:
        """The table: pod, life, uids, events, load."""
        lines = [line for line in self.out.splitlines() if line.startswith("│")]
        return [[cell.strip().replace(",", "") for cell in line[1:-1].split("│")] for line in lines]


class Command:
    """Runs the command, and knows the processes that came of it.

    On a Ray of its own unless it is told which: others' run on this machine, too.
    """

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex

    def environment(self, **variables: str) -> dict[str, str]:
        unset = ("PYTHONPATH", "RAY_ROUTE_REDIS_URL")
        kept = {name: value for name, value in os.environ.items() if name not in unset}
        ours = {"RAY_ADDRESS": "local", "PYTHONIOENCODING": "utf-8", MARK: self.mark}
        return {**kept, **ours, **variables}

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [COMMAND, *arguments],
            env=self.environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )

    def run(self, *arguments: str, **variables: str) -> Finished:
        """Run a command to its end; once more where a busy machine gave Ray's start no time."""
        done = self._run(*arguments, **variables)
        return self._run(*arguments, **variables) if _TOO_BUSY in done.err else done

    def _run(self, *arguments: str, **variables: str) -> Finished:
        process = self.start(*arguments, **variables)
        try:
            out, err = process.communicate(timeout=250)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=100)
            pytest.fail(f"not within 250 s:\n{out}\n{err}")
        return Finished(process.returncode, out, err)

    def processes(self) -> dict[int, str]:
        """Those still there: everything that the command starts inherits its mark."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"{MARK}={self.mark}".encode() in (process / "environ").read_bytes():
                    words = (process / "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(process.name)] = words.decode(errors="replace")
        return found

    def end(self) -> None:
        """Kill what should not be there any more."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
