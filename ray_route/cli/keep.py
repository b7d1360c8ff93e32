"""Commands that say how a deployed service is to be: scale, upgrade, cordon, shutdown, service."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from ray import cloudpickle

from ray_route.cli.cluster import TIMEOUT_S, NamespaceView
from ray_route.cli.output import console, in_namespace, print_json, progress, say, table
from ray_route.deploying import get_deployment
from ray_route.deployment import Deployment
from ray_route.errors import UpgradeError
from ray_route.model import ServiceStatus, UpgradeProgress

_NOT_AS_WANTED = 1
_INSTALLED = {"site-packages", "dist-packages"}
_SECONDS = click.FloatRange(min=0, min_open=True)


@contextlib.contextmanager
def held(namespace: NamespaceView, service: str) -> Iterator[Deployment]:
    """Hold a deployed service; raise `RouterUnavailableError` where a router would be made."""
    client = namespace.client
    deployment = get_deployment(
        client.namespace, service, redis_url=namespace.store.url, timeout=TIMEOUT_S
    )
    try:
        yield deployment
    finally:
        deployment.close()


@click.command()
@click.argument("service")
@in_namespace
def service(namespace: NamespaceView, service: str, *, as_json: bool) -> int:
    """Show what a deployed service is to be, what its controller does, and what is in the way.

    The status is 1 if it is not as it is wanted.

    \b
    Examples:
      ray-route service rooms
      ray-route service rooms --json | jq .problems
    """  # noqa: D301 - click's mark for text that is not wrapped
    with held(namespace, service) as deployment:
        status = deployment.status(TIMEOUT_S)
    if as_json:
        print_json(status)
    else:
        closed = ", ".join(map(str, status.cordons)) or "none"
        rows: list[tuple[object, ...]] = [
            ("pods wanted", status.replicas),
            *_scaled(status),
            *_evened(status),
            ("pods that Ray has", len(status.pods)),
            ("closed to new uids", closed),
            ("class", f"generation {status.generation}, code {status.code}"),
            *_older(status),
            ("controller", f"incarnation {status.controller}, process {status.process}"),
            ("doing", status.doing or "nothing: all is as it is wanted"),
            *((f"pod {pod}", problem) for pod, problem in status.problems.items()),
            *((("problem", status.problem),) if status.problem else ()),
        ]
        console().print(table((service, ""), rows))
    is_well = status.pods == status.wanted and not status.problems
    return 0 if is_well and not status.problem else _NOT_AS_WANTED


def _scaled(status: ServiceStatus) -> list[tuple[object, ...]]:
    """Return a row that says what the load needs, if that decides how many pods there are."""
    scaled = status.autoscaling
    if scaled is None:
        return []
    return [("autoscaled", f"{scaled.policy.least} to {scaled.policy.most}: {scaled.why}")]


def _evened(status: ServiceStatus) -> list[tuple[object, ...]]:
    """Return a row that says which loads are evened out by themselves, if any are."""
    if status.tolerance is None:
        return []
    return [("evened out", f"pods with {status.tolerance:.0%} more than the mean")]


def _older(status: ServiceStatus) -> list[tuple[object, ...]]:
    """Return a row that says which pods are of another generation than is wanted, if any is."""
    others = {pod: it for pod, it in status.generations.items() if it != status.generation}
    text = ", ".join(f"{pod} (generation {it})" for pod, it in others.items())
    return [("to be left", f"pods {text}")] if others else []


def _replicas(context: object, parameter: object, value: str) -> int | tuple[int, int]:
    """Return a number of pods, or both limits of a range."""
    del context, parameter
    try:
        numbers = [int(number) for number in value.split("-", 1)]
    except ValueError:
        raise click.BadParameter(f"{value!r} is no number, and no range as 2-8") from None
    return (numbers[0], numbers[1]) if len(numbers) > 1 else numbers[0]


@click.command()
@click.argument("service")
@click.argument("replicas", metavar="REPLICAS|MIN-MAX", callback=_replicas)
@click.option("--target-uids", type=_SECONDS, help="With MIN-MAX: a pod for every so many uids.")
@click.option("--target-load", type=_SECONDS, help="With MIN-MAX: a pod for every so much load.")
@click.option("--down", type=_SECONDS, help="With MIN-MAX: seconds of less load until a pod goes.")
@click.option(
    "--deadline",
    type=_SECONDS,
    default=300.0,
    show_default=True,
    help="Seconds for each pod to be drained; then it stays.",
)
@click.option(
    "--timeout", type=_SECONDS, default=60.0, show_default=True, help="Seconds for pods to start."
)
@in_namespace
def scale(
    namespace: NamespaceView,
    service: str,
    replicas: int | tuple[int, int],
    deadline: float,
    timeout: float,
    *,
    as_json: bool,
    **policy: float | None,
) -> int:
    """Have a deployed service run so many pods: new ones move no uid, surplus ones are drained.

    With MIN-MAX its load decides how many, from now on: a plain number ends that.

    \b
    Examples:
      ray-route scale rooms 5
      ray-route scale rooms 2-8 --target-uids 500 --down 600
      ray-route scale rooms 3 --deadline 600 --json
    """  # noqa: D301 - click's mark for text that is not wrapped
    with held(namespace, service) as deployment:
        how = {"target_uids": policy["target_uids"], "target_load": policy["target_load"]}
        deployment.scale(replicas, deadline, timeout, **how, down_s=policy["down"])
    said = {"service": service, "replicas": replicas}
    many = f"{replicas[0]} to {replicas[1]}" if isinstance(replicas, tuple) else replicas
    return say(f"{service} has {many} pods", said, as_json=as_json)


def _imported(named: str) -> type:
    """Import a class, also from the folder in which the command runs, as `python -m` would.

    Ray tells pods nothing of that folder, so what is there travels along with the class.
    """
    module, _, name = named.partition(":")
    sys.path.insert(0, "")
    try:
        found: object = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:
        raise click.BadParameter(f"{named!r} can't be imported: {error!r}") from error
    if not isinstance(found, type):
        raise click.BadParameter(f"{named!r} is no class")
    if _is_of_this_folder(sys.modules[module].__file__):
        cloudpickle.register_pickle_by_value(sys.modules[module.partition(".")[0]])
    return found


def _is_of_this_folder(file: str | None) -> bool:
    """True unless a module is installed: a virtual environment may be in the folder, too."""
    here = Path.cwd()
    if file is None or not Path(file).is_relative_to(here):
        return False
    return _INSTALLED.isdisjoint(Path(file).relative_to(here).parts)


@click.command()
@click.argument("service")
@click.argument("cls", metavar="MODULE:CLASS")
@click.option(
    "--max-surge",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="So many pods more than the service has may be there meanwhile.",
)
@click.option(
    "--deadline",
    type=_SECONDS,
    default=300.0,
    show_default=True,
    help="Seconds for each old pod to be drained; then the upgrade is undone.",
)
@click.option(
    "--timeout",
    type=_SECONDS,
    default=60.0,
    show_default=True,
    help="Seconds for new pods to start; then the upgrade is undone.",
)
@in_namespace
def upgrade(
    namespace: NamespaceView,
    service: str,
    cls: str,
    max_surge: int,
    deadline: float,
    timeout: float,
    *,
    as_json: bool,
) -> int:
    """Have a deployed service run another class: each uid moves once, with its state.

    Its arguments and options stay as they are. If a new pod does not start, or can't read a state,
    the service is brought back to its old class, and the status is 1. So it is after Ctrl-C.

    \b
    Examples:
      ray-route upgrade rooms chat.rooms:Room
      ray-route upgrade rooms chat.rooms:Room --max-surge 4 --json
    """  # noqa: D301 - click's mark for text that is not wrapped
    found, last = _imported(cls), list[UpgradeProgress]()
    with held(namespace, service) as deployment, progress(quiet=as_json) as shown:
        task = shown.add_task(service, total=None)

        def tell(now: UpgradeProgress) -> None:
            last[:] = [now]
            total = len(now.pods) + len(now.left)
            shown.update(task, completed=len(now.pods), total=total, description=_told(now))

        try:
            deployment.upgrade(
                found, max_surge=max_surge, deadline_s=deadline, timeout=timeout, on_progress=tell
            )
        except UpgradeError as error:
            say(str(error), last[0], as_json=as_json)
            return _NOT_AS_WANTED
    text = f"{service} runs generation {last[0].generation}: {last[0].moved} uids moved"
    return say(text, last[0], as_json=as_json)


def _told(now: UpgradeProgress) -> str:
    way = "back to" if now.back else "to"
    calls = f", {now.running} calls running" if now.running else ""
    return (
        f"{way} generation {now.generation}: pods {list(now.pods)} are there, "
        f"{len(now.left)} are left, {now.moved} uids moved{calls}"
    )


@click.command()
@click.argument("service")
@click.argument("pod", type=click.IntRange(min=0))
@in_namespace
def cordon(namespace: NamespaceView, service: str, pod: int, *, as_json: bool) -> int:
    """Have a pod take no new uids, in its later lives either; it keeps those that it has.

    \b
    Examples:
      ray-route cordon rooms 3
    """  # noqa: D301 - click's mark for text that is not wrapped
    with held(namespace, service) as deployment:
        deployment.cordon(pod, TIMEOUT_S)
    said = {"service": service, "pod": pod, "cordoned": True}
    return say(f"pod {pod} of {service} takes no new uids", said, as_json=as_json)


@click.command()
@click.argument("service")
@click.argument("pod", type=click.IntRange(min=0))
@in_namespace
def uncordon(namespace: NamespaceView, service: str, pod: int, *, as_json: bool) -> int:
    """Have a pod take new uids again; one that was drained is ended and made anew.

    \b
    Examples:
      ray-route uncordon rooms 3
    """  # noqa: D301 - click's mark for text that is not wrapped
    with held(namespace, service) as deployment:
        deployment.uncordon(pod, TIMEOUT_S)
    said = {"service": service, "pod": pod, "cordoned": False}
    return say(f"pod {pod} of {service} takes new uids", said, as_json=as_json)


@click.command()
@click.argument("service")
@click.option(
    "--grace",
    type=_SECONDS,
    default=20.0,
    show_default=True,
    help="Seconds for release hooks; what is not released then is lost.",
)
@in_namespace
def shutdown(namespace: NamespaceView, service: str, grace: float, *, as_json: bool) -> int:
    """End a deployed service: its pods after their release hooks, its controller last.

    \b
    Examples:
      ray-route shutdown rooms
      ray-route shutdown rooms --grace 60
    """  # noqa: D301 - click's mark for text that is not wrapped
    with held(namespace, service) as deployment:
        deployment.shutdown(grace)
    return say(f"{service} is ended", {"service": service, "ended": True}, as_json=as_json)
