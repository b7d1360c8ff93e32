"""The service under faults: it counts each user's calls in memory, and writes down all it does.

What it writes are lines of a file of its own, one at the start and one at the end of each call and
hook; what it saves of a user are lines of a file that all pods share.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import threading
import time
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import ray_route

_BEAT_S = 0.1
# How long a state of `Unsaved` takes to be written at most: so some are on their way at any moment.
_WRITTEN_S = 0.3


class Saves:
    """What is saved of each user: the count of the highest epoch is the one that holds.

    So an owner that was stopped in its hook, and wakes when the uid is another's, saves in vain.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def save(self, uid: str, epoch: int, number: int) -> None:
        file = _opened(self._folder / f"saved-{uid}")
        _append(file, f"{epoch} {number}\n")
        os.close(file)

    def load(self, uid: str) -> int:
        try:
            lines = (self._folder / f"saved-{uid}").read_text().splitlines()
        except FileNotFoundError:
            return 0
        return max((int(epoch), int(number)) for epoch, number in map(str.split, lines))[1]


class Log:
    """Lines of one process, each whole: they are appended at once."""

    def __init__(self, folder: str) -> None:
        self._file = _opened(Path(folder) / f"{os.getpid()}-{time.monotonic_ns()}.jsonl")
        self._numbers = count()

    def start(self, what: str, **facts: Any) -> int:
        number = next(self._numbers)
        self._note({"n": number, "what": what, "start": time.monotonic(), **facts})
        return number

    def end(self, number: int, **facts: Any) -> None:
        self._note({"n": number, "end": time.monotonic(), **facts})

    def starved(self, start: float, end: float) -> None:
        self._note({"starved": [start, end]})

    def _note(self, line: dict[str, Any]) -> None:
        _append(self._file, json.dumps(line) + "\n")


class Heart(threading.Thread):
    """Notices when its process did not run for a while: frozen, or on a machine without time."""

    def __init__(self, over_s: float, note: Any) -> None:
        super().__init__(daemon=True)
        self._over_s = over_s
        self._note = note

    def run(self) -> None:
        last = time.monotonic()
        while True:
            time.sleep(_BEAT_S)
            at = time.monotonic()
            if at - last > self._over_s:
                self._note(last, at)
            last = at


class _Counts:
    """What both kinds of pod do alike. `hook_s` is the longest that a hook takes."""

    def __init__(self, folder: str, seed: int, hook_s: float, starved_s: float) -> None:
        self._log = Log(folder)
        self._saves = Saves(folder)
        self._calm = Path(folder) / "calm"
        self._carried = _opened(Path(folder) / "carried")
        self._seed, self._hook_s = seed, hook_s
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()
        Heart(starved_s, self._log.starved).start()

    def _seconds(self, kind: str, uid: str, epoch: int) -> float:
        """How long a hook takes: mostly no time, sometimes long, the same in each run of a seed."""
        choose = random.Random(f"{self._seed}/{kind}/{uid}/{epoch}")
        if uid.startswith("crowd-") or choose.random() < 0.7 or self._calm.exists():
            return 0.0
        return choose.uniform(0.0, self._hook_s)

    def _call_begins(self, call: str) -> tuple[int, str]:
        link, agent = ray_route.current_link(), ray_route.current_agent()
        assert link is not None
        assert agent is not None
        facts = {"pod": link.pod, "incarnation": link.incarnation, "epoch": link.epoch}
        admitted = agent.gate.held.entries[link.uid].used_at
        return self._log.start(
            "call", call=call, uid=link.uid, admitted=admitted, **facts
        ), link.uid

    def _call_ends(self, number: int, uid: str) -> int:
        with self._lock:
            self._counts[uid] += 1
            self._log.end(number, count=self._counts[uid])
            return self._counts[uid]

    def _hook_begins(self, kind: str, uid: str, number: int | None = None) -> tuple[int, int]:
        agent = ray_route.current_agent()
        assert agent is not None
        epoch = agent.gate.held.entries[uid].epoch
        facts = {"pod": agent.pod, "incarnation": agent.incarnation, "epoch": epoch}
        return self._log.start(kind, uid=uid, count=number, **facts), epoch

    def _loads(self, number: int, uid: str, carried: int | None = None) -> None:
        """Take up a count: as it was carried here, or else as it was saved."""
        if carried is not None:
            _append(self._carried, f"{uid} {carried}\n")
        with self._lock:
            self._counts[uid] = self._saves.load(uid) if carried is None else carried
            self._log.end(number, count=self._counts[uid])

    def _saves_it(self, number: int, uid: str, epoch: int, kept: int | None) -> None:
        if kept is not None:
            self._saves.save(uid, epoch, kept)
        with self._lock:
            self._counts.pop(uid, None)
            self._log.end(number)

    def on_lost(self, uid: str) -> None:
        number, _ = self._hook_begins("lost", uid, self._counts.get(uid))
        with self._lock:
            self._counts.pop(uid, None)
            self._log.end(number)


