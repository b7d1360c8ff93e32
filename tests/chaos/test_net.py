"""Partitions of a real network, under load: every pair of hosts, each way, both ways.

Long form: `make partitions`, all 72 cuts; repeat a run with NET_SEED.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path

import pytest
from net_lab import CLIENT, HEAD, PODS, Lab, problem

CUTS = int(os.environ.get("NET_CUTS", "4"))  # 0: all
SEED = int(os.environ.get("NET_SEED", random.randrange(10**6)))
_PER_CUT_S = 110
_START_S = 400


@pytest.mark.long  # a Ray of three nodes takes half a minute to start
@pytest.mark.timeout(_START_S + (CUTS or 72) * _PER_CUT_S)
def test_no_cut_makes_two_owners_moves_others_or_lets_a_call_hang() -> None:
    if why := problem():
        pytest.skip(why)
    print(f"seed {SEED}, {CUTS or 'all'} cuts")
    with Lab() as lab:
        program = (sys.executable, str(Path(__file__).with_name("net_storm.py")))
        words = (*program, lab.mark, str(lab.folder), str(SEED), str(CUTS))
        lab.start(CLIENT, *words, log="storm.log").wait()
        print((lab.folder / "storm.log").read_text(errors="replace")[-20_000:])
        found = json.loads((lab.folder / "found.json").read_text())
    for cut in found["cuts"]:
        print("{cut}: {seconds:.1f} s, {calls} calls, waited {waited_s:.1f} s".format(**cut))
    print(f"{found['calls']} calls, {len(found['cuts'])} cuts")
    assert found["wrong"] == []
    assert found["failures"] == []
    assert (found["router_on"], found["pods_on"]) == (HEAD, [CLIENT, PODS])
    assert len(found["cuts"]) == CUTS or not CUTS
    assert all(cut["calls"] for cut in found["cuts"])
