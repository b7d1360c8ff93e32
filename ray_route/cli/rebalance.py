"""The command that evens out the loads of a service's pods."""

from __future__ import annotations

from collections import Counter

import click
from click.core import ParameterSource

from ray_route.cli.cluster import TIMEOUT_S, NamespaceView
from ray_route.cli.keep import held
from ray_route.cli.output import console, in_namespace, print_json, say, table
from ray_route.model import Rebalance

_NOT_DONE = 1
_POSITIVE = click.FloatRange(min=0, min_open=True)
# What says how users are moved now: by itself the controller does so at a rate of its own.
_OF_A_RUN = ("dry_run", "max_moves_per_s", "deadline")


@click.command()
@click.argument("service")
@click.option("--dry-run", is_flag=True, help="Show the plan, and move nobody.")
@click.option("--max-moves-per-s", type=_POSITIVE, default=50.0, show_default=True)
@click.option(
    "--tolerance",
    type=_POSITIVE,
    default=0.1,
    show_default=True,
    help="How much above the mean a pod may be, as a share of it.",
)
@click.option(
    "--deadline", type=_POSITIVE, default=300.0, show_default=True, help="Seconds; then it stops."
)
@click.option(
    "--keep/--no-keep",
    default=None,
    help="Have loads evened out by themselves from now on, or no more; nobody moves now.",
)
@in_namespace
def rebalance(
    namespace: NamespaceView,
    service: str,
    max_moves_per_s: float,
    tolerance: float,
    deadline: float,
    *,
    dry_run: bool,
    keep: bool | None,
    as_json: bool,
) -> int:
    """Move uids off pods that have more than others, with their states and without losing a call.

    The plan is shown first. Uids without a call go first. The status is 1 if it ended early.

    With --keep the controller does so by itself from now on, where a pod has been above the mean by
    more than --tolerance for a minute; --no-keep ends that. Then this command moves nobody.

    \b
    Examples:
      ray-route rebalance rooms --dry-run
      ray-route rebalance rooms --max-moves-per-s 20 --json
      ray-route rebalance rooms --keep --tolerance 0.2
      ray-route rebalance rooms --no-keep
    """  # noqa: D301 - click's mark for text that is not wrapped
    if keep is not None:
        _check_alone(keep=keep)
        return _keep(namespace, service, tolerance if keep else None, as_json=as_json)
    with held(namespace, service) as deployment:
        result = deployment.rebalance(tolerance=tolerance, dry_run=True, deadline_s=TIMEOUT_S)
        if not as_json:
            _show(service, result)
        if not dry_run:
            result = deployment.rebalance(
                tolerance=tolerance, max_moves_per_s=max_moves_per_s, deadline_s=deadline
            )
    if as_json:
        print_json(result)
    elif not dry_run:
        kept = f", {len(result.kept)} stayed where they are" if result.kept else ""
        console().print(f"{result.moved} uids moved{kept}", markup=False)
    if result.problem and not as_json:
        console().print(f"it ended early: {result.problem}", markup=False)
    return _NOT_DONE if result.problem else 0


def _check_alone(*, keep: bool) -> None:
    """Refuse options that mean nothing beside a policy."""
    context = click.get_current_context()
    word, others = ("--keep", _OF_A_RUN) if keep else ("--no-keep", (*_OF_A_RUN, "tolerance"))
    for name in others:
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            option = f"--{name.replace('_', '-')}"
            raise click.UsageError(f"{option} does not go with {word}, which moves nobody now")


def _keep(namespace: NamespaceView, service: str, tolerance: float | None, *, as_json: bool) -> int:
    """Say how uneven loads may be from now on; None: as uneven as they are."""
    with held(namespace, service) as deployment:
        deployment.keep_even(tolerance, TIMEOUT_S)
    text = f"the loads of {service} are left as they are"
    if tolerance is not None:
        text = f"{service} is kept even: no pod more than {tolerance:.4g} above the mean"
    return say(text, {"service": service, "tolerance": tolerance}, as_json=as_json)


def _show(service: str, plan: Rebalance) -> None:
    """Print what is to become of each pod."""
    leave = Counter(move.source for move in plan.moves)
    come = Counter(move.target for move in plan.moves)
    rows = [
        (pod, round(load, 2), round(plan.after[pod], 2), leave[pod], come[pod])
        for pod, load in sorted(plan.before.items())
    ]
    headings = ("pod", "load", "then", "uids that leave", "uids that come")
    console().print(table(headings, rows, f"{service}: {len(plan.moves)} uids are to move"))
