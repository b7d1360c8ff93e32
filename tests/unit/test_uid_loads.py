"""What a pod tells of its uids: their loads, the time of their calls, who has one."""

from __future__ import annotations

import math

import pytest
from helpers import ManualClock
from test_admission_rules import Pod

from ray_route.errors import InvalidInputError
from ray_route.pod.call_time import CallTime
from ray_route.pod.uid_loads import UidLoads
from ray_route.protocol.commands import Weighed


def test_the_time_of_calls_fades_and_one_that_runs_counts() -> None:
    time = CallTime()
    assert time.share(0.0, running=False) == 0.0
    time.begin(100.0)
    running = time.share(110.0, running=True)
    time.end(110.0)
    assert time.share(110.0, running=False) == pytest.approx(running) == pytest.approx(0.1155, 0.01)
    assert time.share(170.0, running=False) == pytest.approx(running / 2), "a minute later"
    for begun in range(200, 2_000, 10):  # half of the time
        time.begin(float(begun))
        time.end(begun + 5.0)
    assert time.share(2_000.0, running=False) == pytest.approx(0.5, abs=0.04)
    assert time.share(math.inf, running=False) == 0.0


def test_a_pod_tells_what_its_uids_weigh_and_which_have_a_call() -> None:
    clock = ManualClock()
    pod = Pod(clock)
    loads = UidLoads(pod.held)
    pod.hold("kept", 200, persistent=True)
    pod.hold("gone", 300)
    assert loads.weighed() == Weighed({"u": 100, "kept": 200, "gone": 300}, {}, {}, [], ["kept"])
    pod.enter("u")
    clock.tick(1.0)
    loads.report("kept", 3.5)
    pod.deny("gone", 300)
    weighed = loads.weighed()
    assert (weighed.epochs, weighed.loads) == ({"u": 100, "kept": 200}, {"kept": 3.5})
    assert (weighed.busy, list(weighed.shares)) == (["u"], ["u"])
    assert [one.uid for one in loads.hottest(9)] == ["kept", "u"]
    assert loads.hottest(1)[0].load == 3.5
    assert loads.most_of_the_time() == weighed.shares["u"] > 0
    pod.admission.leave("u")
    loads.report("kept", None)
    assert (loads.weighed().busy, loads.weighed().loads) == ([], {})
    for uid in ("gone", "nobody"):
        with pytest.raises(InvalidInputError):
            loads.report(uid, 1.0)
