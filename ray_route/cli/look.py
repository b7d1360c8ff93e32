"""Commands that look and change nothing: status, where, explain, pods, top."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import click
import ray
from rich.console import Group
from rich.live import Live
from rich.table import Table

from ray_route.cli.cluster import Cluster, NamespaceView
from ray_route.cli.glance import Glance, glance, pods_of
from ray_route.cli.output import (
    POD_COLUMNS,
    at_cluster,
    console,
    digits_apart,
    in_namespace,
    pod_rows,
    print_json,
    table,
)
from ray_route.model import HotUid, Pod
from ray_route.runtime.unseen import answer_of
from ray_route.store.connect import Store

_ABSENT = 1
_ROUTER_S = 5.0


@click.command()
@click.option("--namespace", "-n", help="Default: all that have a router.")
@at_cluster
def status(cluster: Cluster, namespace: str | None, *, as_json: bool) -> int:
    """Show router, store and pods.

    \b
    Examples:
      ray-route status
      ray-route status -n game --json | jq '.namespaces[0].router'
    """  # noqa: D301 - click's mark for text that is not wrapped
    found = cluster.namespaces(namespace)
    try:
        about = {"store": _store(cluster.store), "namespaces": [_summary(each) for each in found]}
    finally:
        for each in found:
            each.close()
    if as_json:
        print_json(about)
    else:
        _print_status(about)
    return 0


def _store(store: Store) -> dict[str, Any]:
    asked_at = time.perf_counter()
    infos = store.infos()
    took_ms = (time.perf_counter() - asked_at) * 1e3
    info = infos[0]
    server = info.get("server_name", "redis")
    return {
        "address": store.url.address,
        "server": f"{server} {info.get(f'{server}_version', info.get('redis_version'))}",
        "masters": len(infos),
        "keys": sum(_keys(each) for each in infos),
        "used_memory_bytes": sum(each.get("used_memory", 0) for each in infos),
        "info_ms": round(took_ms, 2),
    }


def _keys(info: dict[str, Any]) -> int:
    return sum(value["keys"] for name, value in info.items() if name.startswith("db"))


def _summary(namespace: NamespaceView) -> dict[str, Any]:
    services = namespace.services()
    return {
        "namespace": namespace.name,
        "router": _router(namespace),
        "services": {name: namespace.pods(name) for name in services},
    }


def _router(namespace: NamespaceView) -> dict[str, Any] | None:
    """Say where the router is and how quickly it answers; None if there is none."""
    router = namespace.router
    if router is None:
        return None
    asked_at = time.perf_counter()
    try:
        pid, node = answer_of(router.whereabouts.remote(), _ROUTER_S)
    except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError) as error:
        return {"problem": type(error).__name__}
    return {"node": node, "pid": pid, "answer_ms": round((time.perf_counter() - asked_at) * 1e3, 2)}


def _print_status(about: dict[str, Any]) -> None:
    out, store = console(), about["store"]
    masters = f", {store['masters']} masters" if store["masters"] > 1 else ""
    memory = f"{store['used_memory_bytes'] / 1e6:.1f} MB"
    out.print(f"store      {store['address']}, {store['server']}{masters}", markup=False)
    out.print(f"           {store['keys']:,} keys, {memory}, INFO in {store['info_ms']} ms")
    digits = digits_apart(_nodes(about))
    for each in about["namespaces"]:
        out.print(f"namespace  {each['namespace']}", markup=False)
        out.print(f"router     {_router_line(each['router'], digits)}")
        pods = [(name, pod) for name, pods in each["services"].items() for pod in pods]
        if pods:
            out.print(table(POD_COLUMNS, pod_rows(pods)))
        else:
            out.print("pods       none: no pod has ever joined")


def _nodes(about: dict[str, Any]) -> Iterator[str]:
    for each in about["namespaces"]:
        yield (each["router"] or {}).get("node", "")
        yield from (pod.node for pods in each["services"].values() for pod in pods)


def _router_line(router: dict[str, Any] | None, digits: int) -> str:
    if router is None:
        return "none; the first client that connects makes one"
    if "problem" in router:
        return f"does not answer: {router['problem']}"
    node = router["node"][:digits]
    return f"on node {node}, pid {router['pid']}, answers in {router['answer_ms']} ms"


@click.command()
@click.argument("uid")
@in_namespace
def where(namespace: NamespaceView, uid: str, *, as_json: bool) -> int:
    """Show every pod that a uid is linked to, as stored; exit 1 if it has no link.

    Needs no router.

    \b
    Examples:
      ray-route where user-42
      ray-route where user-42 -n game --json
    """  # noqa: D301 - click's mark for text that is not wrapped
    links = namespace.links(uid)
    if as_json:
        print_json({service: asdict(link) for service, link in links.items()})
    elif not links:
        console().print(f"{uid!r} has no link in {namespace.name}", markup=False)
    else:
        headings = ("service", "pod", "kind", "epoch", "incarnation", "actor")
        rows = []
        for service, link in links.items():
            kind = "persistent" if link.persistent else "temporary"
            actors = {record.pod: record.actor for record in namespace.records(service)}
            actor = actors.get(link.pod, "")
            rows.append((service, link.pod, kind, link.epoch, link.incarnation, actor))
        console().print(table(headings, rows))
    return 0 if links else _ABSENT


@click.command()
@click.argument("uid")
@click.argument("service")
@in_namespace
def explain(namespace: NamespaceView, uid: str, service: str, *, as_json: bool) -> int:
    """Say why a uid is where it is, with the router's last decisions; exit 1 if it has no link.

    \b
    Example:
      ray-route explain user-42 rooms
    """  # noqa: D301 - click's mark for text that is not wrapped
    explanation = namespace.client.explain(uid, namespace.service(service))
    if as_json:
        print_json(explanation)
    else:
        console().print(str(explanation), markup=False)
    return 0 if explanation.link else _ABSENT


@click.command()
@click.argument("service", required=False)
@in_namespace
def pods(namespace: NamespaceView, service: str | None, *, as_json: bool) -> int:
    """List the pods of a service, or of all; dead ones too.

    "links" counts what the present router has placed on a pod, less what it has taken away.

    \b
    Examples:
      ray-route pods rooms
      ray-route pods --json | jq '.rooms[] | select(.life == "alive") | .pod'
    """  # noqa: D301 - click's mark for text that is not wrapped
    found = pods_of(namespace, service)
    if as_json:
        print_json(found)
    else:
        rows = pod_rows((name, pod) for name, pods in found.items() for pod in pods)
        console().print(table(POD_COLUMNS, rows))
    return 0


@click.command()
@click.argument("service", required=False)
@click.option("--interval", type=click.FloatRange(min=0.1), default=1.0, show_default=True)
@click.option("--count", type=click.IntRange(min=1), help="End after so many times.")
@click.option(
    "--uids", type=click.IntRange(min=0), default=5, show_default=True, help="How many uids."
)
@in_namespace
def top(
    namespace: NamespaceView,
    service: str | None,
    interval: float,
    count: int | None,
    uids: int,
    *,
    as_json: bool,
) -> int:
    """Show the busiest pods, again every --interval seconds, until Ctrl-C.

    Of one service, its hottest uids too: what their pods report of their load, and the share of
    their time that they have spent in calls lately. With --json, one document a line.

    \b
    Examples:
      ray-route top
      ray-route top rooms --interval 5 --json --count 3
    """  # noqa: D301 - click's mark for text that is not wrapped
    views = _views(namespace, service, interval, count, uids)
    with suppress(KeyboardInterrupt):
        if as_json:
            for found, _ in views:
                print_json(found)
        else:
            with Live(console=console(), auto_refresh=False) as live:
                for found, new in views:
                    hot = _hot_table(found.hottest)
                    live.update(Group(_busiest(found.pods, new, interval), *hot), refresh=True)
    return 0


def _hot_table(hottest: list[HotUid]) -> list[Table]:
    rows = [(one.uid, one.pod, _load(one), f"{one.call_share:.1%}") for one in hottest]
    return [table(("hottest uids", "pod", "load", "time in calls"), rows)] if rows else []


def _load(one: HotUid) -> object:
    return "" if one.load is None else one.load


_Key = tuple[str, int, int]


def _views(
    namespace: NamespaceView, service: str | None, interval: float, count: int | None, uids: int
) -> Iterator[tuple[Glance, dict[_Key, int]]]:
    """Yield the pods, and the links that each got since the time before."""
    before: dict[_Key, int] = {}
    for number in itertools.count(1):
        found = glance(namespace, service, uids)
        links = {_key(name, pod): pod.links for name, pods in found.pods.items() for pod in pods}
        yield found, {key: now - before.get(key, now) for key, now in links.items()}
        if number == count:
            return
        before = links
        time.sleep(interval)


def _key(service: str, pod: Pod) -> _Key:
    return service, pod.pod, pod.incarnation


def _busiest(found: dict[str, list[Pod]], new: dict[_Key, int], interval: float) -> Table:
    pods = [(name, pod) for name, pods in found.items() for pod in pods]
    pods.sort(key=lambda item: -item[1].load)
    rates = [round(new[_key(name, pod)] / interval, 1) for name, pod in pods]
    rows = [(*row, rate) for row, rate in zip(pod_rows(pods), rates, strict=True)]
    return table((*POD_COLUMNS, "new links/s"), rows)
