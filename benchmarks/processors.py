"""How much time of the processors a batch takes: here, in Redis, and in Ray's workers."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import redis

_TICK = os.sysconf("SC_CLK_TCK")
WHERE = ("here", "Redis", "workers")


class Processors:
    """Adds up what some ways of doing the same take. `redis` is a client of the server."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._spent: defaultdict[str, list[tuple[float, ...]]] = defaultdict(list)

    def during(self, way: str, uids: int, work: Callable[[], float]) -> float:
        """Do some work with so many uids; return what it returns."""
        before = self._now()
        result = work()
        took = (late - early for early, late in zip(before, self._now(), strict=True))
        self._spent[way].append(tuple(one / uids for one in took))
        return result

    def per_uid(self) -> dict[str, tuple[float, ...]]:
        """Return the seconds for each uid, by way and by `WHERE`, the first time left out."""
        return {
            way: tuple(sum(part) / len(part) for part in zip(*spent[1:], strict=True))
            for way, spent in self._spent.items()
        }

    def _now(self) -> tuple[float, float, float]:
        info = self._redis.info("cpu")
        return time.process_time(), info["used_cpu_user"] + info["used_cpu_sys"], workers_s()


def workers_s() -> float:
    """Return the time of all Ray workers that descend from this process; Linux only."""
    stats = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, fields = path.read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue  # it has just ended
        stats[int(path.parent.name)] = name, fields.split()

    def is_ours(pid: int) -> bool:
        while pid in stats and pid != os.getpid():
            pid = int(stats[pid][1][1])
        return pid == os.getpid()

    ticks = (
        int(fields[11]) + int(fields[12])
        for pid, (name, fields) in stats.items()
        if name.startswith("ray::") and is_ours(pid)
    )
    return sum(ticks) / _TICK
