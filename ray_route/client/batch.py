"""Bulk look-ups that go around the router: links as stored, read from Redis shard by shard.

Small batches are read by the calling process, large ones by stateless Ray tasks, each of which
takes a slice of the uids and fans out over the shards (and in a Cluster over the masters). What
crosses a process border is flat: a slice travels as one string of bytes, its answer as one byte
per uid and the few owners that those stand for.
"""

from __future__ import annotations

import logging
from array import array
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import ray

from ray_route.clock import Deadline
from ray_route.errors import InvalidInputError, PartialBatchError, RouteError, RouteTimeoutError
from ray_route.model import MAX_UID_BYTES, MAX_UTF8, Link, LinkedPods, check_uids
from ray_route.runtime.waiting import Blocking, Operation, Remote
from ray_route.store.bulk import BulkReader, Owned
from ray_route.store.connect import Store
from ray_route.store.keys import Keys
from ray_route.store.owner_codes import FAILED, FIRST_OWNER
from ray_route.store.url import StoreUrl

if TYPE_CHECKING:
    from ray_route.client.session import Session

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]

# Up to here the calling process reads by itself: 50,000 uids take 51 ms either way, 100,000 take
# it 100 ms and tasks 90 ms (2 cores, Redis among them).
IN_PROCESS = 50_000
# Small enough that progress is told several times a second, and an event loop never waits long.
_UIDS_PER_READ = 25_000
_UIDS_PER_TASK = 100_000


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """How a batch is read; see `RouteClient.batch_get_linked_pod`."""

    num_cpus: float = 1.0
    max_in_flight: int = 32
    progress: Progress | None = None

    def __post_init__(self) -> None:
        if not _is_number(self.num_cpus) or self.num_cpus < 0:
            raise _bad("num_cpus", self.num_cpus, "must be a number from 0 on")
        if not isinstance(self.max_in_flight, int) or self.max_in_flight < 1:
            raise _bad("max_in_flight", self.max_in_flight, "must be an integer from 1 on")
        if self.progress is not None and not callable(self.progress):
            raise _bad("progress", self.progress, "must take (done, total)")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _bad(argument: str, value: object, reason: str) -> InvalidInputError:
    return InvalidInputError(argument=argument, value=value, reason=reason)


