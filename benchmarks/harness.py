"""What all benchmarks share: interleaved runs, medians and spreads, targets, tables and plots.

Peers of one benchmark take turns within each run, so that a noisy machine slows all of them
alike: the ratios are the result, the absolute numbers are only its circumstances.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

# A shared machine: a round begins when others need less than this share of it.
_QUIET = 0.15
_LOOK_S = 0.3
_PATIENCE_S = 10.0

# What others took of the machine when each round of this process began.
others_took: list[float] = []

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Sample:
    """One quantity over all runs."""

    values: list[float]

    @property
    def median(self) -> float:
        """The one in the middle."""
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        """The least of all runs."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The most of all runs."""
        return max(self.values)

    def over(self, other: Sample) -> Sample:
        """Divide run by run: what both have in common, like a busy neighbour, cancels out."""
        pairs = zip(self.values, other.values, strict=True)
        return Sample([mine / others for mine, others in pairs])


@dataclass(frozen=True)
class Target:
    """Something to reach. `kind` is "at least" or "at most"."""

    what: str
    kind: str
    limit: float
    got: Sample

    @property
    def reached(self) -> bool:
        """True if the median is on the right side."""
        if self.kind == "at least":
            return self.got.median >= self.limit
        return self.got.median <= self.limit


@dataclass
class Report:
    """A benchmark's result."""

    name: str
    question: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    samples: dict[str, Sample] = field(default_factory=dict)
    targets: list[Target] = field(default_factory=list)
    plots: dict[str, Plot] = field(default_factory=dict)

    def aim(self, what: str, kind: str, limit: float, got: Sample) -> None:
        """Add a target."""
        self.targets.append(Target(what, kind, limit, got))


@dataclass(frozen=True)
class Plot:
    """Lines over one axis; both axes are logarithmic, or both linear with events marked on x."""

    title: str
    x_label: str
    y_label: str
    lines: Mapping[str, tuple[list[float], list[float]]]
    linear: bool = False
    events: Mapping[str, float] = field(default_factory=dict)


def timed(work: Callable[[], Any]) -> float:
    """Return how many seconds something takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def take_turns(
    peers: Mapping[str, Callable[[], float]], runs: int, warm_up: int = 1
) -> dict[str, Sample]:
    """Run peers in turn, `runs` times after `warm_up`; each returns its own figure."""
    values: dict[str, list[float]] = {name: [] for name in peers}
    for number in range(warm_up + runs):
        others_took.append(wait_for_quiet())
        for name, peer in peers.items():
            value = peer()
            if number >= warm_up:
                values[name].append(value)
    return {name: Sample(list(some)) for name, some in values.items()}


def wait_for_quiet() -> float:
    """Wait, but not for long, until nobody else needs the processors; return what others take."""
    end = time.monotonic() + _PATIENCE_S
    share = _busy_share()
    while share > _QUIET and time.monotonic() < end:
        share = _busy_share()
    return share


def _busy_share() -> float:
    """Return what share of all processors was busy while this process slept."""
    before = _ticks()
    time.sleep(_LOOK_S)
    after = _ticks()
    idle, total = (late - early for early, late in zip(before, after, strict=True))
    return 1 - idle / total if total else 0.0


def _ticks() -> tuple[int, int]:
    """Return the ticks that all processors were idle, and all ticks; Linux only."""
    try:
        line = Path("/proc/stat").read_text().splitlines()[0]
    except OSError:
        return 0, 0
    ticks = [int(field) for field in line.split()[1:]]
    return ticks[3] + ticks[4], sum(ticks)


def machine() -> dict[str, Any]:
    """Describe where this was measured."""
    names = ("ray", "redis", "hiredis", "ray-route")
    return {
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_1_min": round(os.getloadavg()[0], 1),
        **{name: version(name) for name in names},
    }


def show(report: Report, console: Console) -> None:
    """Print a report as tables."""
    console.print(f"\n[bold]{report.name}[/]: {report.question}")
    table = Table(*report.columns)
    for row in report.rows:
        table.add_row(*row)
    console.print(table)
    took = f"{statistics.median(others_took):.0%}, at most {max(others_took):.0%}"
    console.print(f"others took {took} of the machine when rounds began")
    if not report.targets:
        return
    targets = Table("target", "wanted", "median", "spread", "")
    for target in report.targets:
        got = target.got
        targets.add_row(
            target.what,
            f"{target.kind} {target.limit:g}",
            f"{got.median:.3g}",
            f"{got.low:.3g} to {got.high:.3g}",
            "[green]reached[/]" if target.reached else "[red]missed[/]",
        )
    console.print(targets)


def as_json(report: Report, about: Mapping[str, Any], *, quick: bool) -> dict[str, Any]:
    """Turn a report into plain values."""
    plain = asdict(report)
    for name, sample in report.samples.items():
        plain["samples"][name] |= {"median": sample.median, "low": sample.low, "high": sample.high}
    for target, made in zip(report.targets, plain["targets"], strict=True):
        made |= {"median": target.got.median, "reached": target.reached}
    circumstances = {"quick": quick, "others_took": list(others_took)}
    return {"machine": dict(about), **circumstances, **plain}


def save(report: Report, about: Mapping[str, Any], path: Path, *, quick: bool) -> None:
    """Write a report as JSON, with its plots as SVG beside it where matplotlib is installed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(as_json(report, about, quick=quick), indent=2) + "\n")
    for name, plot in report.plots.items():
        _draw(plot, path.with_name(f"{path.stem}-{name}.svg"))


def _draw(plot: Plot, path: Path) -> None:
    try:
        import matplotlib as mpl  # noqa: PLC0415 - only needed here, and may be missing
    except ImportError:
        return
    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(7, 4.5))
    for label, (xs, ys) in plot.lines.items():
        axes.plot(xs, ys, marker="" if plot.linear else "o", label=label)
    scale = "linear" if plot.linear else "log"
    axes.set(title=plot.title, xlabel=plot.x_label, ylabel=plot.y_label, xscale=scale, yscale=scale)
    for label, x in plot.events.items():
        axes.axvline(x, color="grey", linestyle=":")
        axes.annotate(label, (x, axes.get_ylim()[1]), rotation=90, va="top", ha="right")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend(loc="lower right" if plot.linear else "best")
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
