"""Works one after the other, none of which waits for one that hangs."""

from __future__ import annotations

import threading

import pytest

from ray_route.pod.work_line import run_in_line


def test_they_run_in_order_in_one_thread() -> None:
    ran: list[tuple[int, int]] = []

    def work(number: int) -> None:
        ran.append((number, threading.get_ident()))

    run_in_line([lambda n=n: work(n) for n in range(100)], 10.0)  # type: ignore[misc]
    assert [number for number, _ in ran] == list(range(100))
    assert len({thread for _, thread in ran}) == 1


@pytest.mark.timeout(60)
def test_one_that_hangs_holds_up_only_itself() -> None:
    goes_on, ran = threading.Event(), []
    works = [goes_on.wait, lambda: ran.append(1), goes_on.wait, lambda: ran.append(2)]
    run_in_line(works, 0.05)  # type: ignore[arg-type]
    assert ran == [1, 2]
    goes_on.set()
