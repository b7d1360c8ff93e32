"""The service under faults: it writes down every call that it admits."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import ray_route


class Witness:
    """Appends one line at the start and one at the end of each call, to a file of its own."""

    def __init__(self, folder: str) -> None:
        name = f"{os.getpid()}-{time.monotonic_ns()}.jsonl"
        self._log = (Path(folder) / name).open("a", buffering=1)

    def serve(self, call: str, seconds: float) -> None:
        link = ray_route.current_link()
        assert link is not None
        self._note({"call": call, "start": time.monotonic(), **_owner(link)})
        time.sleep(seconds)
        self._note({"call": call, "end": time.monotonic()})

    def pid(self) -> int:
        return os.getpid()

    def _note(self, line: dict[str, object]) -> None:
        self._log.write(json.dumps(line) + "\n")


def _owner(link: ray_route.CurrentLink) -> dict[str, object]:
    return {
        "uid": link.uid,
        "epoch": link.epoch,
        "pod": link.pod,
        "incarnation": link.incarnation,
    }
