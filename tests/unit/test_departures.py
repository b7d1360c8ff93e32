"""A process leaves once, in order, wherever who asks it to is interrupted."""

from __future__ import annotations

import threading

from helpers import eventually
from interrupting import at_every_line

from ray_route.pod import endings
from ray_route.pod.endings import Departure


def test_a_process_leaves_once_wherever_who_has_asked_it_to_was_interrupted() -> None:
    left: list[str] = []
    goes = threading.Event()

    def leave() -> None:
        assert goes.wait(60)
        left.append("left")

    def end() -> None:
        left.append("ended")

    departures = [Departure(leave)]

    def work() -> None:
        departures[-1].begin(end)

    def check() -> None:
        departures[-1].begin(end)
        goes.set()
        eventually(lambda: left == ["left", "ended"], "it leaves")
        assert not departures[-1].begin(end)
        left.clear()
        goes.clear()
        departures.append(Departure(leave))

    assert at_every_line(work, check, endings) > 2
    goes.set()  # the last one was begun and not checked
    eventually(lambda: "ended" in left, "no thread stays")
