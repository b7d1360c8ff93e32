"""How a replay is shown: a bar while it runs, a table and a verdict at its end."""

from __future__ import annotations

import io
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from ray_route.demo.verdict import Check, Outcome, Owner, judge


@contextmanager
def bar(total: int) -> Iterator[tuple[Callable[[str], None], Callable[[int], None]]]:
    """Show a progress bar on standard error; provide what changes its text and what moves it."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=False) as progress:
        task = progress.add_task("the router is started", total=total)
        yield (
            lambda text: progress.update(task, description=text),
            lambda events: progress.advance(task, events),
        )


@contextmanager
def hushed() -> Iterator[None]:
    """Keep what is printed meanwhile from standard output, unless it may explain an error.

    Ray prints a page about every process that is killed, also when that was the plan.
    """
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            yield
    except Exception:
        sys.stderr.write(said.getvalue())
        raise


def print_outcome(console: Console, outcome: Outcome) -> bool:
    """Print the table and the verdict; say whether every promise was kept."""
    checks = judge(outcome.history)
    console.print(_table(outcome))
    events = len(outcome.history.acks)
    rate = events / outcome.seconds
    console.print(f"{events:,} events in {outcome.seconds:.2f} s: {rate:,.0f} events/s")
    for check in checks:
        for line in _lines(check, plain=console.options.ascii_only):
            console.print(line)
    return all(check.kept for check in checks)


def _table(outcome: Outcome) -> Table:
    """Lay out one row per pod and life: who handled how much, and who holds whom now."""
    history = outcome.history
    uids = Counter(history.last_owner.values())
    events = Counter(ack.owner for ack in history.acks)
    table = Table("pod", "life")
    for heading in ("uids", "events", "load"):
        table.add_column(heading, justify="right")
    load = {Owner(pod.pod, pod.incarnation): pod.load for pod in outcome.pods.values()}
    for owner in sorted({*events, *load}):
        life, shown = ("alive", f"{load[owner]:g}") if owner in load else ("dead", "")
        table.add_row(str(owner.pod), life, f"{uids[owner]:,}", f"{events[owner]:,}", shown)
    table.add_section()
    table.add_row("all", "", f"{uids.total():,}", f"{events.total():,}", "")
    return table


def _lines(check: Check, *, plain: bool) -> Iterator[Text]:
    if check.kept:
        yield Text(f"{'ok' if plain else '✓'} {check.promise}: {check.finding}", "green")
        return
    yield Text(f"{'FAILED' if plain else '✗'} {check.promise}", "bold red")
    for problem in check.problems:
        yield Text(f"    {problem}", "red")
