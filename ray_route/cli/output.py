"""How commands print: tables for people, one JSON document for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from dataclasses import asdict, is_dataclass
from functools import wraps
from typing import Any, TextIO

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from ray_route.cli.cluster import Cluster, joined_cluster
from ray_route.errors import DamagedKeyError, RouteError
from ray_route.model import Life, Pod, RoutingState

_PIPE_COLUMNS = 200
_ID_CHARACTERS = 12
_BAR_COLUMNS = 16


def at_cluster(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command the options by which it finds a cluster, and that cluster as `cluster`."""

    @click.option("--address", metavar="HOST:PORT", help="Ray to join; default: RAY_ADDRESS.")
    @click.option(
        "--redis-url",
        metavar="URL",
        help="Store, without a password; default: RAY_ROUTE_REDIS_URL, which may hold one.",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    @wraps(command)
    def with_cluster(address: str | None, redis_url: str | None, **given: Any) -> int:
        with output_alone(), joined_cluster(address, redis_url) as cluster:
            return command(cluster=cluster, **given)

    return with_cluster


def in_namespace(command: Callable[..., int]) -> Callable[..., int]:
    """Do as `at_cluster`, and provide one namespace as `namespace`."""

    @at_cluster
    @click.option("--namespace", "-n", help="Default: the only one there is.")
    @wraps(command)
    def with_namespace(cluster: Cluster, namespace: str | None, **given: Any) -> int:
        found = cluster.namespace(namespace)
        try:
            return command(namespace=found, **given)
        finally:
            found.close()

    return with_namespace


_output: ContextVar[TextIO | None] = ContextVar("ray_route_output", default=None)


@contextmanager
def output_alone() -> Iterator[None]:
    """Have standard output for what the command itself prints.

    Ray writes there what its nodes warn of, to any process that has joined it, and programs read
    what a command prints; that, and what a user's module prints, goes to standard error.
    """
    was = _output.set(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _output.reset(was)


def output() -> TextIO:
    """Return what a command prints on."""
    return _output.get() or sys.stdout


def console() -> Console:
    """Make a console on standard output; a pipe gets whole lines."""
    made = Console(file=output(), highlight=False)
    if made.is_terminal:
        return made
    return Console(file=output(), width=_PIPE_COLUMNS, highlight=False)


def print_json(content: Any) -> None:
    """Print one JSON document on one line."""
    click.echo(as_json(content), file=output())


def say(text: str, content: Any, *, as_json: bool) -> int:
    """Print what a command has done, for people or for programs; return the status 0."""
    if as_json:
        print_json(content)
    else:
        console().print(text, markup=False)
    return 0


def as_json(content: Any) -> str:
    """Write a document as JSON, values of ours by their fields."""
    return json.dumps(content, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, DamagedKeyError):
        return {"uid": value.uid, "key": value.key, "reason": value.reason}
    if isinstance(value, RouteError):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{value!r} can't be written as JSON")


def progress(*more: ProgressColumn, quiet: bool) -> Progress:
    """Show on standard error how far something has come: in words, none of which is cut."""
    words = Column(overflow="fold")
    columns = (
        TextColumn("{task.description}", markup=False, table_column=words),
        BarColumn(_BAR_COLUMNS),
        *more,
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=Console(stderr=True, quiet=quiet), redirect_stdout=False)


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> Table:
    """Lay out rows; what is a number stands to the right.

    Where the terminal is too narrow, cells are folded: no digit of an id is lost.
    """
    made = Table(title=title or None, title_justify="left", title_style="bold")
    rows = [list(row) for row in rows]
    for column, heading in enumerate(headings):
        numbers = all(isinstance(row[column], (int, float)) for row in rows)
        made.add_column(heading, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        made.add_row(*(_cell(value) for value in row))
    return made


def _cell(value: object) -> Text:
    if isinstance(value, Text):
        return value
    return Text(f"{value:,.10g}" if isinstance(value, float) else str(value))


POD_COLUMNS = ("service", "pod", "state", "load", "links", "heartbeat", "node", "incarnation")


def pod_rows(pods: Iterable[tuple[str, Pod]]) -> list[tuple[object, ...]]:
    """Lay out pods, each with the name of its service."""
    found = list(pods)
    digits = digits_apart(pod.node for _, pod in found)
    return [_pod_row(service, pod, digits) for service, pod in found]


def digits_apart(ids: Iterable[str]) -> int:
    """Return how many of the first characters tell all of these ids apart, twelve at the least."""
    known, digits = set(ids), _ID_CHARACTERS
    while len({one[:digits] for one in known}) < len(known):
        digits += 1
    return digits


def _pod_row(service: str, pod: Pod, digits: int) -> tuple[object, ...]:
    return (
        service,
        pod.pod,
        state_of(pod),
        round(pod.load, 2),
        pod.links,
        f"{pod.heartbeat_age_s:.1f} s",
        pod.node[:digits],
        pod.incarnation,
    )


def state_of(pod: Pod) -> Text:
    """Say in a word what a pod is, in the colour of how well that is."""
    if pod.life is not Life.ALIVE:
        return Text(pod.life.value, "dim" if pod.life is Life.RESIGNED else "red")
    return Text(pod.state.value, "green" if pod.state is RoutingState.READY else "yellow")
