"""Reads shards' counters, which say whether Redis has lost writes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

from ray_route.errors import RouteError
from ray_route.store.damage import is_number


def parse_counter(stored: bytes | None) -> int:
    """Read a shard's counter out of "counter:router".

    One that is missing counts as 0, and one that is damaged as -1: Redis has lost what stood there.
    """
    return 0 if stored is None else _counter_and_writer(stored)[0]


def parse_writer(stored: bytes | None) -> int:
    """Read who wrote a shard's counter last; 0 if nobody has, or it is damaged."""
    return 0 if stored is None else _counter_and_writer(stored)[1]


def _counter_and_writer(stored: bytes) -> tuple[int, int]:
    counter, _, router = stored.partition(b":")
    is_good = is_number(counter) and is_number(router)
    return (int(counter), int(router)) if is_good else (-1, 0)


def parse_counters(
    replies: Sequence[Any],
) -> tuple[int, list[bytes | RouteError | None]]:
    """Read the replies to `LinkCalls.counters`: the microseconds since 1970, what each key holds.

    In a Cluster an error stands where one could not be read; else it is raised, as is the time's.
    """
    time, *groups = replies
    for problem in (time, *groups[:1]) if len(groups) == 1 else (time,):
        if isinstance(problem, RouteError):
            raise problem
    some = ([group] if isinstance(group, RouteError) else group for group in groups)
    return int(time[0]) * 1_000_000 + int(time[1]), list(chain.from_iterable(some))
