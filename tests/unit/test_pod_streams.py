"""A stream's generator is the user's code: it runs in turns from its beginning to its end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ray_route.pod.streams import stream
from ray_route.protocol.calls import StreamEnd


class Pod:
    """Notes of each part of the user's code whether it has the turn."""

    def __init__(self) -> None:
        gate = SimpleNamespace(
            enter=lambda *_, **__: None, recheck=lambda *_, **__: None, leave=lambda *_: self.ends()
        )
        self._ray_route_agent = SimpleNamespace(
            gate=gate, namespace="ns", service="rooms", pod=0, joined=True
        )
        self._ray_route_turn = threading.RLock()
        self.in_turn: dict[str, bool] = {}

    def ends(self) -> None:
        self.note("left")

    def note(self, part: str) -> None:
        self.in_turn[part] = self._ray_route_turn._is_owned()  # type: ignore[attr-defined]

    def count(self, number: int) -> Iterator[int]:
        """Return a generator, after some work of its own."""
        self.note("begun")
        return self._count(number)

    def _count(self, number: int) -> Iterator[int]:
        try:
            for item in range(number):
                self.note("made")
                yield item
        finally:
            self.note("closed")


@pytest.mark.parametrize("taken", [4, 2])
def test_each_part_of_a_stream_runs_in_its_turn_and_none_keeps_it(taken: int) -> None:
    pod: Any = Pod()
    running = stream(pod, ["ann", 1, 1, "count"], 3)
    items = [next(running) for _ in range(taken)]
    assert items[:2] == [0, 1]
    assert (taken == 4) == (type(items[-1]) is StreamEnd)
    assert not pod._ray_route_turn._is_owned(), "others have their turns in between"
    running.close()  # type: ignore[attr-defined]
    assert pod.in_turn == {"begun": True, "made": True, "closed": True, "left": False}
