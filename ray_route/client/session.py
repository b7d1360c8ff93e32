"""What all clients of a namespace in one process share.

The near cache with its reader of changes, the last known pod table, the handles of pods, and the
batches in which misses travel. A session is opened once per process and namespace, and closed with
its last user.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import ray

from ray_route.client.change_reader import ChangeReader
from ray_route.client.coalescer import Coalescer
from ray_route.clock import Deadline, now
from ray_route.config import RouteConfig
from ray_route.errors import RouteError
from ray_route.model import Link, PodRecord, check_name
from ray_route.protocol.names import RAY_NAMESPACE
from ray_route.protocol.wire import Answer, pack_question, unpack_answers
from ray_route.runtime import telemetry
from ray_route.runtime.metrics import (
    CHANGE_STREAM_LAG_SECONDS,
    LOOKUP_BATCH_UIDS,
    LOOKUP_SECONDS,
    LOOKUPS,
    NEAR_CACHE_LINKS,
    meter,
)
from ray_route.runtime.namespace import Namespace, resolve_url
from ray_route.runtime.waiting import Operation
from ray_route.state.link_cache import LinkCache
from ray_route.state.pod_table import PodTable
from ray_route.store.connect import Store
from ray_route.store.namespaces import check_options
from ray_route.store.pods import PodCalls
from ray_route.store.url import StoreUrl


class NoSuchActorError(Exception):
    """Ray knows no actor for a pod, so a call to it provably never started."""


class Session:
    """One process's part in one namespace. Thread-safe."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace
        self.table = PodTable()
        welcome = namespace.welcome
        for service, records in welcome.tables.items():
            for record in records:
                self.table.update(service, record)
        self.near = LinkCache(namespace.config.near_cache_size, serving=self.table.serving)
        self.changes = ChangeReader(
            # Without retries: a reconnect must be seen, and means a flush.
            Store(namespace.url, retries=0),
            namespace.keys,
            namespace.config,
            self.table,
            self.near,
            welcome.position,
            namespace.asked_at,
        )
        self.changes.start()
        self.computing = Coalescer(self._send_compute, self.take)
        self.finding = Coalescer(self._send_find, self.take)
        self._handles: dict[tuple[str, int, int], Any] = {}
        self.dispatcher: Any = None
        self.at_close: list[Callable[[], None]] = []
        self.meter = meter(namespace.name)
        self._measure()

    def _measure(self) -> None:
        self.meter.tally(LOOKUPS, ("near", "hit"), lambda: self.near.hits)
        self.meter.gauge(NEAR_CACHE_LINKS, lambda: [((), self.near.held)])
        self.meter.gauge(CHANGE_STREAM_LAG_SECONDS, lambda: [((), self.changes.lag_s())])
        telemetry.start()

    # Look-ups by the router.

    def _send_compute(self, service: str, wanted: dict[str, int]) -> Any:
        question = pack_question(service, wanted, self.namespace.node)
        return self.namespace.router.compute.remote(question)

    def _send_find(self, service: str, wanted: dict[str, int]) -> Any:
        return self.namespace.router.find.remote(pack_question(service, wanted))

    def take(
        self, service: str, wanted: dict[str, int], packed: bytes, asked_at: float
    ) -> dict[str, Answer | None]:
        """Unpack, count, keep and return the router's answers to one call."""
        answers = dict(zip(wanted, unpack_answers(packed), strict=True))
        links = self.keep(service, answers, asked_at)
        self.meter.count(LOOKUPS, "router", "link", by=links)
        if links < len(answers):
            errors = sum(isinstance(answer, RouteError) for answer in answers.values())
            self.meter.count(LOOKUPS, "router", "error", by=errors)
            self.meter.count(LOOKUPS, "router", "none", by=len(answers) - links - errors)
        self.meter.observe(LOOKUP_SECONDS, now() - asked_at)
        self.meter.observe(LOOKUP_BATCH_UIDS, len(answers))
        return answers

    def keep(self, service: str, answers: Mapping[str, Answer | None], asked_at: float) -> int:
        """Keep the links among answers, whose leases count from `asked_at`; say how many."""
        links = {uid: link for uid, link in answers.items() if isinstance(link, Link)}
        self.near.put_all(service, links, asked_at)
        shard_of = self.namespace.keys.shard
        self.namespace.saw_all((shard_of(uid), link.epoch) for uid, link in links.items())
        return len(links)

    def services(self) -> list[str]:
        """Read the names of the namespace's services from Redis."""
        call = PodCalls(self.namespace.keys).services()
        return sorted(name.decode() for name in self.namespace.store.one(call))

    # Pods.

    def has_ended(self, service: str, link: Link) -> bool:
        """True once the link's incarnation is known to answer nobody any more."""
        return self.table.is_dead(service, link)

    def drop_handle(self, service: str, link: Link) -> None:
        """Forget a handle that did not reach its pod."""
        self._handles.pop((service, link.pod, link.incarnation), None)

    def known_handle(self, service: str, link: Link) -> Any:
        """Return the handle of a link's pod if this process has it; else None."""
        return self._handles.get((service, link.pod, link.incarnation))

    def handle(self, service: str, link: Link) -> Operation[Any]:
        """Return the Ray handle of a link's pod; `NoSuchActorError` if Ray has none."""
        key = (service, link.pod, link.incarnation)
        handle = self._handles.get(key)
        if handle is None:
            record = yield from self.record(service, link)
            try:
                handle = ray.get_actor(record.actor, namespace=RAY_NAMESPACE)
            except ValueError as error:
                raise NoSuchActorError(f"Ray has no actor {record.actor!r}") from error
            self._handles[key] = handle
        return handle

    def record(self, service: str, link: Link) -> Operation[PodRecord]:
        """Return the record of a link's pod; `NoSuchActorError` if its life has ended."""
        record = self.table.get(service, link.pod)
        if record is None or record.incarnation < link.incarnation:
            # The link was quicker than the news of the pod that it names.
            yield from self.refresh(service)
            record = self.table.get(service, link.pod)
        if record is None or record.incarnation != link.incarnation:
            raise NoSuchActorError(f"pod {link.pod} of {service} has another incarnation by now")
        return record

    def refresh(self, service: str) -> Operation[None]:
        """Have the router read a service's pod table anew, and take it in."""
        for known in (yield from self.namespace.ask("records", service)):
            self.table.update(service, known)

    def close(self) -> None:
        """Stop reading changes and close the connections."""
        for end in self.at_close:
            end()
        self.changes.stop()
        telemetry.flush()
        self.meter.forget(LOOKUPS, NEAR_CACHE_LINKS, CHANGE_STREAM_LAG_SECONDS)
        self.namespace.close()


