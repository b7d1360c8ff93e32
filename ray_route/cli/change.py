"""Commands that move uids: drain, move, remove."""

from __future__ import annotations

from contextlib import suppress

import click
from rich.progress import MofNCompleteColumn

from ray_route.cli.cluster import NamespaceView
from ray_route.cli.output import console, in_namespace, print_json, progress
from ray_route.errors import RouteError
from ray_route.model import DrainProgress

_LEFT = 1


@click.command()
@click.argument("service")
@click.argument("pod", type=click.IntRange(min=0))
@click.option(
    "--deadline",
    type=click.FloatRange(min=0, min_open=True),
    default=300.0,
    show_default=True,
    help="Seconds; then the pod keeps what it has left, and the status is 1.",
)
@click.option("--go-on", is_flag=True, help="Go on after the deadline, until no uid is left.")
@in_namespace
def drain(
    namespace: NamespaceView, service: str, pod: int, deadline: float, *, go_on: bool, as_json: bool
) -> int:
    """Move every uid of a pod to others, without losing a call; then it is SHUTDOWN.

    New uids go elsewhere at once. A uid moves when its calls have ended. The router does the work:
    Ctrl-C ends this command, not the drain, and the same command follows it again, by its deadline.

    \b
    Examples:
      ray-route drain rooms 3
      ray-route drain rooms 3 --deadline 60 --json
    """  # noqa: D301 - click's mark for text that is not wrapped
    namespace.pod(namespace.service(service), pod)
    last = DrainProgress(pod, left=0, moved=0, running=0)
    try:
        with progress(MofNCompleteColumn(), quiet=as_json) as shown:
            task = shown.add_task(f"pod {pod} of {service}", total=None)
            for last in namespace.client.drain(service, pod, deadline, go_on=go_on):
                total = last.moved + last.left
                text = f"pod {pod} of {service}: {last.left} left, {last.running} calls running"
                shown.update(task, completed=last.moved, total=total, description=text)
    except KeyboardInterrupt:
        click.echo(_interrupted(namespace, service, pod, last), err=True)
        raise
    if last.notice and not as_json:
        console().print(f"pod {pod} of {service}: {last.notice}", markup=False)
    if as_json:
        print_json(last)
    elif last.problem:
        console().print(f"pod {pod} of {service} was not drained: {last.problem}", markup=False)
    else:
        console().print(f"pod {pod} of {service} is drained: {last.moved} uids moved", markup=False)
    return _LEFT if last.problem else 0


def _interrupted(namespace: NamespaceView, service: str, pod: int, last: DrainProgress) -> str:
    """Say how things stand when nobody watches any longer."""
    state = "unknown"
    with suppress(RouteError):
        state = namespace.pod(service, pod).describe()
    return (
        f"The drain goes on in the router. Pod {pod} of {service} is {state}, "
        f"has about {last.left} uids left, {last.moved} moved. "
        f"To follow it: ray-route drain {service} {pod} -n {namespace.name}"
    )


@click.command()
@click.argument("uid")
@click.argument("service")
@click.argument("pod", type=click.IntRange(min=0))
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=30.0)
@click.option("--place", is_flag=True, help="Place a uid that has no link yet.")
@in_namespace
def move(
    namespace: NamespaceView,
    uid: str,
    service: str,
    pod: int,
    timeout: float,
    *,
    place: bool,
    as_json: bool,
) -> int:
    """Move one uid to a pod, by way of the pod that has it: its calls end, its hooks run.

    A uid that has no link is not moved, and the status is 1, unless it is to be placed.

    \b
    Examples:
      ray-route move user-42 rooms 3
      ray-route move user-43 rooms 3 --place
    """  # noqa: D301 - click's mark for text that is not wrapped
    namespace.pod(namespace.service(service), pod)
    if not place and service not in namespace.links(uid):
        click.echo(f"{uid!r} has no link in {service}: --place makes one at pod {pod}", err=True)
        return _LEFT
    link = namespace.client.move(uid, service, pod, timeout=timeout)
    if as_json:
        print_json(link)
    else:
        console().print(f"{uid!r} is at pod {link.pod}, epoch {link.epoch}", markup=False)
    return 0


@click.command()
@click.argument("uid")
@click.argument("service")
@click.option(
    "--after", type=click.FloatRange(min=0), default=0.0, help="Seconds until its session ends."
)
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=30.0)
@in_namespace
def remove(
    namespace: NamespaceView, uid: str, service: str, after: float, timeout: float, *, as_json: bool
) -> int:
    """End a uid's session: its calls end, its release hook runs, then its link goes.

    The status is 1 if it has no link.

    \b
    Examples:
      ray-route remove user-42 rooms
      ray-route remove user-42 rooms --after 60
    """  # noqa: D301 - click's mark for text that is not wrapped
    removed = namespace.client.remove(
        uid, namespace.service(service), after_s=after, timeout=timeout
    )
    if as_json:
        print_json({"uid": uid, "service": service, "removed": removed, "after_s": after})
    else:
        when = f"is removed in {after:g} s" if after else "is removed"
        console().print(f"{uid!r} {when if removed else 'has no link'}", markup=False)
    return 0 if removed else _LEFT
