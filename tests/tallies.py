"""Users' classes whose states move with their users. Importable by Ray's workers."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import ray_route


class Tally:
    """Counts per uid; a uid's state is its count, and whatever it was told to carry.

    `folder` is where a test tells what is to fail, and where to wait: a file named by the step.
    """

    def __init__(self, folder: str = "") -> None:
        self.folder = folder
        self.users: dict[str, dict[str, Any]] = {}

    def on_acquire(self, uid: str, state: dict[str, Any] | None) -> None:
        self._pass("acquire")
        self.users[uid] = {"count": 0, "news": []} if state is None else state
        self.users[uid]["news"].append("came" if state else "new")

    def on_release(self, uid: str) -> dict[str, Any]:
        self._pass("release")
        return self.users.pop(uid)

    def add(self, uid: str) -> int:
        self.users[uid]["count"] += 1
        count: int = self.users[uid]["count"]
        return count

    def carry(self, uid: str, what: str, size: int = 0) -> None:
        """Have something odd, or large, in a uid's state."""
        odd = {
            "lock": threading.Lock,
            "unreadable": Unreadable,
            "bytes": lambda: bytes(size),
            "gated": lambda: Gated(self.folder),
        }
        self.users[uid]["load"] = odd[what]()

    def drop(self, uid: str) -> None:
        del self.users[uid]["load"]

    def size(self, uid: str) -> int:
        return len(self.users[uid]["load"])

    def news(self, uid: str) -> list[str]:
        news: list[str] = self.users[uid]["news"]
        return news

    def here(self, _: str) -> list[str]:
        return sorted(self.users)

    def pid(self, _: str) -> int:
        return os.getpid()

    def sleep(self, _: str, seconds: float) -> None:
        time.sleep(seconds)

    def _pass(self, step: str) -> None:
        if self.folder:
            pass_step(self.folder, step)


class AsyncTally(Tally):
    """The same on an event loop."""

    async def on_acquire(self, uid: str, state: dict[str, Any] | None) -> None:  # type: ignore[override]
        super().on_acquire(uid, state)

    async def on_release(self, uid: str) -> dict[str, Any]:  # type: ignore[override]
        return super().on_release(uid)

    async def add(self, uid: str) -> int:  # type: ignore[override]
        return super().add(uid)


def pass_step(folder: str, step: str) -> None:
    """Note that a step has come, and fail or wait there while a test says so."""
    with Path(folder, f"{step}.seen").open("a") as seen:
        seen.write(f"{os.getpid()}\n")
    if Path(folder, f"{step}.fails").exists():
        raise RuntimeError(f"{step} fails, as it was told")
    while Path(folder, f"{step}.waits").exists():
        time.sleep(0.01)


class Gated:
    """Waits, where a test says so, while it is written and while it is read."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __getstate__(self) -> dict[str, str]:
        pass_step(self.folder, "write")
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, str]) -> None:
        self.folder = state["folder"]
        pass_step(self.folder, "read")


class Unreadable:
    """Can be pickled, and not be read back."""

    def __setstate__(self, state: object) -> None:
        raise ValueError("this state is from another time")

    def __getstate__(self) -> object:
        return {"something": 1}


class Forgetful:
    """Takes no state."""

    def on_acquire(self, uid: str) -> None:
        pass

    def add(self, _: str) -> int:
        return 1


class Weighted(Tally):
    """Says what some users weigh, or all, and has calls that wait for a file named "go"."""

    def report(self, _: str, load: float | None) -> None:
        agent = ray_route.current_agent()
        assert agent is not None
        agent.set_load_state(load)

    def weigh(self, uid: str, load: float | None) -> None:
        agent = ray_route.current_agent()
        assert agent is not None
        agent.set_uid_load(uid, load)

    def wait(self, uid: str) -> None:
        Path(self.folder, f"waits-{uid}").touch()
        while not Path(self.folder, "go").exists():
            time.sleep(0.01)