_Key = tuple[Any, ...]
_sessions: dict[_Key, tuple[Session, int]] = {}
_lock = threading.Lock()


def open_session(
    namespace: str, redis_url: str | StoreUrl | None, options: dict[str, Any], deadline: Deadline
) -> Session:
    """Return this process's session of a namespace, opening it at first use."""
    check_name("namespace", namespace)
    RouteConfig.of(options)
    url = resolve_url(redis_url, deadline)
    with _lock:
        key = _key(namespace, url)
        session, users = _sessions.get(key, (None, 0))
        if session is None:
            session = Session(Namespace(namespace, url, options, deadline))
        check_options(namespace, session.namespace.config, options)
        _sessions[key] = (session, users + 1)
        return session


def close_session(session: Session) -> None:
    """Give a session back; the last user closes it."""
    with _lock:
        for key, (held, users) in list(_sessions.items()):
            if held is session and users > 1:
                _sessions[key] = (session, users - 1)
                return
            if held is session:
                del _sessions[key]
    session.close()


def _key(namespace: str, url: StoreUrl) -> _Key:
    # A process that leaves Ray and joins again is another worker: its old handles are dead.
    worker = ray.get_runtime_context().get_worker_id()
    return worker, namespace, url.kind, url.nodes, url.db, url.service, url.username, url.password
