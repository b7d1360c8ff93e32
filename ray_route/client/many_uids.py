"""What a client can do with many uids at once, written once for the sync and the async client."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple

import ray

from ray_route.client.session import Session
from ray_route.clock import Deadline, now
from ray_route.errors import LostWritesError, RouterUnavailableError, StoreUnavailableError
from ray_route.model import Link, LinkedPods, check_name, check_uids, listed
from ray_route.protocol.wire import pack_question
from ray_route.runtime.link_reads import Awaited, Part, Readings
from ray_route.runtime.unseen import seen
from ray_route.runtime.waiting import Operation, Pause, Remote

if TYPE_CHECKING:
    from ray_route.client.batch import Progress

# Many uids: the router works on a call for about 8 ms, and answers others in between.
_UIDS_PER_CALL = 1_000
_CALLS_IN_FLIGHT = 2
# Many uids from Redis, whose thread others need, too.
_UIDS_PER_READ = 2_000
_READS_IN_FLIGHT = 2
_AGAIN_S = 0.1


class _Asked(NamedTuple):
    """A call to the router that is under way; leases count from `asked_at`."""

    service: str
    wanted: dict[str, int]
    question: bytes
    ref: Any
    asked_at: float


class _Read(NamedTuple):
    """A read from Redis that is under way; leases count from `asked_at`."""

    parts: Sequence[Part]
    asked_at: float
    readings: Future[Readings]


def compute_many(session: Session, uids: Iterable[str], service: str) -> Operation[dict[str, Any]]:
    """See `RouteClient.compute_linked_pods`."""
    wanted = check_uids(uids)
    check_name("service", service)
    answers: dict[str, Any] = session.near.get_all(service, dict.fromkeys(wanted, 0))
    missing = [uid for uid, link in answers.items() if link is None]
    # By shard, for the router too: a call then is a few scripts of many uids, not 256 of a few.
    parts = session.judge.parts(service, missing) if missing else []
    yield from _read_many(session, service, parts, answers)
    left = [uid for part in parts for _, uid in part.names if answers[uid].__class__ is not Link]
    yield from _decide(session, service, left, answers)
    return answers


def _decide(
    session: Session, service: str, left: list[str], answers: dict[str, Any]
) -> Operation[None]:
    """Have the router decide what is left; what is lost, when all else is told.

    What the router could not tell yet is asked again, until the deadline.
    """
    lost = [uid for uid in left if answers[uid] is not None]
    asked = [uid for uid in left if answers[uid] is None] if lost else left
    while asked or lost:
        answers.update((yield from _decided_many(session, service, asked)))
        lost += [uid for uid in asked if isinstance(answers[uid], LostWritesError)]
        try:
            yield from session.recover(lost)
        except StoreUnavailableError as error:
            answers.update(dict.fromkeys(lost, error))
            return
        late = [uid for uid in asked if _is_late(answers[uid])]
        if late:
            yield Pause(_AGAIN_S, f"the router, which said: {answers[late[0]]}")
        asked, lost = [*lost, *late], []


def _is_late(answer: Any) -> bool:
    """True if the router can't tell yet, and may soon."""
    return isinstance(answer, RouterUnavailableError) and answer.passes


def _read_many(
    session: Session, service: str, parts: Sequence[Part], answers: dict[str, Any]
) -> Operation[None]:
    """Add what can be told without the router: links, or `Lost`.

    Redis works on one read during another.
    """
    under_way: deque[_Read] = deque()
    for some in _reads(parts):
        if not session.may_know(service):
            continue
        if len(under_way) == _READS_IN_FLIGHT:
            answers.update((yield from _found(session, service, under_way.popleft())))
        under_way.append(_Read(some, now(), session.namespace.reads.ask(some)))
    while under_way:
        answers.update((yield from _found(session, service, under_way.popleft())))


def _reads(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """Divide parts into reads of about so many uids."""
    some: list[Part] = []
    for part in parts:
        some.append(part)
        if sum(len(each.names) for each in some) >= _UIDS_PER_READ:
            yield some
            some = []
    if some:
        yield some


def _found(session: Session, service: str, read: _Read) -> Operation[dict[str, Any]]:
    """Wait for a read of many links; return what can be told without the router."""
    count = sum(len(part.names) for part in read.parts)
    what = f"Redis at {session.namespace.url.address} about {count} uids of {service!r}"
    readings = yield Awaited(read.readings, what, session.namespace.check_here)
    found = session.judge.found(service, read.parts, readings, now() - read.asked_at)
    session.new_uids.note(service, found.read, len(found.links) + len(found.lost))
    if not session.may_read():  # the stream has not been heard meanwhile
        return found.lost
    session.keep_used(service, found, read.asked_at)
    return {**found.links, **found.lost} if found.lost else found.links


def _decided_many(session: Session, service: str, missing: list[str]) -> Operation[dict[str, Any]]:
    """Ask the router for many uids, a few calls at a time."""
    answers: dict[str, Any] = {}
    under_way: deque[_Asked] = deque()
    try:
        for start in range(0, len(missing), _UIDS_PER_CALL):
            if len(under_way) == _CALLS_IN_FLIGHT:
                answers.update((yield from _computed(session, under_way.popleft())))
            some = dict.fromkeys(missing[start : start + _UIDS_PER_CALL], 0)
            under_way.append(_asked(session, service, some))
        while under_way:
            answers.update((yield from _computed(session, under_way.popleft())))
    finally:
        for given_up in under_way:
            seen(given_up.ref)
    return answers


def _asked(session: Session, service: str, wanted: dict[str, int]) -> _Asked:
    question = pack_question(service, wanted, session.namespace.node)
    asked_at = now()
    return _Asked(
        service, wanted, question, session.namespace.router.compute.remote(question), asked_at
    )


def _computed(session: Session, asked: _Asked) -> Operation[dict[str, Any]]:
    """Wait for one call's answers; ask again if the router was not there."""
    asked_at = asked.asked_at
    what = f"the router's answers about {len(asked.wanted)} uids of {asked.service!r}"
    try:
        packed = yield Remote(asked.ref, what)
    except (ray.exceptions.RayActorError, RouterUnavailableError):
        asked_at = now()
        packed = yield from session.namespace.ask("compute", asked.question)
    return session.take(asked.service, asked.wanted, packed, asked_at)


def batch(
    session: Session,
    uids: Iterable[str],
    service: str,
    deadline: Deadline,
    num_cpus: float,
    max_in_flight: int,
    progress: Progress | None,
) -> Operation[LinkedPods]:
    """See `RouteClient.batch_get_linked_pod`."""
    from ray_route.client.batch import BatchOptions, look_up  # noqa: PLC0415 - few need it

    options = BatchOptions(num_cpus, max_in_flight, progress)
    check_name("service", service)
    wanted = listed(uids)
    return (yield from look_up(session, service, wanted, deadline, options))
