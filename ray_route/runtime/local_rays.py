"""The Rays that run on this machine, as its process table shows them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# In a Ray's session folder: ray_route is used there.
MARK = "ray_route"

_PROC = Path("/proc")
_ADDRESS, _FOLDER = "--gcs-address=", "--session_dir="


class LocalRay(NamedTuple):
    """A Ray with a node on this machine: its address, and where its session's files are."""

    address: str
    folder: Path

    @property
    def routes(self) -> bool:
        """True if a program that uses ray_route has been there."""
        return (self.folder / MARK).is_dir()

    @property
    def starter(self) -> str:
        """The process id of what started it: Ray ends a session's name with that."""
        return self.folder.name.rpartition("_")[2]

    def __str__(self) -> str:
        return f"{self.address} (started by process {self.starter})"


def local_rays() -> list[LocalRay]:
    """Return this user's Rays, in order of their addresses. Another user's are none of ours.

    None where there is no `/proc`, and none of another container's: their folders are elsewhere.
    """
    found = {ray.address: ray for ray in _found() if ray.folder.is_dir()}
    return [found[address] for address in sorted(found)]


def _found() -> Iterator[LocalRay]:
    for process in _PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if process.stat().st_uid == os.geteuid():
                yield from _of(os.fsdecode((process / "cmdline").read_bytes()).split("\0"))


def _of(words: list[str]) -> Iterator[LocalRay]:
    """Read a raylet's command line."""
    if not words[0].endswith("raylet"):
        return
    addresses = [word.removeprefix(_ADDRESS) for word in words if word.startswith(_ADDRESS)]
    folders = [word.removeprefix(_FOLDER) for word in words if word.startswith(_FOLDER)]
    if addresses and folders:
        yield LocalRay(addresses[-1], Path(folders[-1]))
