"""Users' classes of one object per uid, for tests. A module that Ray's workers can import."""

from __future__ import annotations

import asyncio
import os
import pickle
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

import ray_route

Steps = list[tuple[ray_route.ServiceHandle[Any], str]]


def relayed(steps: Steps) -> int:
    """Call the first of some uids, which calls the next."""
    (rooms, uid), *rest = steps
    arrived: int = rooms[uid].relay.remote(rest).result()
    return arrived


class Room:
    """One user's room; notes if two calls ever were in it at once, but one within the other."""

    def __init__(self, uid: str, folder: str, rooms: ray_route.ServiceHandle[Any] | None = None):
        self.uid = uid
        self.said: list[Any] = []
        self.folder = Path(folder)
        self.rooms = rooms
        self.inside = 0
        self.overlapped = False
        if uid.startswith("poison") and not (self.folder / uid).exists():
            raise LookupError("not yet")

    def on_release(self) -> None:
        (self.folder / f"released-{self.uid}").write_text(repr(self.said))

    def say(self, text: Any, seconds: float = 0.0) -> int:
        self.inside += 1
        self.overlapped = self.overlapped or self.inside > 1
        time.sleep(seconds)
        self.said.append(text)
        self.inside -= 1
        return len(self.said)

    def all_said(self) -> list[Any]:
        return self.said

    def trouble(self) -> bool:
        return self.overlapped

    def hold(self, name: str) -> str:
        """Stay until a file is there, and say that it has begun."""
        (self.folder / f"{name}-begun").touch()
        while not (self.folder / name).exists():
            time.sleep(0.01)
        return name

    @ray_route.interleave
    def peek(self) -> int:
        return len(self.said)

    @ray_route.interleave
    def watch(self, name: str) -> str:
        return self.hold(name)

    def count(self, number: int) -> Iterator[int]:
        for n in range(number):
            self.said.append(n)
            yield n

    # Calls that come back.

    def call_me_back(self, others: list[str]) -> list[str]:
        """Call the next of the others, which calls the one after it, and the last this one."""
        assert self.rooms is not None
        if not others:
            return [self.uid]
        first, *rest = others
        back: list[str] = self.rooms[first].call_me_back.remote(rest).result()
        return [self.uid, *back]

    def relay(self, steps: Steps) -> int:
        return relayed(steps) if steps else self.say("arrived")

    def meet(self, other: str, timeout_s: float) -> int:
        """Call another once its turn has come, too."""
        assert self.rooms is not None
        (self.folder / f"{self.uid}-met").touch()
        while not (self.folder / f"{other}-met").exists():
            time.sleep(0.01)
        met: int = self.rooms[other].options(timeout_s=timeout_s).say.remote(self.uid).result()
        return met

    def from_a_thread(self) -> int:
        assert self.rooms is not None
        rooms, chain, found = self.rooms, ray_route.current_chain(), []

        def ask() -> None:
            with ray_route.in_chain(chain):
                found.append(rooms[self.uid].say.remote("from a thread").result(timeout_s=20))

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        return found[0]

    def from_a_task(self) -> int:
        assert self.rooms is not None
        told: int = ray.get(_say.remote(self.rooms, self.uid))
        return told

    def ask_itself_twice(self) -> bool:
        assert self.rooms is not None
        me = self.rooms[self.uid]
        for response in [me.say.remote(n, 0.1) for n in range(2)]:
            response.result()
        return self.overlapped


@ray.remote(num_cpus=0)
def _say(rooms: ray_route.ServiceHandle[Any], uid: str) -> int:
    said: int = rooms[uid].say.remote("from a task").result(timeout_s=20)
    return said


