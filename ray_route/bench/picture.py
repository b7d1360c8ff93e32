"""A result as a picture: throughput, latency and faults, second by second."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw(summary: dict[str, Any], path: Path) -> None:
    """Draw a result; raises `ImportError` without matplotlib (extra `bench`)."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - an extra

    rows = summary["seconds"]
    at = [row["at_s"] for row in rows]
    figure = Figure(figsize=(9, 6), layout="constrained")
    calls, latency = figure.subplots(2, 1, sharex=True)
    calls.plot(at, [row["calls"] for row in rows], label="calls/s")
    calls.plot(at, [row["moved"] for row in rows], label="moved/s")
    calls.plot(at, [row["failed"] for row in rows], label="failed/s")
    for name in ("p50_ms", "p99_ms"):
        latency.plot(at, [row[name] for row in rows], label=name.removesuffix("_ms"))
    latency.set(yscale="log", ylabel="ms", xlabel="s")
    for row in rows:
        for axes in (calls, latency):
            if row["events"]:
                axes.axvline(row["at_s"], color="grey", linestyle=":")
    for axes in (calls, latency):
        axes.axvspan(min(at), 0, color="0.93", label="warm-up")
        axes.legend()
    calls.set_title(
        f"{summary['calls_per_s']:,.0f} calls/s, hit ratio {summary['hit_ratio']:.1%}, "
        f"{summary['failed_calls']} failed, {summary['nodes']} nodes"
    )
    figure.savefig(path)
