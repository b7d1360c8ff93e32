"""Fenced calls: to the pod that owns the uid, and after it when it moves.

Written once for the sync and the async client, as operations.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray

from ray_route.client import operations
from ray_route.client.session import NoSuchActorError, Session
from ray_route.client.user_errors import of_user
from ray_route.clock import now
from ray_route.errors import (
    FencedError,
    InvalidInputError,
    NoAvailablePodError,
    PodUnavailableError,
)
from ray_route.model import Link, check_uid
from ray_route.protocol.calls import BatchedCall, Header, Raised, Refused
from ray_route.runtime.call_context import node_mark, time_of
from ray_route.runtime.metrics import CALL_REPEATS, CALL_SECONDS
from ray_route.runtime.waiting import LifeEndedError, Operation, Pause, Remote, TheDeadline

ManyCall = tuple[str, tuple[Any, ...]] | tuple[str, tuple[Any, ...], dict[str, Any]]
"""One of many calls, as users write it: uid, arguments, keywords if there are any."""

_OneCall = tuple[str, tuple[Any, ...], dict[str, Any]]

_GONE = (ray.exceptions.RayActorError, LifeEndedError)
_BACKOFF_S = 0.02
_MAX_BACKOFF_S = 0.5


def call(
    session: Session,
    uid: str,
    service: str,
    method: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    idempotent: bool,
    min_epoch: int = 0,
) -> Operation[Any]:
    """See `RouteClient.call`."""
    what = f"{method} on the pod of uid {uid!r} of {service!r}"
    attempt, begun_at = 0, now()
    due_at = time_of((yield TheDeadline()))
    while True:
        if attempt:
            yield Pause(_backoff_s(attempt), what)
        attempt += 1
        try:
            link = yield from operations.compute(session, uid, service, min_epoch)
            handle = yield from session.handle(service, link)
        except NoAvailablePodError:
            if attempt == 1 and not min_epoch:
                raise
            continue  # its pod has just gone; another may be on its way
        except NoSuchActorError:
            min_epoch = yield from operations.failed(session, uid, service, link)
            continue
        header = _header(uid, link, method, due_at)
        try:
            ref = handle._ray_route_call.remote(header, *args, **kwargs)
            result = yield Remote(ref, what, partial(session.has_ended, service, link))
        except ray.exceptions.RayTaskError as error:
            raise of_user(error, method) from error.__cause__
        except _GONE as error:
            min_epoch = yield from operations.failed(session, uid, service, link, error)
            if not idempotent:
                raise _unavailable(session, uid, service, link, error) from error
            continue
        if type(result) is not Refused:
            session.meter.observe(CALL_SECONDS, now() - begun_at, service)
            return result
        min_epoch = _follow(session, uid, service, link, result, idempotent=idempotent)


def _header(uid: str, link: Link, method: str, due_at: float) -> Header:
    return [uid, link.epoch, link.incarnation, method, 0, 0, due_at, node_mark()]


def _follow(
    session: Session, uid: str, service: str, link: Link, refused: Refused, *, idempotent: bool
) -> int:
    """Return the epoch to ask for after a refusal; raise it if it can't be followed."""
    refusal = refused.error
    if not isinstance(refusal, FencedError) or (refusal.may_have_run and not idempotent):
        raise refusal
    session.near.drop(service, uid, link.epoch)
    session.meter.count(CALL_REPEATS, service, "fenced")
    return link.epoch + 1


def _unavailable(
    session: Session, uid: str, service: str, link: Link, error: Exception
) -> PodUnavailableError:
    first_line = str(error).partition("\n")[0]
    return PodUnavailableError(
        reason=f"{type(error).__name__}: {first_line}",
        may_have_run=True,
        namespace=session.namespace.name,
        service=service,
        uid=uid,
        pod=link.pod,
    )


def _backoff_s(attempt: int) -> float:
    return min(_BACKOFF_S * 2.0 ** (attempt - 1), _MAX_BACKOFF_S)


@dataclass(frozen=True, slots=True)
class _PodBatch:
    """Calls that go to one pod together: their positions in the caller's order.

    One whose arguments are references goes alone: Ray resolves those, and their failures are its.
    """

    link: Link
    positions: list[int]
    alone: bool = False


