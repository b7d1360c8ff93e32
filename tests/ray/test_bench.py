"""The load benchmark: on a cluster of several nodes, with a death and growth on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ray_route.bench.load_generator import Assignment, Second
from ray_route.store.url import parse_url


@pytest.mark.long
def test_on_a_cluster_with_a_kill_and_a_scale_out(tmp_path: Path) -> None:
    program = Path(__file__).with_name("bench_on_a_cluster.py")
    out = tmp_path / "result"
    words = (
        "--users 500 --pods 3 --clients 3 --threads 2 --duration 5 --warm-up 1 "
        f"--zipf 1.1 --kill-every 2 --scale-at 3 --out {out}"
    )
    # In a folder of its own: Ray's test cluster leaves its address for any Ray program to join.
    with tempfile.TemporaryDirectory(prefix="rr-", dir="/tmp") as place:
        done = subprocess.run(
            [sys.executable, str(program), *words.split()],
            env={**os.environ, "RAY_TMPDIR": place},
            capture_output=True,
            text=True,
            timeout=170,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    result = json.loads(out.with_suffix(".json").read_text())
    assert result["nodes"] == 3
    assert result["failed_calls"] == 0
    measured = [row["calls"] for row in result["seconds"] if row["measured"]]
    assert result["calls"] == sum(measured) > 100
    assert 4 <= len(measured) <= 6
    assert not result["seconds"][0]["measured"], "the warm-up does not count"
    assert result["pods_killed"] == 2
    assert 0 < result["links_moved"] <= 1_000
    latency = result["latency_ms"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["p99.9"]
    assert 0.2 < result["hit_ratio"] <= 1
    events = [event for row in result["seconds"] for event in row["events"]]
    assert "scaled from 3 to 4 pods" in events
    assert sum(event.startswith("killed pod") for event in events) == 2
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    print(done.stdout)


def test_percentiles_are_exact_to_two_percent() -> None:
    second = Second()
    for number in range(1, 1_001):
        second.note(number / 1_000)
    for share in (0.5, 0.9, 0.99, 0.999):
        found = second.percentile_ms(share)
        assert found is not None
        assert share * 1_000 <= found <= share * 1_020
    assert Second().percentile_ms(0.5) is None


def test_seconds_of_several_clients_add_up() -> None:
    one, other = Second(failed=1, hits=2, moved=3), Second(failed=10, hits=20, moved=30)
    one.note(0.001)
    other.note(0.1)
    one.add(other)
    assert (one.calls, one.failed, one.hits, one.moved) == (2, 11, 22, 33)
    assert one.took.total() == 2


def test_what_is_drawn_follows_seed_law_and_trace() -> None:
    url = parse_url("redis://127.0.0.1:1/0")

    def drawn(thread: int = 0, count: int = 2_000, **how: object) -> list[str]:
        given = {"seed": 1, "users": 50, "zipf": None, "trace": None, **how}
        assignment = Assignment("n", "s", url, threads=2, duration_s=1, **given)  # type: ignore[arg-type]
        uids = assignment.draw(thread)
        return [next(uids) for _ in range(count)]

    assert drawn() == drawn()
    assert drawn(0) != drawn(1)
    assert drawn() != drawn(seed=2)
    assert len(set(drawn())) == 50
    popular = drawn(zipf=1.5)
    assert popular.count("user-0") > 3 * popular.count("user-4") > 0
    assert drawn(trace=["a", "b", "c"], count=3) == ["a", "c", "a"]
    assert drawn(1, trace=["a", "b", "c"], count=2) == ["b", "b"]
