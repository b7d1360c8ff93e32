"""What all clients of a namespace in one process share.

The near cache with its reader of changes, the last known pod table, the handles of pods, and the
batches in which misses travel. Who has which is in `sessions`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import ray

from ray_route.client.change_reader import ChangeReader, Known
from ray_route.client.coalescer import Send
from ray_route.client.lookups import Found, Judge, Lookups, NewUids
from ray_route.client.questions import Questions
from ray_route.client.refresh_ahead import RefreshAhead
from ray_route.client.use_reporter import UseReporter
from ray_route.clock import now
from ray_route.errors import ClosedError, RayGoneError, RouteError
from ray_route.model import Link, PodRecord
from ray_route.protocol.names import RAY_NAMESPACE
from ray_route.protocol.wire import Answer, unpack_answers
from ray_route.runtime import telemetry
from ray_route.runtime.metrics import (
    CHANGE_STREAM_LAG_SECONDS,
    LOOKUP_BATCH_UIDS,
    LOOKUP_SECONDS,
    LOOKUPS,
    NEAR_CACHE_LINKS,
    meter,
)
from ray_route.runtime.namespace import Namespace
from ray_route.runtime.unseen import seen
from ray_route.runtime.waiting import Blocking, Operation
from ray_route.state.link_cache import LinkCache
from ray_route.state.pod_table import PodTable
from ray_route.store.connect import Store
from ray_route.store.pods import PodCalls, service_names

# How often links in use are reported, in parts of `ttl_s`.
_USE_SHARE = 1 / 10


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
            Known(self.table, self.near, namespace.belief, namespace.saw_all),
            welcome.position,
            namespace.asked_at,
        )
        self.new_uids = NewUids()
        self.judge = Judge(namespace.keys, namespace.config, self.table.serving)
        questions = Questions(namespace)
        self.computing = self._lookups(questions.compute, self.keep_used)
        self.finding = self._lookups(questions.find, self.keep_found)
        self._uses = UseReporter(_USE_SHARE * namespace.config.ttl_s, self._report_use)
        how = (namespace.worker.put, self.may_read, self._read_again)
        self._ahead = RefreshAhead(self.near, namespace.config.lease_s, *how)
        self._handles: dict[tuple[str, int, int], Any] = {}
        self.dispatcher: Any = None
        """The `Dispatcher` of its calls, which is above this; made with it."""
        self.at_close: list[Callable[[], None]] = []
        self.meter = meter(namespace.name)

    def begin(self) -> None:
        """Begin what goes on by itself until `close`."""
        self.changes.start()
        worker = self.namespace.worker
        worker.every(self._uses.period_s, self._uses.report)
        worker.every(self._ahead.period_s, self._ahead.look)
        self.meter.tally(LOOKUPS, ("near", "hit"), lambda: self.near.hits)
        self.meter.gauge(NEAR_CACHE_LINKS, lambda: [((), self.near.held)])
        self.meter.gauge(CHANGE_STREAM_LAG_SECONDS, lambda: [((), self.changes.lag_s())])
        telemetry.start()

    def _lookups(self, send: Send, keep: Callable[[str, Found, float], None]) -> Lookups:
        namespace = self.namespace
        how = (self.may_read, namespace.reads, keep, send, self.take)
        return Lookups(namespace.worker.put, self.judge, self.new_uids, *how)

    # Look-ups in Redis.

    def may_read(self) -> bool:
        """True if links may be read from Redis by this process; sees to it if it can be true."""
        if now() >= self.near.trusted_until:
            return False  # the change stream is not being heard
        belief = self.namespace.belief
        if not belief.is_ready():
            belief.renewed()
            return False
        return True

    def may_know(self, service: str) -> bool:
        """True if links of a service may be read now, and if that may tell something."""
        return self.may_read() and self.new_uids.may_be_known(service)

    def keep_found(self, service: str, found: Found, asked_at: float) -> None:
        """Keep what was read, at `asked_at` or later, and count it."""
        self.near.put_all(service, found.links, asked_at)
        self.meter.count(LOOKUPS, "redis", "link", by=len(found.links))

    def keep_used(self, service: str, found: Found, asked_at: float) -> None:
        """Do the same, and report the links as used that have lost some of their lives."""
        self.keep_found(service, found, asked_at)
        self._uses.note(service, found.used)

    def _read_again(self, service: str, uids: Sequence[str]) -> None:
        """Read links in use before their leases end; those that end by appointment are let end."""
        parts, asked_at = self.judge.parts(service, uids), now()
        found = self.judge.found(service, parts, self.namespace.reads.read(parts), 0)
        for uid in found.ending:
            del found.links[uid]
        if self.may_read():
            self.near.put_all(service, found.links, asked_at)
            self._uses.note(service, found.used)
            self.meter.count(LOOKUPS, "redis", "ahead", by=len(found.links))
            # Those whose lives the router is still to lengthen are read once more.
            self.near.rest(service, found.links.keys() - found.used.keys())

    def _report_use(self, service: str, used: dict[str, int]) -> None:
        with contextlib.suppress(RayGoneError):
            seen(self.namespace.router.report_use.remote(service, used))

    # Look-ups by the router.

    def recover(self, uids: Collection[str]) -> Operation[None]:
        """Have the router write back what Redis has lost in the shards of some uids, if any.

        Raises `StoreUnavailableError`.
        """
        if uids:
            yield from self.namespace.recover(set(map(self.namespace.keys.shard, uids)))

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
        keys = self.namespace.keys
        return service_names(self.namespace.store.one(PodCalls(keys).services()), keys.services)

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
        self.namespace.check_here()
        key = (service, link.pod, link.incarnation)
        handle = self._handles.get(key)
        if handle is None:
            record = yield from self.record(service, link)
            find = partial(ray.get_actor, record.actor, namespace=RAY_NAMESPACE)
            what = f"Ray to find actor {record.actor!r}"
            try:  # in a thread of its own: Ray waits for its head longer than anyone says here
                handle = yield Blocking(find, what, longest_s=math.inf)
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
        with contextlib.ExitStack() as last:  # an interrupt of one step leaves out no other
            last.callback(self.namespace.close)
            last.callback(self.meter.forget, LOOKUPS, NEAR_CACHE_LINKS, CHANGE_STREAM_LAG_SECONDS)
            last.callback(telemetry.flush)
            last.callback(self.near.flush)
            last.callback(self.namespace.worker.put, self._uses.report)
            closed = ClosedError(
                what=f"the session of namespace {self.namespace.name!r}",
                namespace=self.namespace.name,
            )
            for lookups in (self.computing, self.finding):
                last.callback(lookups.close, closed)
            last.callback(self.changes.stop)
            for end in self.at_close:
                last.callback(end)