class AsyncRoom:
    """The same on an event loop."""

    def __init__(self, uid: str) -> None:
        self.uid = uid
        self.said: list[Any] = []
        self.inside = 0
        self.overlapped = False

    async def say(self, text: Any, seconds: float = 0.0) -> int:
        self.inside += 1
        self.overlapped = self.overlapped or self.inside > 1
        await asyncio.sleep(seconds)
        self.said.append(text)
        self.inside -= 1
        return len(self.said)

    async def hold(self, name: str) -> None:
        """Stay until a file is there."""
        while not Path(name).exists():  # noqa: ASYNC110, ASYNC240 - another process makes it
            await asyncio.sleep(0.01)

    async def all_said(self) -> list[Any]:
        return self.said

    async def trouble(self) -> bool:
        return self.overlapped

    async def count(self, number: int) -> AsyncIterator[int]:
        for n in range(number):
            self.said.append(n)
            yield n


class Shared:
    """One object for all uids of a pod, whose hooks call back."""

    def __init__(self, rooms: ray_route.ServiceHandle[Any]) -> None:
        self.rooms = rooms
        self.said: dict[str, list[Any]] = {}

    def on_acquire(self, uid: str) -> None:
        if uid.startswith("loop"):
            self.rooms[uid].say.remote(uid, "me").result(timeout_s=60)
        self.said[uid] = []

    def say(self, uid: str, text: Any, seconds: float = 0.0) -> int:
        before = len(self.said[uid])
        time.sleep(seconds)
        self.said[uid].append(text)
        assert len(self.said[uid]) == before + 1, "two calls at once"
        return before + 1

    def hold(self, uid: str, name: str) -> int:
        """Stay until a file is there."""
        while not Path(name).exists():
            time.sleep(0.01)
        return len(self.said[uid])

    def all_said(self, uid: str) -> list[Any]:
        return self.said[uid]

    def relay(self, steps: Steps) -> int:
        return relayed(steps)


class SqliteStore:
    """Keeps states in a file, each with the highest epoch that has been seen for its uid."""

    def __init__(self, path: str) -> None:
        self.path = path
        with self._open() as db:
            db.execute("CREATE TABLE IF NOT EXISTS states (uid PRIMARY KEY, epoch INT, state BLOB)")

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        db = sqlite3.connect(self.path, timeout=30)
        try:
            with db:
                yield db
        finally:
            db.close()

    def load(self, uid: str, epoch: int) -> Any:
        fence = """
            INSERT INTO states VALUES (?, ?, NULL)
            ON CONFLICT (uid) DO UPDATE SET epoch = excluded.epoch WHERE epoch <= excluded.epoch
            """
        with self._open() as db:
            db.execute(fence, (uid, epoch))
            row = db.execute("SELECT state FROM states WHERE uid = ?", (uid,)).fetchone()
        return None if row[0] is None else pickle.loads(row[0])

    def save(self, uid: str, epoch: int, state: Any) -> None:
        write = "UPDATE states SET epoch = ?, state = ? WHERE uid = ? AND epoch <= ?"
        with self._open() as db:
            if not db.execute(write, (epoch, pickle.dumps(state), uid, epoch)).rowcount:
                raise PermissionError(f"epoch {epoch} of {uid} is over")


class Tally:
    """Counts, and has its process end when it is told to."""

    def __init__(self, uid: str) -> None:
        self.uid = uid
        self.count = 0

    def add(self) -> int:
        self.count += 1
        return self.count

    def exit(self) -> None:
        os._exit(1)


@ray.remote(num_cpus=0)
class Reader:
    """Reads one item of a stream, and no more."""

    def __init__(self, rooms: ray_route.ServiceHandle[Any]) -> None:
        self.rooms = rooms

    def read_one(self, uid: str) -> int:
        self.items = self.rooms[uid].options(stream=True).count.remote(1_000_000)
        return next(self.items)


def is_known(pod: Any, uid: str) -> bool:
    """Say whether a call of a uid has come to a pod; run there."""
    return uid in pod._ray_route_agent.gate.held.entries


def is_to_leave(pod: Any, uid: str) -> bool:
    """Say whether a pod has been asked to give a uid up; run there."""
    return bool(pod._ray_route_agent.gate.held.entries[uid].wishes)
