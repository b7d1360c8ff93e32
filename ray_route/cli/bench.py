"""`ray-route bench`."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from ray_route.bench.picture import draw
from ray_route.bench.run import Plan, Row, run
from ray_route.cli.output import console, output_alone, print_json, table
from ray_route.demo.report import hushed
from ray_route.demo.trace import read_trace
from ray_route.runtime.bootstrap import bootstrap

_FAILED = 1
_SECONDS = click.FloatRange(min=0, min_open=True)
_MANY = click.IntRange(min=1)


@click.command()
@click.option("--users", type=_MANY, default=100_000, show_default=True)
@click.option("--pods", type=_MANY, default=8, show_default=True)
@click.option("--clients", type=_MANY, default=4, show_default=True, help="Client processes.")
@click.option("--threads", type=_MANY, default=4, show_default=True, help="Threads in each.")
@click.option("--duration", "duration_s", type=_SECONDS, default=30.0, show_default=True)
@click.option("--warm-up", "warm_up_s", type=click.FloatRange(min=0), default=3.0)
@click.option("--zipf", type=_SECONDS, help="Exponent of the users' popularity; default: even.")
@click.option("--trace", type=click.Path(path_type=Path), help="Log of messages to call by.")
@click.option("--kill-every", "kill_every_s", type=_SECONDS, help="Kill a pod so often.")
@click.option("--scale-at", "scale_at_s", type=_SECONDS, help="Add half as many pods then.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    callback=lambda *given: _drawable(given[-1]),
    help="Write FILE.json and FILE.png.",
)
@click.option("--address", metavar="HOST:PORT", help="Ray to join; default: RAY_ADDRESS.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def bench(
    out: Path | None, trace: Path | None, address: str | None, *, as_json: bool, **given: Any
) -> int:
    """Put a cluster under load: clients on every node call pods on every node, uid by uid.

    Joins Ray as all commands do (see ray-route --help), else starts one for the time.
    Prints every second, then throughput, p50 to p99.9, hit ratio, links moved, failed calls. Exit 1
    if a call failed. The picture needs matplotlib: pip install matplotlib.

    \b
    Examples:
      ray-route bench --users 1000000 --pods 8 --clients 4 --duration 30 --zipf 1.1
      ray-route bench --kill-every 5 --scale-at 15 --out result
      ray-route bench --json | jq .latency_ms
    """  # noqa: D301 - click's mark for text that is not wrapped
    log = read_trace(trace).recipients if trace is not None else None
    plan = Plan(trace=log, **given)
    printed = console()
    with output_alone(), hushed(), bootstrap(address) as started:
        if not as_json:
            printed.print(f"{started}", markup=False)
        summary = run(plan, started, lambda row: None if as_json else _print(row)).summary()
    if as_json:
        print_json(summary)
    else:
        printed.print(_table(summary))
    if out is not None:
        out.with_suffix(".json").write_text(json.dumps(summary, indent=1) + "\n")
        draw(summary, out.with_suffix(".png"))
    return _FAILED if summary["failed_calls"] else 0


def _drawable(out: Path | None) -> Path | None:
    """Refuse a picture that could not be drawn, before the run and not after it."""
    if out is not None and find_spec("matplotlib") is None:
        raise click.UsageError("--out draws a picture, and that needs: pip install matplotlib")
    return out


def _print(row: Row) -> None:
    said = f"{row.at_s:7.1f} s  {row.calls:7,} calls  hits {row.hit_ratio:6.1%}"
    said += f"  p50 {_ms(row.p50_ms)}  p99 {_ms(row.p99_ms)}  moved {row.moved}"
    said += f"  failed {row.failed}" * bool(row.failed)
    click.echo("  ".join([said, *row.events]), err=True)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} ms"


def _table(summary: dict[str, Any]) -> Any:
    latency = {name: _ms(value) for name, value in summary["latency_ms"].items()}
    names = ("calls", "calls_per_s", "hit_ratio", "links_moved", "failed_calls", "pods_killed")
    rows = [(name.replace("_", " "), str(summary[name])) for name in names]
    return table(("what", "how much"), [*rows, *latency.items()])
