"""Users' classes of two versions, for tests of upgrades. A module that Ray's workers can import."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any


class Old:
    """One user's object of the first version."""

    version = 1

    def __init__(self, uid: str, folder: str) -> None:
        self.uid = uid
        self.folder = folder
        self.said: list[int] = []
        self.moves = 0

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.moves += 1

    def say(self, number: int) -> tuple[int, list[int]]:
        self.said.append(number)
        return self.version, list(self.said)

    def moved(self) -> int:
        """Return how often this user's state has come to another pod."""
        return self.moves

    def hold(self, until: str = "go") -> None:
        """Stay until a file is there, and say that it has begun."""
        (Path(self.folder) / "held").touch()
        while not (Path(self.folder) / until).exists():
            time.sleep(0.02)


class New(Old):
    """The next version."""

    version = 2


class Refusing(Old):
    """A version that can't read the state of one user."""

    version = 3

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["uid"] == "odd":
            raise ValueError("what is this?")
        super().__setstate__(state)


class OneWay(Refusing):
    """The same, and the old version can't read what it leaves."""

    def __getstate__(self) -> Any:
        return [self.uid, self.folder, self.said, self.moves]

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(_named(state))


class OneWayForSome(OneWay):
    """The old version can't read what it leaves of one user."""

    def __getstate__(self) -> Any:
        return super().__getstate__() if self.uid == "stuck" else self.__dict__


class Mended(Old):
    """A version that reads the states of all others."""

    version = 4

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(_named(state))


def _named(state: Any) -> Any:
    names = ("uid", "folder", "said", "moves")
    return dict(zip(names, state, strict=True)) if isinstance(state, list) else state


class Unborn:
    """One object for all uids, which never starts."""

    def __init__(self, folder: str) -> None:
        raise RuntimeError(f"no {folder}")


class Count:
    """One object for all uids of a pod."""

    version = 1

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.counts: dict[str, int] = {}

    def on_acquire(self, uid: str, state: int | None) -> None:
        self.counts[uid] = state or 0

    def on_release(self, uid: str) -> int:
        return self.counts.pop(uid)

    def add(self, uid: str) -> tuple[int, int]:
        self.counts[uid] += 1
        return self.version, self.counts[uid]
