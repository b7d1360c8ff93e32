"""Fenced calls: to the pod that owns the uid, and after it when it moves.

Written once for the sync and the async client, as operations.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray

from ray_route.client import many_uids, operations
from ray_route.client.session import NoSuchActorError, Session
from ray_route.client.user_errors import UserCall, of_user
from ray_route.clock import backoff_s, now
from ray_route.errors import (
    FencedError,
    InvalidInputError,
    NestedCallError,
    NoAvailablePodError,
    PodUnavailableError,
    RayGoneError,
    RouteError,
    RouteTimeoutError,
    UnpicklableError,
)
from ray_route.model import Link, check_uid
from ray_route.protocol.calls import BatchedCall, Header, Raised, Refused
from ray_route.runtime.call_context import node_mark, time_of
from ray_route.runtime.metrics import CALL_REPEATS, CALL_SECONDS
from ray_route.runtime.waiting import LifeEndedError, Operation, Pause, Remote, TheDeadline

ManyCall = tuple[str, tuple[Any, ...]] | tuple[str, tuple[Any, ...], dict[str, Any]]
"""One of many calls, as users write it: uid, arguments, keywords if there are any."""

_OneCall = tuple[str, tuple[Any, ...], dict[str, Any]]

GONE = (ray.exceptions.RayActorError, LifeEndedError)
"""What comes instead of an answer from a pod that has ended."""
# What may come while a call is on its way, and says by itself nothing of it.
_UNDECIDED = (RouteTimeoutError, RayGoneError)
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
    deadline = yield TheDeadline()
    attempts = _Attempts(
        session, uid, service, method, args, kwargs, idempotent, min_epoch, time_of(deadline)
    )
    begun_at = now()
    try:
        result = yield from attempts.result()
    except _UNDECIDED as error:
        raise attempts.judged(error) from error
    session.meter.observe(CALL_SECONDS, now() - begun_at, service)
    return result


@dataclass(slots=True)
class _Attempts:
    """One call on its way to its uid's pod, and what is known of whether it has run."""

    session: Session
    uid: str
    service: str
    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    idempotent: bool
    min_epoch: int
    due_at: float
    may_have_run: bool = False

    @property
    def what(self) -> str:
        return f"{self.method} on the pod of uid {self.uid!r} of {self.service!r}"

    def judged(self, error: RouteError) -> RouteError:
        """Return an error that ended this call's way, saying whether it may have run."""
        return _judged(self.session, self.uid, self.service, error, may_have_run=self.may_have_run)

    def result(self) -> Operation[Any]:
        attempt = 0
        while True:
            if attempt:
                yield Pause(backoff_s(attempt - 1, _BACKOFF_S, _MAX_BACKOFF_S), self.what)
            attempt += 1
            link, handle = yield from self._owner(first=attempt == 1)
            if handle is None:
                continue
            answer = yield from self._answer(link, handle)
            if type(answer) is not Refused:
                return answer

    def _owner(self, *, first: bool) -> Operation[tuple[Link | None, Any]]:
        """Return the uid's link and the handle of its pod; no handle if it has just gone."""
        link = None
        try:
            link = yield from operations.compute(
                self.session, self.uid, self.service, self.min_epoch
            )
            return link, (yield from self.session.handle(self.service, link))
        except NoAvailablePodError:
            if first and not self.min_epoch:
                raise
        except NoSuchActorError:
            yield from self._report(link)
        return link, None  # another may be on its way

    def _report(self, link: Any, error: Exception | None = None) -> Operation[None]:
        self.min_epoch = yield from operations.failed(
            self.session, self.uid, self.service, link, error
        )

    def _answer(self, link: Any, handle: Any) -> Operation[Any]:
        """Send the call and return its result; a refusal, seen to, if it is to be sent again."""
        header = _header(self.uid, link, self.method, self.due_at)
        ref = handle._ray_route_call.remote(header, *self.args, **self.kwargs)
        over = partial(self.session.has_ended, self.service, link)
        ids = {**_ids(self.session, self.uid, self.service), "pod": link.pod}
        ran_before, self.may_have_run = self.may_have_run, True  # while it is out there
        try:
            answer = yield UserCall(Remote(ref, self.what, over), self.method, ids)
        except ray.exceptions.RayTaskError as error:
            raise of_user(error, self.method, ids) from error.__cause__
        except GONE as error:
            return (yield from self._lost(link, error))
        if type(answer) is Refused:
            self.may_have_run = ran_before or getattr(answer.error, "may_have_run", False)
            self.min_epoch = follow(
                self.session, self.uid, self.service, link, answer, idempotent=self.idempotent
            )
        return answer

    def _lost(self, link: Link, error: Exception) -> Operation[Refused]:
        """See to a pod that ended with the call in it."""
        lost = unavailable(self.session, self.uid, self.service, link, error)
        try:
            yield from self._report(link, error)
        except RouteError:
            if self.idempotent:
                raise
        if not self.idempotent:
            raise lost from error
        return Refused(lost)


def _ids(session: Session, uid: str, service: str) -> dict[str, Any]:
    return {"namespace": session.namespace.name, "service": service, "uid": uid}