def call_many(
    session: Session,
    calls: Iterable[ManyCall],
    service: str,
    method: str,
    *,
    idempotent: bool,
) -> Operation[list[Any]]:
    """See `RouteClient.call_many`."""
    asked = [_checked(item) for item in calls]
    links = yield from operations.compute_many(session, [uid for uid, _, _ in asked], service)
    outcomes: list[Any] = [links[uid] for uid, _, _ in asked]
    due_at = time_of((yield TheDeadline()))
    sent = []
    for batch in _by_pod(outcomes, asked):
        headers: list[BatchedCall] = [
            (
                _header(asked[position][0], outcomes[position], method, due_at),
                *asked[position][1:],
            )
            for position in batch.positions
        ]
        sent.append((batch, (yield from _send(session, service, batch, headers))))
    singly: list[int] = []
    for batch, ref in sent:
        uids = [asked[position][0] for position in batch.positions]
        answers = yield from _answered(session, service, batch, uids, ref, idempotent=idempotent)
        for position, answer in zip(batch.positions, answers, strict=True):
            outcomes[position] = answer
            if type(answer) is Refused:
                singly.append(position)
    for position in sorted(singly):
        uid, args, kwargs = asked[position]
        refused, link = outcomes[position], links[uid]
        try:
            least = _follow(session, uid, service, link, refused, idempotent=idempotent)
            one = call(
                session, uid, service, method, args, kwargs, idempotent=idempotent, min_epoch=least
            )
            outcomes[position] = yield from one
        except Exception as error:  # noqa: BLE001 - one call's error is its outcome
            outcomes[position] = error
    return [of_user(item.error, method) if type(item) is Raised else item for item in outcomes]


def _checked(item: ManyCall) -> _OneCall:
    parts = item if isinstance(item, tuple) and 2 <= len(item) <= 3 else ()
    uid, args, kwargs = (*parts, {})[:3] if parts else ("", None, None)
    if not isinstance(args, tuple) or not isinstance(kwargs, dict):
        raise InvalidInputError(
            argument="calls",
            value=item,
            reason="must hold (uid, tuple of arguments), or these and a dict of keywords",
        )
    return check_uid(uid), args, kwargs


def _by_pod(links: list[Any], asked: list[_OneCall]) -> list[_PodBatch]:
    batches: dict[tuple[int, int], _PodBatch] = {}
    alone: list[_PodBatch] = []
    for position, link in enumerate(links):
        if not isinstance(link, Link):
            continue
        if _has_references(asked[position]):
            alone.append(_PodBatch(link, [position], alone=True))
        else:
            batch = batches.setdefault((link.pod, link.incarnation), _PodBatch(link, []))
            batch.positions.append(position)
    return [*batches.values(), *alone]


def _has_references(one: _OneCall) -> bool:
    _, args, kwargs = one
    return any(isinstance(value, ray.ObjectRef) for value in (*args, *kwargs.values()))


def _send(
    session: Session, service: str, batch: _PodBatch, calls: list[BatchedCall]
) -> Operation[Any]:
    """Send one pod its calls; return the reference of its answers, or the error instead."""
    try:
        handle = yield from session.handle(service, batch.link)
        if batch.alone:
            header, args, kwargs = calls[0]
            return handle._ray_route_call.remote(header, *args, **kwargs)
        return handle._ray_route_call_many.remote(calls)
    except Exception as error:  # noqa: BLE001 - other pods' calls have been sent by now
        return error


def _answered(
    session: Session, service: str, batch: _PodBatch, uids: list[str], ref: Any, *, idempotent: bool
) -> Operation[list[Any]]:
    """Wait for a pod's answers; if they don't come, answer for it."""
    if isinstance(ref, NoSuchActorError):  # none of them ran
        yield from operations.failed(session, uids[0], service, batch.link)
        return [Refused(FencedError(reason=str(ref), may_have_run=False))] * len(uids)
    if isinstance(ref, Exception):
        return [Raised(ref)] * len(uids)
    try:
        what = f"{len(uids)} calls on pod {batch.link.pod}"
        over = partial(session.has_ended, service, batch.link)
        answers: Any = yield Remote(ref, what, over)
    except _GONE as died:
        yield from operations.failed(session, uids[0], service, batch.link, died)
        if idempotent:
            return [Refused(FencedError(reason="its pod is gone", may_have_run=True))] * len(uids)
        return [Raised(_unavailable(session, uid, service, batch.link, died)) for uid in uids]
    except Exception as error:  # noqa: BLE001 - other pods' results count
        return [Raised(error)] * len(uids)
    else:
        return [answers] if batch.alone else answers