def look_up(
    session: Session,
    service: str,
    uids: Sequence[str],
    deadline: Deadline,
    options: BatchOptions,
) -> Operation[LinkedPods]:
    """Look many uids up; see `RouteClient.batch_get_linked_pod`."""
    batch = _Batch(session, service, uids, deadline)
    size = _UIDS_PER_READ
    if len(uids) > IN_PROCESS:
        size = min(_UIDS_PER_TASK, max(_UIDS_PER_READ, -(-len(uids) // 2)))
    slices = [uids[start : start + size] for start in range(0, len(uids), size)]
    read = _here(batch, slices) if len(uids) <= IN_PROCESS else _in_tasks(batch, slices, options)
    try:
        for some, step in read:
            try:
                batch.put(some, (yield step))
            except (ray.exceptions.RayError, RouteError) as error:
                batch.miss(some, f"{type(error).__name__}: {error}")
            if options.progress is not None:
                options.progress(batch.done, len(uids))
    finally:
        read.close()
    for some, owned in batch.held:
        batch.take(some, (yield from _recovered(batch, some, owned)))
    return batch.result()


def _recovered(batch: _Batch, uids: Sequence[str], owned: Owned) -> Operation[Owned]:
    """Have lost shards recovered and read the slice again, until nothing of it is lost.

    Nothing there is missing before: if that fails, the rest of what was read counts.
    """
    try:
        while owned.lost:
            yield from batch.session.namespace.recover(owned.lost)
            owned = yield batch.reading(uids)
    except (ray.exceptions.RayError, RouteError) as error:
        logger.warning("shards %s could not be recovered: %s", sorted(owned.lost), error)
    return owned


_Read = Generator[tuple[Sequence[str], "Blocking | Remote"], None, None]


def _here(batch: _Batch, slices: Sequence[Sequence[str]]) -> _Read:
    for some in slices:
        yield some, batch.reading(some)


def _in_tasks(batch: _Batch, slices: Sequence[Sequence[str]], options: BatchOptions) -> _Read:
    """Yield slices in order, each with its task; give up tasks that are late or not wanted."""
    session = batch.session
    task = _read_slice.options(num_cpus=options.num_cpus, scheduling_strategy="SPREAD")
    what = f"a task that reads links (it needs num_cpus={options.num_cpus:g})"
    waiting = deque(slices)
    under_way: deque[tuple[Sequence[str], Any]] = deque()
    late: list[Any] = []
    try:
        while under_way or (waiting and batch.deadline.remaining()):
            while waiting and len(under_way) < options.max_in_flight:
                some, left_s = waiting.popleft(), batch.deadline.remaining()
                about = (
                    session.namespace.url,
                    session.namespace.keys,
                    batch.service,
                    batch.seen,
                    left_s,
                )
                under_way.append((some, task.remote(about, *flat(some))))
            some, ref = under_way[0]
            yield some, Remote(ref, what)
            under_way.popleft()
            if not batch.deadline.remaining():
                late.append(ref)
        for some in waiting:
            batch.miss(some, "the deadline passed")
    finally:
        _give_up([*late, *(ref for _, ref in under_way)], options.num_cpus)


def _give_up(refs: list[Any], num_cpus: float) -> None:
    """Cancel tasks that no node can ever run; others end by their own deadlines.

    Ray 2.60 ends the whole calling process by a failed check if a task is cancelled just when it
    gets its worker ("Tried to complete task that was not pending"). One that never gets any can
    be cancelled safely, and must be: else it asks the autoscaler for a node for ever.
    """
    cpus = (node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
    if refs and num_cpus > max(cpus, default=0):
        for ref in refs:
            ray.cancel(ref)


def flat(uids: Sequence[str]) -> tuple[bytes, bytes]:
    """Join uids to one string of bytes; return it with the separator, which is in no uid.

    Raises `InvalidInputError` for the first uid that is not valid. Checking all of a slice at
    once takes 30 ns a uid with the joining, where one by one takes 100 ns without.
    """
    try:
        blob = "\0".join(uids).encode()
    except (TypeError, UnicodeEncodeError):
        check_uids(uids)
        raise
    sizes = set(map(len, uids))
    if 0 in sizes or max(sizes) * MAX_UTF8 > MAX_UID_BYTES:
        check_uids(uids)
    if blob.count(b"\0") == len(uids) - 1:
        return blob, b"\0"
    return b"\xff".join(map(str.encode, uids)), b"\xff"  # never part of UTF-8


_stores: dict[StoreUrl, Store] = {}


@ray.remote(max_retries=2)
def _read_slice(
    about: tuple[StoreUrl, Keys, str, Sequence[int], float], blob: bytes, separator: bytes
) -> Owned:
    url, keys, service, seen, left_s = about
    store = _stores.get(url)  # a worker process keeps its connections for the next task
    if store is None:
        store = _stores[url] = Store(url)
    reader = BulkReader(store, keys, service, seen)
    return reader.read(blob.split(separator), Deadline.after(left_s))


class _Batch:
    """Gathers the answers of slices, which come in input order."""

    def __init__(
        self, session: Session, service: str, uids: Sequence[str], deadline: Deadline
    ) -> None:
        self.session = session
        self.service = service
        self.deadline = deadline
        self.done = 0
        self.held: list[tuple[Sequence[str], Owned]] = []
        self.seen = array("q", session.namespace.all_seen())
        self._total = len(uids)
        self._pods: dict[int, list[str]] = {}
        self._missing: list[str] = []
        self._unanswered: list[str] = []
        self._owners: set[tuple[int, int]] = set()
        self._failed: dict[int, str] = {}
        self._damaged: list[str] = []

    def reading(self, uids: Sequence[str]) -> Blocking:
        """Return the step that reads a slice in this process."""
        blob, separator = flat(uids)
        reader = BulkReader(
            self.session.namespace.store, self.session.namespace.keys, self.service, self.seen
        )
        read = partial(reader.read, blob.split(separator), self.deadline)
        return Blocking(read, f"Redis at {self.session.namespace.url.address}")

    def put(self, uids: Sequence[str], owned: Owned) -> None:
        """Take in a slice; once some shard is lost, hold it and what follows for later.

        So the others are read before anyone waits for a recovery, and the order is kept.
        """
        if owned.lost or self.held:
            self.held.append((uids, owned))
        else:
            self.take(uids, owned)
        self.done += len(uids)

    def take(self, uids: Sequence[str], owned: Owned) -> None:
        """Take in what was found about a slice."""
        owners = owned.owners[FIRST_OWNER:]
        appends = [self._missing.append, self._unanswered.append]
        appends += [self._pods.setdefault(pod, []).append for pod, _ in owners]
        for append, uid in zip(map(appends.__getitem__, owned.codes), uids, strict=True):
            append(uid)
        self._owners.update(owners)
        self._failed.update(owned.failed)
        self._damaged.extend(owned.damaged)
        for shard, counter in owned.counters.items():
            self.session.namespace.saw(shard, counter)

    def miss(self, uids: Sequence[str], reason: str) -> None:
        """Take in that a slice could not be read."""
        failed = dict.fromkeys(map(self.session.namespace.keys.shard, uids), reason)
        self.put(uids, Owned([], bytes([FAILED]) * len(uids), {}, failed))

    def result(self) -> LinkedPods:
        """Return the whole answer, or raise an error that carries what there is of it."""
        linked = LinkedPods(dict(sorted(self._pods.items())), self._missing, self._unroutable())
        if not self._unanswered:
            return linked
        facts = {
            "partial": linked,
            "unanswered": self._unanswered,
            "namespace": self.session.namespace.name,
            "service": self.service,
        }
        if not self.deadline.remaining():
            what = f"{len(self._unanswered)} of {self._total} uids in {len(self._failed)} shards"
            raise RouteTimeoutError(waiting_for=what, timeout_s=self.deadline.timeout_s, **facts)
        raise PartialBatchError(
            address=self.session.namespace.url.address,
            reason=next(iter(self._failed.values())),
            shards=self._failed,
            damaged=self._damaged,
            **facts,
        )

    def _unroutable(self) -> frozenset[int]:
        table = self.session.table
        return frozenset(
            pod
            for pod, incarnation in self._owners
            if not table.routable(self.service, Link(pod, incarnation, 0, False, 0))
        )
