"""A real server whose clock steps when a test says so; its monotonic clock does not."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import pytest
import redis
from helpers import eventually
from servers import admin

from ray_route.store.embedded import EmbeddedServer


@dataclass
class SteppingServer:
    """A server and the file that says how far its clock is off."""

    server: EmbeddedServer
    file: Path
    off_s: float = 0.0

    def start(self) -> None:
        """Start the server, or start it again, with the clock as it was set last."""
        faked = {
            "LD_PRELOAD": _library(),
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }
        with patch.dict(os.environ, faked):
            self.server.start()

    def step(self, seconds: float) -> None:
        """Set the server's clock by so many seconds; return when it shows them."""
        self.off_s += seconds
        fresh = self.file.with_suffix(".new")
        fresh.write_text(f"{self.off_s:+.3f}s")
        fresh.replace(self.file)
        with admin(self.server) as asked:
            eventually(lambda: self._shows(asked), "the clock that was set")

    def _shows(self, asked: redis.Redis) -> bool:
        seconds, microseconds = asked.time()
        return abs(seconds + microseconds / 1e6 - time.time() - self.off_s) < 1


def _library() -> str:
    package = find_spec("libfaketime")
    folders = package.submodule_search_locations if package else None
    found = [str(path) for each in folders or [] for path in Path(each).rglob("libfaketime.so.1")]
    if not found:
        pytest.skip("libfaketime is not installed")
    return found[0]


@contextmanager
def stepping_server() -> Iterator[SteppingServer]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "clock"
        file.write_text("+0s")
        stepping = SteppingServer(EmbeddedServer(), file)
        stepping.start()
        try:
            yield stepping
        finally:
            stepping.server.stop()