def _header(uid: str, link: Link, method: str, due_at: float) -> Header:
    return [uid, link.epoch, link.incarnation, method, 0, 0, due_at, node_mark()]


def follow(
    session: Session, uid: str, service: str, link: Link, refused: Refused, *, idempotent: bool
) -> int:
    """Return the epoch to ask for after a refusal; raise it if it can't be followed."""
    refusal = refused.error
    if not isinstance(refusal, FencedError) or (refusal.may_have_run and not idempotent):
        raise refusal
    session.near.drop(service, uid, link.epoch)
    session.meter.count(CALL_REPEATS, service, "fenced")
    return link.epoch + 1


def unavailable(
    session: Session, uid: str, service: str, link: Link, error: Exception
) -> PodUnavailableError:
    """Make the error of a call whose pod ended with it."""
    first_line = str(error).partition("\n")[0]
    return PodUnavailableError(
        reason=f"{type(error).__name__}: {first_line}",
        may_have_run=True,
        **_ids(session, uid, service),
        pod=link.pod,
    )


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
    links = yield from many_uids.compute_many(session, [uid for uid, _, _ in asked], service)
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
        answers = yield from _answered(
            session, service, method, batch, uids, ref, idempotent=idempotent
        )
        for position, answer in zip(batch.positions, answers, strict=True):
            outcomes[position] = answer
            if type(answer) is Refused:
                singly.append(position)
    for position in sorted(singly):
        uid, args, kwargs = asked[position]
        refused, link = outcomes[position], links[uid]
        try:
            least = follow(session, uid, service, link, refused, idempotent=idempotent)
            one = call(
                session, uid, service, method, args, kwargs, idempotent=idempotent, min_epoch=least
            )
            outcomes[position] = yield from one
        except Exception as error:  # noqa: BLE001 - one call's error is its outcome
            outcomes[position] = error
    shown = partial(of_user, method=method, ids={})  # RouteErrors have their ids by now
    return [shown(item.error) if type(item) is Raised else item for item in outcomes]


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
    session: Session,
    service: str,
    method: str,
    batch: _PodBatch,
    uids: list[str],
    ref: Any,
    *,
    idempotent: bool,
) -> Operation[list[Any]]:
    """Wait for a pod's answers; if they don't come, answer for it."""
    if isinstance(ref, Exception):
        return (yield from _unsent(session, service, batch, uids, ref))
    try:
        what = f"{len(uids)} calls of {method} on pod {batch.link.pod} of {service!r}"
        over = partial(session.has_ended, service, batch.link)
        ids = {**_ids(session, uids[0], service), "pod": batch.link.pod}
        answers: Any = yield UserCall(Remote(ref, what, over), method, ids)
    except ray.exceptions.RayTaskError as error:  # of one that goes alone
        answers = Raised(of_user(error, method, ids))
    except GONE as died:
        return (yield from _died(session, service, batch, uids, died, idempotent=idempotent))
    except _UNDECIDED as error:
        return [Raised(_judged(session, uid, service, error, may_have_run=True)) for uid in uids]
    except Exception as error:  # noqa: BLE001 - other pods' results count
        return [Raised(error)] * len(uids)
    return [
        _apart(session, uid, service, batch.link, method, answer)
        for uid, answer in zip(uids, [answers] if batch.alone else answers, strict=True)
    ]


def _died(
    session: Session,
    service: str,
    batch: _PodBatch,
    uids: list[str],
    died: Exception,
    *,
    idempotent: bool,
) -> Operation[list[Any]]:
    """Answer for a pod that ended with the calls in it."""
    with contextlib.suppress(RouteError):  # other pods' results count
        yield from operations.failed(session, uids[0], service, batch.link, died)
    if idempotent:
        return [Refused(FencedError(reason="its pod is gone", may_have_run=True))] * len(uids)
    return [Raised(unavailable(session, uid, service, batch.link, died)) for uid in uids]


def _unsent(
    session: Session, service: str, batch: _PodBatch, uids: list[str], error: Exception
) -> Operation[list[Any]]:
    """Answer for a pod to which the calls were not sent: none of them ran."""
    if isinstance(error, NoSuchActorError):
        yield from operations.failed(session, uids[0], service, batch.link)
        return [Refused(FencedError(reason=str(error), may_have_run=False))] * len(uids)
    if isinstance(error, _UNDECIDED):
        judged = partial(_judged, session, service=service, error=error, may_have_run=False)
        return [Raised(judged(uid=uid)) for uid in uids]
    return [Raised(error)] * len(uids)


def _apart(session: Session, uid: str, service: str, link: Link, method: str, answer: Any) -> Any:
    """Keep an error that a user's code met apart from verdicts on its call."""
    if type(answer) is not Raised or not isinstance(answer.error, RouteError):
        return answer
    if isinstance(answer.error, UnpicklableError):  # the pod's own word on this call
        return answer
    ids = {**_ids(session, uid, service), "pod": link.pod}
    return Raised(NestedCallError(method=method, error=answer.error, **ids))


def _judged(
    session: Session, uid: str, service: str, error: RouteError, *, may_have_run: bool
) -> RouteError:
    """Say of an error whose call it ended, and whether that may have run."""
    ids = _ids(session, uid, service)
    return type(error)(**{**error._facts, **ids, "may_have_run": may_have_run})
