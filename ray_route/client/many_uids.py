"""What a client can do with many uids at once, written once for the sync and the async client."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import ray

from ray_route.client.batch import BatchOptions, look_up
from ray_route.client.session import Session
from ray_route.clock import Deadline, now
from ray_route.errors import RouterUnavailableError
from ray_route.model import Link, LinkedPods, check_name, check_uids, listed
from ray_route.protocol.wire import pack_question
from ray_route.runtime.link_reads import Awaited
from ray_route.runtime.waiting import Operation, Remote

# Many uids: the router works on a call for about 8 ms, and answers others in between.
_UIDS_PER_CALL = 1_000
_CALLS_IN_FLIGHT = 2
# Many uids from Redis, whose thread others need, too.
_UIDS_PER_READ = 2_000


@dataclass(frozen=True, slots=True)
class _Asked:
    """A call to the router that is under way; leases count from `asked_at`."""

    service: str
    wanted: dict[str, int]
    question: bytes
    ref: Any
    asked_at: float


def compute_many(session: Session, uids: Iterable[str], service: str) -> Operation[dict[str, Any]]:
    """See `RouteClient.compute_linked_pods`."""
    wanted = check_uids(uids)
    check_name("service", service)
    answers: dict[str, Any] = session.near.get_all(service, dict.fromkeys(wanted, 0))
    missing = [uid for uid, link in answers.items() if link is None]
    if len(missing) > _UIDS_PER_CALL:
        # Shard by shard: a call then is a few scripts of many uids, not 256 of a few.
        missing.sort(key=session.namespace.keys.shard)
    for start in range(0, len(missing), _UIDS_PER_READ):
        if not session.may_know(service):
            continue
        some = missing[start : start + _UIDS_PER_READ]
        answers.update((yield from _found(session, service, some)))
    missing = [uid for uid in missing if answers[uid] is None]
    answers.update((yield from _decided_many(session, service, missing)))
    return answers


def _found(session: Session, service: str, uids: list[str]) -> Operation[dict[str, Link]]:
    """Read the links of many uids; return what can be told without the router."""
    parts, asked_at = session.judge.parts(service, uids), now()
    what = f"Redis at {session.namespace.url.address} about {len(uids)} uids of {service!r}"
    readings = yield Awaited(session.namespace.reads.ask(parts), what, session.namespace.check_here)
    found = session.judge.found(service, parts, readings, now() - asked_at)
    session.new_uids.note(service, found.read, len(found.links) + len(found.lost))
    if found.lost:
        yield from session.namespace.recover({lost.shard for lost in found.lost.values()})
    if not session.may_read():  # the stream has not been heard meanwhile
        return {}
    session.keep_used(service, found, asked_at)
    return found.links


def _decided_many(session: Session, service: str, missing: list[str]) -> Operation[dict[str, Any]]:
    """Ask the router for many uids, a few calls at a time."""
    answers: dict[str, Any] = {}
    under_way: deque[_Asked] = deque()
    for start in range(0, len(missing), _UIDS_PER_CALL):
        if len(under_way) == _CALLS_IN_FLIGHT:
            answers.update((yield from _computed(session, under_way.popleft())))
        some = dict.fromkeys(missing[start : start + _UIDS_PER_CALL], 0)
        under_way.append(_asked(session, service, some))
    while under_way:
        answers.update((yield from _computed(session, under_way.popleft())))
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
    session: Session, uids: Iterable[str], service: str, deadline: Deadline, options: BatchOptions
) -> Operation[LinkedPods]:
    """See `RouteClient.batch_get_linked_pod`."""
    check_name("service", service)
    wanted = listed(uids)
    return (yield from look_up(session, service, wanted, deadline, options))
