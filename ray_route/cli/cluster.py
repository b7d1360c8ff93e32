"""A running cluster as commands find it: its Ray, its store, its namespaces.

Nothing is made by looking: no Ray, no server, no router, no namespace by a mistyped name. So what
needs no router is read from the store, and a command that does need one says so if there is none:
a router made here would run with default options instead of the application's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import ray
from ray.util import list_named_actors

from ray_route.client.sessions import open_client
from ray_route.client.sync_client import RouteClient
from ray_route.clock import Deadline
from ray_route.config import RouteConfig
from ray_route.errors import (
    ConfigError,
    DamagedKeyError,
    RouterUnavailableError,
    StoreUnavailableError,
)
from ray_route.model import HotUid, Link, Pod, PodRecord, check_name, check_uid
from ray_route.protocol.decided import Decided
from ray_route.protocol.names import (
    EMBEDDED_SERVER,
    RAY_NAMESPACE,
    namespace_of_router,
    router_name,
)
from ray_route.runtime.bootstrap import join_ray, undoing
from ray_route.runtime.namespace import URL_VARIABLE
from ray_route.runtime.unseen import answer_of
from ray_route.runtime.waiting import Stage, run, within
from ray_route.store.connect import AsyncStore, Store
from ray_route.store.inspection import Damage, damages
from ray_route.store.keys import Keys
from ray_route.store.links import LinkCalls, readable
from ray_route.store.namespaces import look_up_namespace
from ray_route.store.pods import PodCalls, parse_table, service_names
from ray_route.store.scripts import script_call
from ray_route.store.url import StoreUrl, parse_url

TIMEOUT_S = 30.0
_RAY_S = 10.0


class UnknownNameError(Exception):
    """A namespace, service or pod that is not there; the message lists those that are."""

    def __init__(self, kind: str, name: object, known: Iterable[object]) -> None:
        listed = ", ".join(map(str, known))
        there = f"known are: {listed}" if listed else "there are none"
        super().__init__(f"unknown {kind} {str(name)!r}; {there}")


class NameNeededError(UnknownNameError):
    """No namespace was named, and there is not just one."""

    def __init__(self, known: Sequence[str]) -> None:
        if known:
            text = f"--namespace must be given, there are several: {', '.join(known)}"
        else:
            text = "no namespace has been opened in this store yet; connect() opens one"
        Exception.__init__(self, text)


@contextlib.contextmanager
def joined_cluster(address: str | None, redis_url: str | None) -> Iterator[Cluster]:
    """Join a running Ray and open its store, for as long as a command needs them."""
    given = _url(redis_url)
    with undoing() as undo:
        if not ray.is_initialized():
            undo.callback(ray.shutdown)
            join_ray(address)
        store = Store(given or _embedded_url())
        undo.callback(store.close)
        yield Cluster(store)


def _url(given: str | None) -> StoreUrl | None:
    if given is not None:
        url = parse_url(given)
        if url.password or url.sentinel_password:
            raise ConfigError(
                option="--redis-url",
                reason="holds a password, and any user of this machine can read a command line; "
                f"set {URL_VARIABLE} instead",
            )
        return url
    variable = os.environ.get(URL_VARIABLE)
    return parse_url(variable) if variable else None


def _embedded_url() -> StoreUrl:
    host = _actor(EMBEDDED_SERVER)
    if host is None:
        raise ConfigError(
            option="--redis-url",
            reason=f"no embedded server runs in this Ray: give the URL, or set {URL_VARIABLE}",
        )
    try:
        return parse_url(answer_of(host.url.remote(), _RAY_S))
    except ray.exceptions.RayError as error:
        raise StoreUnavailableError(address="embedded", reason=type(error).__name__) from error


def _actor(name: str) -> Any:
    """Return the handle of an actor of ours; None if Ray has none."""
    with contextlib.suppress(ValueError):
        return _of_ray(f"find {name}", partial(ray.get_actor, name, namespace=RAY_NAMESPACE))
    return None


def _of_ray(what: str, ask: Callable[[], Any]) -> Any:
    """Ask Ray's head, which may hang: raises `RouteTimeoutError`."""
    return within(Deadline.after(_RAY_S), Stage(f"Ray to {what}"), ask)


