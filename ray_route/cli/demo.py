"""`ray-route demo`."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from ray_route.cli.output import output, output_alone, print_json
from ray_route.demo.replay import Plan, perform
from ray_route.demo.report import bar, hushed, print_outcome
from ray_route.demo.trace import Trace, read_trace, zipf_trace
from ray_route.demo.verdict import Outcome, judge
from ray_route.runtime.bootstrap import bootstrap

_VIOLATED = 1
_SEEDS = 1_000_000


@click.command()
@click.option("--trace", type=click.Path(path_type=Path), help="Log of messages to replay.")
@click.option("--seed", type=int, help="Seed of the log that is drawn without --trace.")
@click.option("--pods", type=click.IntRange(min=1), default=4, show_default=True)
@click.option("--kill", is_flag=True, help="Kill a pod half-way.")
@click.option("--scale-out", is_flag=True, help="Add two pods half-way (with --kill: at a third).")
@click.option("--address", metavar="HOST:PORT", help="Ray to join; default: RAY_ADDRESS.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def demo(
    trace: Path | None,
    seed: int | None,
    pods: int,
    *,
    kill: bool,
    scale_out: bool,
    address: str | None,
    as_json: bool,
) -> int:
    """Replay a log of messages, each counted by the pod of its recipient, and check the outcome.

    The log has one header line, then "src dst unix-seconds" a line; without --trace one of
    59,835 messages among 1,899 people is drawn, their popularity Zipf-distributed.

    Ray is joined as by all commands (see ray-route --help), RAY_ADDRESS=local asks for a new one;
    where there is none it is started, and shut down at the end. Links go to RAY_ROUTE_REDIS_URL,
    else to an embedded server; the demo deletes its own afterwards.

    With --kill, a message that the pod had handled and not yet acknowledged when it died is
    handled again by another: the first handling is gone with the dead pod's memory.

    \b
    Examples:
      ray-route demo --kill --scale-out
      ray-route demo --json | jq '.checks[].problems'
    """  # noqa: D301 - click's mark for text that is not wrapped
    if trace is not None and seed is not None:
        raise click.UsageError("--seed draws a log, --trace reads one: give one of them")
    plan = Plan(_log(trace, seed), pods, kill, scale_out)
    console = Console(file=output(), highlight=False, soft_wrap=True, quiet=as_json)
    with output_alone(), hushed(), bootstrap(address) as started:
        console.print(f"{started}\n{plan.trace}", markup=False)
        with bar(len(plan.trace.recipients)) as (note, advance):
            outcome = perform(plan, started, note, advance)
        kept = print_outcome(console, outcome)
    if as_json:
        print_json(_summary(outcome))
    return 0 if kept else _VIOLATED


def _summary(outcome: Outcome) -> dict[str, Any]:
    checks = judge(outcome.history)
    about = {"events": len(outcome.history.acks), "seconds": round(outcome.seconds, 3)}
    return {**about, "checks": checks, "pods": list(outcome.pods.values())}


def _log(path: Path | None, seed: int | None) -> Trace:
    if path is not None:
        return read_trace(path)
    return zipf_trace(random.randrange(_SEEDS) if seed is None else seed)  # noqa: S311 - no secret
