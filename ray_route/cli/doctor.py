"""`ray-route doctor`: what is wrong, or soon will be, and what to change."""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import click
import ray
from rich.text import Text

from ray_route._version import __version__
from ray_route.cli.cluster import Cluster, NamespaceView, UnknownNameError
from ray_route.cli.output import at_cluster, console, print_json, table
from ray_route.config import RouteConfig
from ray_route.errors import DamagedKeyError, RouteError, UnsafeStoreError
from ray_route.model import Life, RoutingState
from ray_route.runtime.unseen import answer_of
from ray_route.store.connect import Store
from ray_route.store.keys import Keys
from ray_route.store.links import LinkCalls, Writer
from ray_route.store.namespaces import check_safe, restore_meta, seal
from ray_route.store.pods import Identity, PodCalls
from ray_route.store.scripts import Call, plain_call, script_call

_FAULTY = 1
_PINGS = 30
_SLOW_MS = 5.0
_FULL = 0.8
_APART_S = 1.0
_ROUTER_S = 5.0
_SLOW_ROUTER_MS = 50.0

OK, WARN, FAULT = "ok", "warning", "fault"
_COLOURS = {OK: "green", WARN: "yellow", FAULT: "red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: how it is, and what to change if that is not good."""

    what: str
    level: str
    found: str
    advice: str = ""
    command: str = ""


@click.command()
@click.option("--namespace", "-n", help="Default: all that have a router.")
@at_cluster
def doctor(cluster: Cluster, namespace: str | None, *, as_json: bool) -> int:
    """Check the store's safety, permissions, clocks and latency, routers, pods, and every key.

    Says what to change; a damaged key comes with the command that mends it. Exit 1 if anything is
    at fault; warnings alone leave 0. To try the permissions it writes a few keys, in a namespace
    of its own, and deletes them. It reads all keys of a namespace, a few at a time.

    \b
    Examples:
      ray-route doctor
      ray-route doctor --json | jq '.[] | select(.level != "ok")'
    """  # noqa: D301 - click's mark for text that is not wrapped
    findings = list(_examine(cluster, namespace))
    if as_json:
        print_json(findings)
    else:
        rows = [
            (Text(each.level, _COLOURS[each.level]), each.what, each.found, each.advice)
            for each in findings
        ]
        console().print(table(("", "what", "found", "what to change"), rows))
        for command in filter(None, (each.command for each in findings)):
            # On a line of its own, whole, to be copied.
            console().print(command, soft_wrap=True, markup=False)
    return _FAULTY if any(each.level == FAULT for each in findings) else 0


def _examine(cluster: Cluster, namespace: str | None) -> Iterator[Finding]:
    yield _versions()
    infos = cluster.store.infos()
    for info in infos:
        yield from _server(cluster.store, info)
    yield _clocks(infos)
    names = [namespace] if namespace else cluster.routers()
    # In the names of a namespace in use, for users whose ACL says `~rr:{game*`.
    scratch = _scratch(names[0] if names else "doctor")
    yield from permissions(cluster.store, scratch)
    yield latency(cluster.store, scratch)
    if not names:
        yield Finding("routers", OK, "none: no namespace is in use")
    for each in names:
        yield from _keys(cluster, each)
        with contextlib.suppress(DamagedKeyError):  # of which `_keys` has told
            yield from _namespace(cluster, each)


def _versions() -> Finding:
    python = ".".join(map(str, sys.version_info[:3]))
    nodes = sum(bool(node["Alive"]) for node in ray.nodes())
    found = f"ray_route {__version__}, Ray {ray.__version__} on {nodes} nodes, Python {python}"
    return Finding("versions", OK, found)


# The store.


def _server(store: Store, info: dict[str, Any]) -> Iterator[Finding]:
    try:
        check_safe(store.url.address, info)
    except UnsafeStoreError as error:
        yield Finding("store safety", FAULT, error.reason, error.fix)
    else:
        yield Finding("store safety", OK, f"{_kind(info)}, a primary, noeviction")
    yield _persistence(info)
    yield _memory(info)


def _kind(info: dict[str, Any]) -> str:
    name = str(info.get("server_name", "redis"))
    return f"{name} {info.get(f'{name}_version', info.get('redis_version'))}"


def _persistence(info: dict[str, Any]) -> Finding:
    what = "persistence"
    if info.get("aof_last_write_status", "ok") != "ok":
        return Finding(what, FAULT, "its last write to the AOF failed", "look at its disk")
    if info.get("aof_enabled"):
        return Finding(what, OK, "appendonly is on")
    saved = info.get("rdb_last_bgsave_status", "ok")
    found = "appendonly is off: a restart loses what came after the last snapshot"
    if saved != "ok":
        found += ", and that failed"
    return Finding(what, WARN, found, "set appendonly yes, appendfsync everysec")


def _memory(info: dict[str, Any]) -> Finding:
    used, limit = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    what, mb = "memory", f"{used / 1e6:,.1f} MB used"
    if not limit:
        return Finding(what, OK, f"{mb}, no maxmemory")
    found = f"{mb} of {limit / 1e6:,.1f} MB"
    if used < _FULL * limit:
        return Finding(what, OK, found)
    advice = "raise maxmemory: past it every new link is refused"
    return Finding(what, FAULT if used >= limit else WARN, found, advice)


def _clocks(infos: list[dict[str, Any]]) -> Finding:
    """Compare the servers' clocks, which epochs come from, and this machine's for a hint."""
    here = time.time() * 1e6
    theirs = [int(info["server_time_usec"]) for info in infos if "server_time_usec" in info]
    if not theirs:
        return Finding("clocks", WARN, "the server does not tell its time in INFO")
    apart_s = (max(theirs) - min(theirs)) / 1e6
    off_s = max(abs(here - their) for their in theirs) / 1e6
    found = f"masters {apart_s:.3f} s apart, {off_s:.3f} s from here"
    if max(apart_s, off_s) < _APART_S:
        return Finding("clocks", OK, found)
    advice = "let NTP keep them: a failover to a clock far behind delays new links"
    return Finding("clocks", WARN, found, advice)


def _scratch(prefix: str) -> Keys:
    """Name the keys of a namespace that nobody else has, and that begins like another."""
    return Keys(f"{prefix[:40]}.doctor-{uuid.uuid4().hex[:8]}", 1)


def latency(store: Store, keys: Keys) -> Finding:
    """Say how long a script takes."""
    took = sorted(_timed(lambda: store.one(script_call("time", [keys.meta], [])), _PINGS))
    found = f"a script takes {statistics.median(took):.2f} ms, at worst {took[-1]:.2f} ms"
    if statistics.median(took) < _SLOW_MS:
        return Finding("latency", OK, found)
    return Finding("latency", WARN, found, "put Redis into the cluster's own network")


def _timed(work: Callable[[], object], times: int) -> Iterator[float]:
    for _ in range(times):
        begun = time.perf_counter()
        work()
        yield (time.perf_counter() - begun) * 1e3


def permissions(store: Store, keys: Keys) -> Iterator[Finding]:
    """Do in a namespace of its own what routers, pods and clients do."""
    refused = []
    try:
        for call in _probes(keys):
            try:
                store.one(call)
            except RouteError as error:
                refused.append(f"{_verb(call)}: {getattr(error, 'reason', error)}")
    finally:
        _delete(store, keys)
    if refused:
        advice = (
            "allow +@all -@dangerous +info on ~rr:{*, or what the message names; "
            "of a user with the keys of one namespace alone, name that: -n"
        )
        yield Finding("permissions", FAULT, "; ".join(refused), advice)
    else:
        yield Finding("permissions", OK, "every command that is needed is allowed")


_SERVICE, _UID = "doctor", "u"


def _probes(keys: Keys) -> Iterator[Call]:
    config, pods = RouteConfig(shards=1), PodCalls(keys)
    links, writer = LinkCalls(keys, config), Writer(1)
    who = Identity(_SERVICE, 0, "doctor", "", "")
    yield script_call("open_namespace", [keys.meta], [1, 1, "{}"])
    yield script_call("claim_router", [keys.meta], [0])
    yield restore_meta(keys, config, router=1, token=1)
    yield seal(keys, 1, "doctor", "doctor")
    yield pods.claim(who, RoutingState.READY)
    yield pods.renew(who, 1, 0.0, RoutingState.READY, 0, lapsed=False)
    yield pods.table(_SERVICE)
    yield pods.services()
    yield links.take_over(writer, 0)
    yield links.set_if_absent(writer, 0, _SERVICE, [_UID], ["0:1"])
    yield links.read(0, 0, [(_SERVICE, _UID)])
    yield plain_call("MGET", keys.counter(0), keys.link(0, _SERVICE, _UID))
    yield plain_call("EXISTS", keys.link(0, _SERVICE, _UID))
    yield links.remove(writer, 0, _SERVICE, [_UID])
    yield script_call("append", [keys.log], [1, "kind", "beat"])
    yield plain_call("XADD", keys.log, "*", "kind", "beat")  # an old server names it only here
    yield Call(keys.log, ("XREAD", "COUNT", "1", "STREAMS", keys.log, "0-0"))
    yield plain_call("XREVRANGE", keys.log, "+", "-", "COUNT", 1)


def _verb(call: Call) -> str:
    return call.script.name if call.script else str(call.words[0])


def _delete(store: Store, keys: Keys) -> None:
    names = (keys.meta, keys.log, keys.services, keys.pods(_SERVICE), keys.counter(0))
    calls = [plain_call("DEL", name) for name in (*names, keys.link(0, _SERVICE, _UID))]
    with contextlib.suppress(RouteError):
        store.run(calls)


# Namespaces.


def _keys(cluster: Cluster, namespace: str) -> Iterator[Finding]:
    """Look at every key of a namespace."""
    damages = cluster.damages(namespace)
    for damage in damages:
        advice = f"run the command below, against {cluster.store.url.address}"
        yield Finding(damage.key, FAULT, f"damaged: {damage.found}", advice, damage.mend)
    if not damages:
        yield Finding(f"keys of {namespace}", OK, "none is damaged")


def _namespace(cluster: Cluster, name: str) -> Iterator[Finding]:
    try:
        opened = cluster.namespace(name)
    except UnknownNameError as error:  # what it may do there has been tried all the same
        yield Finding(f"namespace {name}", WARN, str(error), "the first client opens it")
        return
    try:
        yield _router(opened)
        yield from _services(opened)
    finally:
        opened.close()


def _router(namespace: NamespaceView) -> Finding:
    what = f"router of {namespace.name}"
    router = namespace.router
    if router is None:
        return Finding(what, WARN, "there is none", "it comes with the first client that connects")
    begun = time.perf_counter()
    try:
        answer_of(router.whereabouts.remote(), _ROUTER_S)
    except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError) as error:
        advice = "look at its log in Ray's dashboard; Ray restarts it if it has ended"
        return Finding(what, FAULT, f"does not answer: {type(error).__name__}", advice)
    took_ms = (time.perf_counter() - begun) * 1e3
    found = f"answers in {took_ms:.1f} ms"
    if took_ms < _SLOW_ROUTER_MS:
        return Finding(what, OK, found)
    return Finding(what, WARN, found, "its node is busy, or too many misses reach it: see docs")


def _services(namespace: NamespaceView) -> Iterator[Finding]:
    for service in namespace.services():
        with contextlib.suppress(DamagedKeyError):  # of which `_keys` has told
            yield _pods(namespace, service)


def _pods(namespace: NamespaceView, service: str) -> Finding:
    what = f"pods of {namespace.name}/{service}"
    pods = namespace.pods(service)
    alive = [pod for pod in pods if pod.life is Life.ALIVE]
    ready = [pod for pod in alive if pod.state is RoutingState.READY]
    found = f"{len(ready)} ready of {len(alive)} alive, {len(pods)} ever"
    late = [p.pod for p in alive if p.heartbeat_age_s > 3 * namespace.config.heartbeat_s]
    if late:
        advice = "their code may hold the interpreter lock, or their nodes are overloaded"
        return Finding(what, WARN, f"{found}; late heartbeats from pods {late}", advice)
    if alive and not ready:
        return Finding(what, FAULT, found, "add pods: new uids have nowhere to go")
    return Finding(what, OK, found)