@dataclass(frozen=True)
class Cluster:
    """A joined Ray and its open store."""

    store: Store

    def routers(self) -> list[str]:
        """Return the namespaces of this store that have a router now."""
        named = _of_ray("list its actors", partial(list_named_actors, all_namespaces=True))
        names = [actor["name"] for actor in named if actor["namespace"] == RAY_NAMESPACE]
        found = filter(None, map(namespace_of_router, names))
        return sorted(filter(self._is_there, found))

    def _is_there(self, name: str) -> bool:
        """True if a namespace is in this store, be it damaged."""
        try:
            return look_up_namespace(self.store, name) is not None
        except DamagedKeyError:
            return True

    def damages(self, name: str) -> list[Damage]:
        """Return what is damaged in a namespace. Scans all of the store, a little at a time."""
        return asyncio.run(_damages(self.store.url, check_name("namespace", name)))

    def known(self) -> list[str]:
        """Return the namespaces that are in the store. Scans all of it, a little at a time."""
        return asyncio.run(_scan(self.store.url))

    def namespace(self, name: str | None) -> NamespaceView:
        """Open a namespace by name; without one, the only one there is."""
        if name is None:
            return self._only()
        found = look_up_namespace(self.store, check_name("namespace", name))
        if found is None:
            raise UnknownNameError("namespace", name, self.known())
        return NamespaceView(self.store, *found)

    def _only(self) -> NamespaceView:
        names = self.routers() or self.known()
        if len(names) != 1:
            listed = ", ".join(names) or "none"
            raise (
                UnknownNameError("namespace", "", names)
                if not names
                else ConfigError(
                    option="--namespace", reason=f"must be given, there are several: {listed}"
                )
            )
        return self.namespace(names[0])

    def namespaces(self, name: str | None) -> list[NamespaceView]:
        """Open one namespace, or all that have a router, or else all there are."""
        names = [name] if name else self.routers() or self.known()
        if not names:
            raise NameNeededError(names)
        return [self.namespace(each) for each in names]


async def _damages(url: StoreUrl, name: str) -> list[Damage]:
    store = AsyncStore(url)
    try:
        return [damage async for damage in damages(store, name)]
    finally:
        await store.close()


async def _scan(url: StoreUrl) -> list[str]:
    store = AsyncStore(url)
    try:
        found = {Keys.namespace_of(key) async for key in store.scan(Keys.metas())}
    finally:
        await store.close()
    return sorted(name for name in found if name)


@dataclass(frozen=True)
class NamespaceView:
    """One namespace, looked at. What it reads from the store it reads anew each time."""

    store: Store
    keys: Keys
    config: RouteConfig

    @property
    def name(self) -> str:
        """Its name."""
        return self.keys.namespace

    @property
    def router(self) -> Any:
        """The handle of its router; None if it has none."""
        return _actor(router_name(self.name))

    @cached_property
    def client(self) -> RouteClient:
        """A client; raises `RouterUnavailableError` where there is no router."""
        if self.router is None:
            reason = "there is none; the first client that connects makes one"
            raise RouterUnavailableError(reason=reason, namespace=self.name)
        deadline = Deadline.after(TIMEOUT_S)
        return open_client(RouteClient, self.name, self.store.url, {}, deadline)

    def close(self) -> None:
        """Give back the client, if one was needed."""
        if "client" in self.__dict__:
            self.client.close()

    def services(self) -> list[str]:
        """Return the names of its services."""
        reply = self.store.one(PodCalls(self.keys).services())
        return service_names(reply, self.keys.services)

    def service(self, name: str) -> str:
        """Return the name of a service that is there."""
        check_name("service", name)
        known = self.services()
        if name not in known:
            raise UnknownNameError("service", name, known)
        return name

    def pod(self, service: str, index: int) -> PodRecord:
        """Return the record of a pod that is there."""
        records = {record.pod: record for record in self.records(service)}
        if index not in records:
            raise UnknownNameError("pod", index, sorted(records))
        return records[index]

    def records(self, service: str) -> list[PodRecord]:
        """Read a service's pod table."""
        reply = self.store.one(PodCalls(self.keys).table(service))
        return parse_table(reply, self.keys.pods(service))

    def time_us(self) -> int:
        """Read Redis `TIME` in microseconds."""
        return int(self.store.one(script_call("time", [self.keys.meta], [])))

    def pods(self, service: str) -> list[Pod]:
        """Return a service's pods, by way of the router if there is one: it counts links."""
        if self.router is not None:
            return list(self.client.pods(service).values())
        time_us = self.time_us()
        return [_seen(record, time_us) for record in self.records(service)]

    def hottest(self, service: str, most: int) -> list[HotUid]:
        """Return so many of the hottest uids of each of a service's pods; none without a router."""
        if self.router is None:
            return []
        hottest: list[HotUid] = self._ask("hottest", service, most)
        return hottest

    def decided(self, router: int, count: int, most: int) -> Decided | None:
        """Return what was decided since that router had decided so much; None without a router."""
        if self.router is None:
            return None
        decided: Decided = self._ask("decided", router, count, most)
        return decided

    def _ask(self, question: str, *arguments: Any) -> Any:
        """Ask the router what clients have no method for."""
        asked = self.client._session.namespace.ask(question, *arguments)  # noqa: SLF001
        return run(asked, Deadline.after(TIMEOUT_S))

    def links(self, uid: str) -> dict[str, Link]:
        """Return the links of a uid by service, straight from the store."""
        services = self.services()
        shard = self.keys.shard(check_uid(uid))
        calls = LinkCalls(self.keys, self.config)
        call = calls.read(0, shard, [(service, uid) for service in services])
        links = readable(calls.parse(self.store.one(call), call).links)
        pairs = zip(services, links, strict=True)
        return {service: link for service, link in pairs if link is not None}


def _seen(record: PodRecord, time_us: int) -> Pod:
    return Pod(
        pod=record.pod,
        state=record.state,
        life=record.life,
        load=record.load,
        links=0,
        node=record.node,
        actor=record.actor,
        incarnation=record.incarnation,
        heartbeat_age_s=max(0, time_us - record.heartbeat_us) / 1e6,
    )
