"""Users' classes that write down, in one file for all pods, what happens to each uid and when.

In a module of their own, so that Ray's workers can import it.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple


class Event(NamedTuple):
    pid: int
    what: str
    uid: str


class Book:
    """The file, and beside it what pods save of each uid."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.file = self.folder / "events"

    def note(self, what: str, uid: str) -> None:
        with self.file.open("ab") as events:  # lines that are appended at once do not mix
            events.write(f"{os.getpid()} {what} {uid}\n".encode())

    @contextmanager
    def noted(self, what: str, uid: str):
        self.note(what, uid)
        try:
            yield
        finally:
            self.note(f"{what}-end", uid)

    def events(self, uid: str | None = None) -> list[Event]:
        if not self.file.exists():
            return []
        lines = (line.split(" ", 2) for line in self.file.read_text().splitlines())
        read = [Event(int(pid), what, of) for pid, what, of in lines]
        return [event for event in read if uid in (None, event.uid)]

    def count(self, what: str, uid: str | None = None) -> int:
        return sum(event.what == what for event in self.events(uid))

    def save(self, uid: str, count: int) -> None:
        (self.folder / f"saved-{uid}").write_text(str(count))

    def load(self, uid: str) -> int:
        saved = self.folder / f"saved-{uid}"
        return int(saved.read_text()) if saved.exists() else 0

    def slow(self, what: str, uid: str, seconds: float) -> None:
        """Have a hook of a uid take so long from now on, at whichever pod."""
        (self.folder / f"slow-{what}-{uid}").write_text(str(seconds))

    def slowness(self, what: str, uid: str, otherwise: float) -> float:
        asked = self.folder / f"slow-{what}-{uid}"
        return float(asked.read_text()) if asked.exists() else otherwise

    def faults(self, uid: str) -> list[str]:
        """What is wrong in a uid's history: its hooks and calls must take turns, owner by owner."""
        wrong, owner, open_calls, hook = [], None, 0, None
        for number, (pid, what, _) in enumerate(self.events(uid)):
            where = f"{number}: {what} at {pid}"
            if what == "acquire":
                if owner is not None or hook is not None:
                    wrong.append(f"{where} while {owner} owns it")
                owner, hook = pid, "acquire"
            elif what == "release":
                if owner != pid or hook is not None or open_calls:
                    wrong.append(f"{where} beside {hook or open_calls or owner}")
                hook = "release"
            elif what == "call":
                if owner != pid or hook is not None:
                    wrong.append(f"{where} beside {hook or owner}")
                open_calls += 1
            elif what == "call-end":
                open_calls -= 1
            elif what.endswith("-end"):
                hook = None
                owner = None if what == "release-end" else owner
        return wrong


class Diary:
    """Counts a user's calls, and hands the count over by what it saves."""

    def __init__(self, folder: str, release_s: float = 0.0, acquire_s: float = 0.0) -> None:
        self.book = Book(folder)
        self.release_s, self.acquire_s = release_s, acquire_s
        self.counts: dict[str, int] = {}

    def on_acquire(self, uid: str) -> None:
        with self.book.noted("acquire", uid):
            time.sleep(self.book.slowness("acquire", uid, self.acquire_s))
            self.counts[uid] = self.book.load(uid)

    def on_release(self, uid: str) -> None:
        with self.book.noted("release", uid):
            count = self.counts[uid]
            time.sleep(self.book.slowness("release", uid, self.release_s))
            self.book.save(uid, count)
            del self.counts[uid]

    def on_lost(self, uid: str) -> None:
        self.book.note("lost", uid)
        self.counts.pop(uid, None)

    def add(self, uid: str, seconds: float = 0.0) -> int:
        with self.book.noted("call", uid):
            time.sleep(seconds)
            self.counts[uid] += 1
            return self.counts[uid]

    def add_while_looking(self, uid: str, seconds: float) -> int:
        """Walk over all counts for so long: whoever changes them meanwhile is found out."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for _ in self.counts:
                time.sleep(0.001)
        return self.add(uid)

    def pid(self) -> int:
        return os.getpid()


class AsyncDiary(Diary):
    """The same with coroutines."""

    async def on_acquire(self, uid: str) -> None:  # type: ignore[override]
        with self.book.noted("acquire", uid):
            await asyncio.sleep(self.book.slowness("acquire", uid, self.acquire_s))
            self.counts[uid] = self.book.load(uid)

    async def on_release(self, uid: str) -> None:  # type: ignore[override]
        with self.book.noted("release", uid):
            count = self.counts[uid]
            await asyncio.sleep(self.book.slowness("release", uid, self.release_s))
            self.book.save(uid, count)
            del self.counts[uid]

    async def add(self, uid: str, seconds: float = 0.0) -> int:  # type: ignore[override]
        with self.book.noted("call", uid):
            await asyncio.sleep(seconds)
            self.counts[uid] += 1
            return self.counts[uid]
