"""Partitions of a real network, under load: every pair of hosts, each way, both ways.

Short form: two cuts, one of which costs pods their lease. Long form: `make partitions`, all 72;
repeat a run with NET_SEED.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path

import pytest
from net_lab import CLIENT, HEAD, PODS, Lab, problem

pytestmark = pytest.mark.slow

CUTS = int(os.environ.get("NET_CUTS", "4"))  # 0: all
SEED = int(os.environ.get("NET_SEED", random.randrange(10**6)))
_PER_CUT_S = 110
_START_S = 400


@pytest.mark.timeout(_START_S)
def test_cuts_of_two_cables_make_no_two_owners_move_no_others_and_let_no_call_hang() -> None:
    play(2, "short")


@pytest.mark.long
@pytest.mark.timeout(_START_S + (CUTS or 72) * _PER_CUT_S)
def test_no_cut_makes_two_owners_moves_others_or_lets_a_call_hang() -> None:
    play(CUTS, "long")


def play(number: int, form: str) -> None:
    """Cut so many cables, one after the other, and check what came of it."""
    if why := problem():
        pytest.skip(why)
    begun = time.monotonic()
    print(f"seed {SEED}, {number or 'all'} cuts")
    with Lab() as lab:
        print(f"four hosts after {time.monotonic() - begun:.0f} s")
        program = (sys.executable, str(Path(__file__).with_name("net_storm.py")))
        words = (*program, lab.mark, str(lab.folder), str(SEED), str(number), form)
        status = lab.start(CLIENT, *words, log="storm.log").wait()
        print((lab.folder / "storm.log").read_text(errors="replace")[-20_000:])
        assert status == 0, "the program on the client's host has failed"
        found = json.loads((lab.folder / "found.json").read_text())
        print(f"all cuts made after {time.monotonic() - begun:.0f} s")
    for cut in found["cuts"]:
        print("{cut}: {seconds:.1f} s, {calls} calls, waited {waited_s:.1f} s".format(**cut))
    print(f"{found['calls']} calls, {found['carried']} states moved with their users")
    starved_s = found["starved_s"]
    longest_s = max(starved_s, default=0.0)
    print(f"pods got no turn of a processor {len(starved_s)} times, for {longest_s:.1f} s at most")
    print(f"{len(found['cuts'])} cuts, {time.monotonic() - begun:.0f} s")
    assert found["wrong"] == []
    assert found["failures"] == []
    assert (found["router_on"], found["pods_on"]) == (HEAD, [CLIENT, PODS])
    assert len(found["cuts"]) == number or not number
    assert found["carried"]
    assert all(cut["calls"] for cut in found["cuts"])
