"""`ray-route` on the command line.

Every command returns its exit status: 0, or 1 where what it was asked for does not hold. What the
user can mend (wrong options or input, a store or a Ray that does not answer) is one line on
standard error and status 2; Ctrl-C is 130, after the command has cleaned up.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

import click
import ray

from ray_route._version import __version__
from ray_route.cli.bench import bench
from ray_route.cli.change import drain, move, remove
from ray_route.cli.cluster import UnknownNameError
from ray_route.cli.demo import demo
from ray_route.cli.doctor import doctor
from ray_route.cli.keep import cordon, scale, service, shutdown, uncordon, upgrade
from ray_route.cli.look import explain, pods, status, top, where
from ray_route.cli.rebalance import rebalance
from ray_route.cli.ui import ui
from ray_route.demo.replay import DemoError
from ray_route.demo.trace import TraceError
from ray_route.errors import RouteError

_UNUSABLE = 2
_INTERRUPTED = 130

_MENDABLE = (
    RouteError,
    TraceError,
    DemoError,
    UnknownNameError,
    ray.exceptions.RayActorError,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="ray-route")
def app() -> None:
    """Sticky routing for Ray: a request for user 42 always reaches the actor that holds user 42.

    \b
    Exit status:
      0    done, and all is well
      1    done, and something is not: a uid has no link, a drain left uids, an upgrade
           was undone, a rebalancing ended early, a service is not as it is wanted,
           doctor found faults
      2    not done: wrong options or names, or Ray, Redis or the router did not answer
      130  interrupted by Ctrl-C

    The Ray is the one at --address or RAY_ADDRESS, else the one that `ray start` has started last
    on this machine, else your one here in which ray_route is used; of several one must be named.
    The store is at RAY_ROUTE_REDIS_URL, else the embedded server. Where there is none, `demo` and
    `bench` start one for the time; other commands start neither, nor a router.
    """  # noqa: D301 - click's mark for text that is not wrapped


_COMMANDS = (
    *(status, where, explain, pods, service, top, ui, doctor),
    *(scale, upgrade, rebalance, drain, cordon, uncordon, move, remove, shutdown),
    *(bench, demo),
)
for command in _COMMANDS:
    # Whole sentences: click would cut them at 45 characters.
    command.short_help = command.get_short_help_str(limit=1_000)
    app.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its status."""
    try:
        outcome = app.main(arguments, prog_name="ray-route", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        outcome = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one would cut the way out short
        click.echo("Interrupted.", err=True)
        outcome = _INTERRUPTED
    except _MENDABLE as error:
        click.echo(f"Error: {_one_line(error)}", err=True)
        outcome = _UNUSABLE
    sys.exit(outcome)


def _one_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