class Witness(_Counts):
    """Hooks and calls in threads."""

    def on_acquire(self, uid: str) -> None:
        number, epoch = self._hook_begins("acquire", uid)
        time.sleep(self._seconds("acquire", uid, epoch))
        self._loads(number, uid)

    def on_release(self, uid: str) -> None:
        kept = self._counts.get(uid)  # there is none in a second hook, which must be seen
        number, epoch = self._hook_begins("release", uid, kept)
        time.sleep(self._seconds("release", uid, epoch))
        self._saves_it(number, uid, epoch, kept)

    def serve(self, call: str, seconds: float) -> int:
        number, uid = self._call_begins(call)
        time.sleep(seconds)
        return self._call_ends(number, uid)

    def pid(self) -> int:
        return os.getpid()


class AsyncWitness(_Counts):
    """Hooks and calls on an event loop."""

    async def on_acquire(self, uid: str) -> None:
        number, epoch = self._hook_begins("acquire", uid)
        await asyncio.sleep(self._seconds("acquire", uid, epoch))
        self._loads(number, uid)

    async def on_release(self, uid: str) -> None:
        kept = self._counts.get(uid)  # there is none in a second hook, which must be seen
        number, epoch = self._hook_begins("release", uid, kept)
        await asyncio.sleep(self._seconds("release", uid, epoch))
        self._saves_it(number, uid, epoch, kept)

    async def serve(self, call: str, seconds: float) -> int:
        number, uid = self._call_begins(call)
        await asyncio.sleep(seconds)
        return self._call_ends(number, uid)

    async def pid(self) -> int:
        return os.getpid()


class CarryingWitness(AsyncWitness):
    """One whose counts move with their users; what is saved is for those whose pod has died.

    A count that was carried is taken up as it is: one that is old would go back.
    """

    async def on_acquire(self, uid: str, carried: int | None) -> None:  # type: ignore[override]
        number, epoch = self._hook_begins("acquire", uid)
        await asyncio.sleep(self._seconds("acquire", uid, epoch))
        self._loads(number, uid, carried)

    async def on_release(self, uid: str) -> int | None:  # type: ignore[override]
        kept = self._counts.get(uid)
        await super().on_release(uid)
        return kept


class Counted:
    """A count on its way."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __getstate__(self) -> dict[str, int]:
        time.sleep(random.uniform(0.0, _WRITTEN_S))
        return {"count": self.count}


class Forgotten:
    """What is saved of users that nobody saves."""

    def save(self, uid: str, epoch: int, number: int) -> None:
        """Forget it."""

    def load(self, _: str) -> int:
        return 0


class Unsaved(CarryingWitness):
    """Its counts are nowhere but in memory."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self._saves = Forgotten()  # type: ignore[assignment]

    async def on_acquire(self, uid: str, carried: Counted | None) -> None:  # type: ignore[override]
        await super().on_acquire(uid, None if carried is None else carried.count)

    async def on_release(self, uid: str) -> Counted | None:  # type: ignore[override]
        kept = await super().on_release(uid)
        return None if kept is None else Counted(kept)


class UserWitness:
    """One object for each user, which takes its count along, one call at a time.

    What is saved is for those whose pod has died. An object that has come from another pod takes
    part from its first call or hook on: only then it is known under which epoch.
    """

    def __init__(self, uid: str, folder: str, seed: int, hook_s: float, starved_s: float) -> None:
        self._made_of(uid, folder, seed, hook_s, starved_s)
        number, epoch = self._pod._hook_begins("acquire", uid)
        time.sleep(self._pod._seconds("acquire", uid, epoch))
        self._loads(number, None)

    def _made_of(self, *args: Any) -> None:
        self._args = args
        self._uid = args[0]
        self._pod = _counts_of_process(*args[1:])

    def _loads(self, number: int, carried: int | None) -> None:
        self._pod._loads(number, self._uid, carried)
        self._carried: int | None = None

    def __getstate__(self) -> Any:
        return self._args, self._count

    def __setstate__(self, state: Any) -> None:
        args, self._count = state
        self._made_of(*args)
        self._carried = self._count

    def _takes_part(self) -> None:
        if self._carried is not None:
            number, _ = self._pod._hook_begins("acquire", self._uid)
            self._loads(number, self._carried)

    def on_release(self) -> None:
        self._takes_part()
        self._count = self._pod._counts[self._uid]
        number, epoch = self._pod._hook_begins("release", self._uid, self._count)
        time.sleep(self._pod._seconds("release", self._uid, epoch))
        self._pod._saves_it(number, self._uid, epoch, self._count)

    def on_lost(self) -> None:
        if self._carried is None:
            self._pod.on_lost(self._uid)

    def serve(self, call: str, seconds: float) -> int:
        self._takes_part()
        number, uid = self._pod._call_begins(call)
        time.sleep(seconds)
        return self._pod._call_ends(number, uid)

    def pid(self) -> int:
        return os.getpid()


_making = threading.Lock()


def _counts_of_process(*args: Any) -> _Counts:
    with _making:  # many objects are made at once
        return _counts(*args)


@cache
def _counts(*args: Any) -> _Counts:
    return _Counts(*args)


def _opened(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def _append(file: int, line: str) -> None:
    os.write(file, line.encode())
