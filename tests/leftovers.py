"""What a namespace's clients have taken of this process, so that tests see it given back."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

from helpers import eventually

from ray_route.client import sessions


def workers() -> list[str]:
    """Return the threads of this process that do what somebody waits for, or did."""
    return [it.name for it in threading.enumerate() if it.name == "ray_route-within"]


def users_of(namespace: str) -> int:
    """Return how many clients use this process's session of a namespace."""
    shared = list(sessions._shared.items())
    return sum(it.users for key, it in shared if key[1] == namespace)


def threads() -> list[str]:
    """Return the threads of this process that are ours."""
    return sorted(it.name for it in threading.enumerate() if it.name.startswith("ray_route-"))


def connections(port: int) -> int:
    """Return how many connections this process has to a port."""
    ours = set()
    for file in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed just now
            ours.add(str(file.readlink()))
    rows = [row.split() for row in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    return sum(
        f"socket:[{row[9]}]" in ours and int(row[2].rpartition(":")[2], 16) == port for row in rows
    )


class Taken:
    """What is taken now; nothing is `left` of later clients once no more is."""

    def __init__(self, namespace: str, port: int) -> None:
        self._namespace = namespace
        self._port = port
        self._before = self._now()

    def _now(self) -> tuple[int, list[str], int]:
        return users_of(self._namespace), threads(), connections(self._port)

    def left(self) -> str:
        """Say what is taken that was not before."""
        users, names, opened = self._now()
        users_before, names_before, opened_before = self._before
        for name in names_before:
            with suppress(ValueError):
                names.remove(name)
        more = users - users_before, names, max(0, opened - opened_before)
        return "" if more == (0, [], 0) else f"{more[0]} users, threads {names}, {more[2]} sockets"

    def check_given_back(self, within_s: float) -> None:
        """Find that nothing is left, now or soon."""
        try:
            eventually(lambda: not self.left(), "all is given back", within_s)
        except BaseException:
            print(f"left: {self.left()}")
            raise
