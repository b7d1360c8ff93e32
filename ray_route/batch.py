"""Bulk look-ups that go around the router: links as stored, read from Redis shard by shard.

Small batches are read by the calling process, large ones by stateless Ray tasks. What crosses a
process border is flat: uids as they are, answers as an array of codes and the few owners that
they stand for.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray

from ray_route.errors import PartialBatchError, RouteError
from ray_route.model import Link, LinkedPods
from ray_route.steps import Blocking, Remote, Steps
from ray_route.store.connect import Store
from ray_route.store.keys import Keys
from ray_route.store.links import MAX_UIDS
from ray_route.store.scripts import Call
from ray_route.store.url import StoreUrl

if TYPE_CHECKING:
    from ray_route.session import Session

# Below this a task costs more than it saves.
_IN_PROCESS = 10_000
_UIDS_PER_TASK = 50_000
_MISSING = b""


@dataclass(frozen=True, slots=True)
class Part:
    """The uids of one shard, and the highest counter that the caller has seen for it."""

    shard: int
    seen: int
    uids: list[str]


@dataclass(frozen=True, slots=True)
class PartAnswer:
    """`codes[i]` is the place in `owners` of what holds uid i; `failed` are shards and reasons.

    An owner is b"pod:incarnation", or empty for a uid without a link. The codes of a failed
    shard are left out.
    """

    owners: list[bytes]
    codes: array[int]
    counters: dict[int, int]
    failed: dict[int, str]


def look_up(session: Session, service: str, uids: Sequence[str]) -> Steps[LinkedPods]:
    """Look many uids up; see `RouteClient.batch_get_linked_pod`."""
    positions = _by_shard(session.keys, uids)
    parts = [
        Part(shard, session.seen(shard), [uids[place] for place in places])
        for shard, places in positions.items()
    ]
    owners: list[bytes | None] = [None] * len(uids)
    failed: dict[int, str] = {}
    answers = yield from _answers(session, service, parts, len(uids))
    for some, answer in answers:
        failed.update(answer.failed)
        codes = iter(answer.codes)
        for part in some:
            if part.shard in answer.failed:
                continue
            session.saw(part.shard, answer.counters[part.shard])
            for place, code in zip(positions[part.shard], codes, strict=False):
                owners[place] = answer.owners[code]
    linked = _grouped(session, service, uids, owners)
    if failed:
        raise PartialBatchError(
            address=session.url.address,
            reason=next(iter(failed.values())),
            shards=failed,
            partial=linked,
            namespace=session.namespace,
            service=service,
        )
    return linked


def _by_shard(keys: Keys, uids: Sequence[str]) -> dict[int, list[int]]:
    positions: dict[int, list[int]] = {}
    for place, uid in enumerate(uids):
        positions.setdefault(keys.shard(uid), []).append(place)
    return positions


def _answers(
    session: Session, service: str, parts: list[Part], size: int
) -> Steps[list[tuple[list[Part], PartAnswer]]]:
    if size <= _IN_PROCESS:
        what = f"Redis at {session.url.address}"
        work = Blocking(lambda: read_parts(session.store, session.keys, service, parts), what)
        return [(parts, (yield work))]
    loads = list(_loads(parts))
    task = ray.remote(_read_in_task).options(num_cpus=0.5, max_retries=2)
    refs = [task.remote(session.url, session.keys, service, load) for load in loads]
    answers = []
    for load, ref in zip(loads, refs, strict=True):
        try:
            answer = yield Remote(ref, f"a task that reads {len(load)} shards")
        except (ray.exceptions.RayError, RouteError) as error:
            if isinstance(error, TimeoutError):
                raise
            failed = {part.shard: f"{type(error).__name__}: {error}" for part in load}
            answer = PartAnswer([], array("i"), {}, failed)
        answers.append((load, answer))
    return answers


def _loads(parts: list[Part]) -> Iterator[list[Part]]:
    load: list[Part] = []
    for part in parts:
        load.append(part)
        if sum(len(some.uids) for some in load) >= _UIDS_PER_TASK:
            yield load
            load = []
    if load:
        yield load


_stores: dict[StoreUrl, Store] = {}


def _read_in_task(url: StoreUrl, keys: Keys, service: str, parts: list[Part]) -> PartAnswer:
    store = _stores.get(url)  # a worker process keeps its connections for the next task
    if store is None:
        store = _stores[url] = Store(url)
    return read_parts(store, keys, service, parts)


def read_parts(store: Store, keys: Keys, service: str, parts: Sequence[Part]) -> PartAnswer:
    """Read parts with one MGET per shard and 500 keys, all in one pipeline."""
    chunks = [
        (part, part.uids[start : start + MAX_UIDS])
        for part in parts
        for start in range(0, len(part.uids), MAX_UIDS)
    ]
    replies = store.run([_mget(keys, service, part.shard, uids) for part, uids in chunks])
    failed: dict[int, str] = {}
    counters: dict[int, int] = {}
    for (part, _), reply in zip(chunks, replies, strict=True):
        problem = _problem(part, reply)
        if problem:
            failed[part.shard] = problem
        else:
            counters[part.shard] = _counter(reply[0])
    places: dict[bytes, int] = {}
    codes = array("i")
    for (part, _), reply in zip(chunks, replies, strict=True):
        if part.shard not in failed:
            codes.extend(places.setdefault(_owner(value), len(places)) for value in reply[1:])
    return PartAnswer(list(places), codes, counters, failed)


def _mget(keys: Keys, service: str, shard: int, uids: list[str]) -> Call:
    counter = keys.counter(shard)
    return Call(counter, ("MGET", counter, *(keys.link(shard, service, uid) for uid in uids)))


def _problem(part: Part, reply: Any) -> str:
    if isinstance(reply, RouteError):
        return str(reply)
    if _counter(reply[0]) < part.seen:
        return f"Redis has lost writes to shard {part.shard}; they are being replayed"
    return ""


def _counter(value: bytes | None) -> int:
    return int(value.partition(b":")[0]) if value else 0


def _owner(value: bytes | None) -> bytes:
    if value is None:
        return _MISSING
    return value[: value.index(b":", value.index(b":") + 1)]


def _grouped(
    session: Session, service: str, uids: Sequence[str], owners: Sequence[bytes | None]
) -> LinkedPods:
    by_owner: dict[bytes, tuple[int, int]] = {}
    pods: dict[int, list[str]] = {}
    missing: list[str] = []
    for uid, owner in zip(uids, owners, strict=True):
        if owner is None:
            continue  # its shard failed
        if owner == _MISSING:
            missing.append(uid)
            continue
        if owner not in by_owner:
            pod, incarnation = owner.split(b":")
            by_owner[owner] = (int(pod), int(incarnation))
        pods.setdefault(by_owner[owner][0], []).append(uid)
    unroutable = frozenset(
        pod
        for pod, incarnation in by_owner.values()
        if not session.table.routable(service, Link(pod, incarnation, 0, False, 0))
    )
    return LinkedPods(pods, missing, unroutable)
