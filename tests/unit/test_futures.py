"""A future is settled, and its outcome had, wherever others who waited for it were interrupted."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from interrupting import at_every_line

from ray_route.clock import Deadline
from ray_route.errors import RouteTimeoutError
from ray_route.runtime import futures, waiting
from ray_route.runtime.futures import Outcome
from ray_route.runtime.waiting import result_of

SOON_S = 10.0


def by_itself(future: Outcome[int]) -> None:
    with suppress(concurrent.futures.TimeoutError):
        future.result(0.001)


def in_slices(future: Outcome[int]) -> None:
    with suppress(RouteTimeoutError):
        result_of(future, "it", Deadline.after(0.001))


@pytest.mark.parametrize("wait", [by_itself, in_slices])
def test_a_future_is_settled_wherever_who_waits_for_it_is_interrupted(
    wait: Callable[[Outcome[int]], None],
) -> None:
    made: list[Outcome[int]] = [Outcome()]

    def work() -> None:
        wait(made[-1])

    def check() -> None:
        settling = threading.Thread(target=made[-1].set_result, args=(7,), daemon=True)
        settling.start()
        settling.join(SOON_S)
        assert not settling.is_alive(), "who settles it hangs"
        with ThreadPoolExecutor(1) as another:
            assert another.submit(made[-1].result, 0).result(SOON_S) == 7
        made.append(Outcome())

    modules = (concurrent.futures._base, threading, futures, waiting)
    assert at_every_line(work, check, *modules) > 10


def test_all_who_wait_for_a_future_have_its_outcome() -> None:
    future: Outcome[int] = Outcome()

    async def awaited() -> int:
        return await asyncio.wrap_future(future)

    waits: list[Callable[[], Any]] = [future.result, lambda: asyncio.run(awaited())]
    with ThreadPoolExecutor(4) as threads:
        had = [threads.submit(wait) for wait in [*waits, *waits]]
        future.set_exception(TimeoutError("its own"))
        for each in had:
            with pytest.raises(TimeoutError, match="its own"):
                each.result(SOON_S)


def test_a_future_that_is_not_settled_in_time_says_so() -> None:
    with pytest.raises(concurrent.futures.TimeoutError):
        Outcome[int]().result(0.001)
