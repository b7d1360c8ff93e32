"""Calls that are waited for: one, by the way of every call, or many, by one Ray call per pod.

Written once for the sync and the async client, as operations.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import ray

from ray_route.client import many_uids, operations
from ray_route.client.dispatcher import Dispatcher
from ray_route.client.outgoing import Outgoing
from ray_route.client.refusals import (
    GONE,
    UNDECIDED,
    follow,
    judged,
    may_have_run,
    unavailable,
)
from ray_route.client.responses import Response, arguments, taken
from ray_route.client.session import NoSuchActorError, Session
from ray_route.client.user_errors import UserCall, is_of_an_argument, of_user
from ray_route.clock import Deadline
from ray_route.errors import (
    FencedError,
    InvalidInputError,
    NestedCallError,
    RouteError,
    UnpicklableError,
)
from ray_route.model import Link, check_name, check_uid
from ray_route.protocol.calls import BatchedCall, Chain, Header, Raised, Refused, SendAgain
from ray_route.runtime.call_context import current_chain, node_mark, time_of
from ray_route.runtime.running_hooks import check_not_awaited
from ray_route.runtime.waiting import Operation, Remote, TheDeadline

ManyCall = tuple[str, tuple[Any, ...]] | tuple[str, tuple[Any, ...], dict[str, Any]]
"""One of many calls, as users write it: uid, arguments, keywords if there are any."""

_OneCall = tuple[str, tuple[Any, ...], dict[str, Any]]


def call(
    session: Session,
    uid: str,
    service: str,
    method: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    idempotent: bool,
) -> Operation[Any]:
    """See `RouteClient.call`."""
    check_uid(uid)
    check_name("service", service)
    deadline = yield TheDeadline()
    name = session.namespace.name
    asked = arguments(args, kwargs)
    made = Outgoing(name, service, uid, method, *asked, idempotent, deadline)
    return (yield from _outcome(session.dispatcher, made, _sent(session, made)))


def _sent(session: Session, made: Outgoing) -> Operation[None]:
    """Have a call sent, or held in its place; whoever waits anyway looks up its pod himself."""
    try:
        if not session.dispatcher.send(made, looks_up=True):
            return
        if made.link is None:
            made.link = yield from operations.compute(session, made.uid, made.service)
        yield from session.handle(made.service, made.link)
    except UNDECIDED as error:
        raise made.judged(error) from error
    except NoSuchActorError:
        pass  # the dispatcher reports that, and goes on
    session.dispatcher.go_on(made)


def _outcome(
    dispatcher: Dispatcher, made: Outgoing, sent: Operation[None] | tuple[()] = ()
) -> Operation[Any]:
    """Wait for the outcome of a call; nobody else can take it, so given up it is not sent.

    This may end where garbage is collected, so it takes no lock then.
    """
    try:
        yield from sent
        return (yield from taken(dispatcher, made))
    finally:
        dispatcher.give_up(made)


def _kept(operation: Operation[Any]) -> Operation[Any]:
    """Return what an operation returns or raises: one call's error is its outcome."""
    try:
        return (yield from operation)
    except Exception as error:  # noqa: BLE001 - whatever the user's code raised
        return error


class _PodBatch(NamedTuple):
    """Calls that go to one pod together: their positions in the caller's order."""

    link: Link
    positions: list[int]


def call_many(
    session: Session,
    calls: Iterable[ManyCall],
    service: str,
    method: str,
    *,
    idempotent: bool,
    chain: Chain = (),
) -> Operation[list[Any]]:
    """See `RouteClient.call_many`. `chain` is that of a handle which came out of a call."""
    chain = current_chain() or chain
    asked = [_checked(item) for item in calls]
    for uid, _, _ in asked if chain else ():
        check_not_awaited(chain, session.namespace.name, service, uid)
    links = yield from many_uids.compute_many(session, [uid for uid, _, _ in asked], service)
    deadline = yield TheDeadline()
    many = _Many(session, service, method, idempotent, deadline, asked, links, chain)
    outcomes: list[Any] = [links[uid] for uid, _, _ in asked]
    batches = many.by_pod(outcomes)
    refs = []
    for batch in batches:  # a comprehension can't wait
        refs.append((yield from many.send(batch)))  # noqa: PERF401
    for batch, ref in zip(batches, refs, strict=True):
        answers = yield from many.answers(batch, ref)
        for position, answer in zip(batch.positions, answers, strict=True):
            outcomes[position] = answer
    many.send_again(outcomes)
    yield from many.taken(outcomes)
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


def _goes_alone(one: _OneCall) -> bool:
    """Return True if an argument is the outcome of something, which may fail or be refused."""
    _, args, kwargs = one
    return any(isinstance(value, (ray.ObjectRef, Response)) for value in (*args, *kwargs.values()))


@dataclass(frozen=True, slots=True)
class _Many:
    """Calls of one method for many uids, on their way."""

    session: Session
    service: str
    method: str
    idempotent: bool
    deadline: Deadline
    asked: list[_OneCall]
    links: dict[str, Any]
    chain: Chain

    def _ids(self, batch: _PodBatch, position: int) -> dict[str, Any]:
        name, uid = self.session.namespace.name, self.asked[position][0]
        return {"namespace": name, "service": self.service, "uid": uid, "pod": batch.link.pod}

    def _header(self, position: int) -> Header:
        uid = self.asked[position][0]
        link = self.links[uid]
        due = (time_of(self.deadline), node_mark())
        chain = list(self.chain) or 0
        return [uid, link.epoch, link.incarnation, self.method, 0, 0, *due, chain]

    def by_pod(self, outcomes: list[Any]) -> list[_PodBatch]:
        """Return the calls that can travel together; send the others that have a link."""
        batches: dict[tuple[int, int], _PodBatch] = {}
        for position, link in enumerate(outcomes):
            if not isinstance(link, Link):
                continue
            if _goes_alone(self.asked[position]):
                outcomes[position] = self._sent_alone(position)
            else:
                batch = batches.setdefault((link.pod, link.incarnation), _PodBatch(link, []))
                batch.positions.append(position)
        return list(batches.values())

    def send(self, batch: _PodBatch) -> Operation[Any]:
        """Send one pod its calls; return the reference of its answers, or the error instead."""
        try:
            handle = yield from self.session.handle(self.service, batch.link)
            calls: list[BatchedCall] = [
                (self._header(position), *self.asked[position][1:]) for position in batch.positions
            ]
            return handle._ray_route_call_many.remote(calls)
        except Exception as error:  # noqa: BLE001 - other pods' calls have been sent by now
            return error

    def answers(self, batch: _PodBatch, ref: Any) -> Operation[list[Any]]:
        """Wait for a pod's answers; if they don't come, answer for it."""
        if isinstance(ref, Exception):
            return (yield from self._unsent(batch, ref))
        ids = self._ids(batch, batch.positions[0])
        try:
            what = f"{len(batch.positions)} calls of {self.method} on pod {ids['pod']}"
            over = partial(self.session.has_ended, self.service, batch.link)
            wait = Remote(ref, f"{what} of {self.service!r}", over)
            answers: Any = yield UserCall(wait, self.method, ids)
        except GONE as died:
            return (yield from self._died(batch, died))
        except Exception as error:  # noqa: BLE001 - other pods' results count
            if is_of_an_argument(error):
                return self._each_alone(batch, error)
            return self._all_raised(batch, error, may_have_run=True)
        found = zip(batch.positions, answers, strict=True)
        return [self._apart(batch, position, answer) for position, answer in found]

    def _each_alone(self, batch: _PodBatch, error: Exception) -> list[Any]:
        """Have calls of which none ran sent by themselves: one has what the others fail by."""
        if len(batch.positions) == 1:
            return self._all_raised(batch, error, may_have_run=False)
        return [SendAgain()] * len(batch.positions)

    def _all_raised(self, batch: _PodBatch, error: Exception, *, may_have_run: bool) -> list[Any]:
        return [
            Raised(judged(error, self._ids(batch, position), may_have_run=may_have_run))
            for position in batch.positions
        ]

    def _died(self, batch: _PodBatch, died: Exception) -> Operation[list[Any]]:
        """Answer for a pod that ended with the calls in it."""
        with contextlib.suppress(RouteError):  # other pods' results count
            yield from self._report(batch, died)
        if self.idempotent:
            gone = Refused(FencedError(reason="its pod is gone", may_have_run=True))
            return [gone] * len(batch.positions)
        return [
            Raised(unavailable(self._ids(batch, position), died)) for position in batch.positions
        ]

    def _unsent(self, batch: _PodBatch, error: Exception) -> Operation[list[Any]]:
        """Answer for a pod to which the calls were not sent: none of them ran."""
        if isinstance(error, (RouteError, ray.exceptions.RayError)):
            return self._all_raised(batch, error, may_have_run=False)
        if not isinstance(error, NoSuchActorError):  # an argument's
            return self._each_alone(batch, error)
        yield from self._report(batch)
        refused = Refused(FencedError(reason=str(error), may_have_run=False))
        return [refused] * len(batch.positions)

    def _report(self, batch: _PodBatch, died: Exception | None = None) -> Operation[None]:
        uid = self.asked[batch.positions[0]][0]
        yield from operations.failed(self.session, uid, self.service, batch.link, died)

    def _apart(self, batch: _PodBatch, position: int, answer: Any) -> Any:
        """Keep an error that a user's code met apart from verdicts on its call."""
        if type(answer) is not Raised or not isinstance(answer.error, RouteError):
            return answer
        if isinstance(answer.error, UnpicklableError):  # the pod's own word on this call
            return answer
        ids = self._ids(batch, position)
        return Raised(NestedCallError(method=self.method, error=answer.error, **ids))

    def send_again(self, outcomes: list[Any]) -> None:
        """Send those again that were refused, each by itself."""
        for position, answer in enumerate(outcomes):
            if type(answer) is Refused:
                outcomes[position] = self._sent_alone(position, answer)
            elif type(answer) is SendAgain:
                outcomes[position] = self._sent_alone(position)

    def taken(self, outcomes: list[Any]) -> Operation[None]:
        """Put the outcomes of those that were sent by themselves in place."""
        alone = {place: one for place, one in enumerate(outcomes) if type(one) is Outgoing}
        try:
            for position, made in alone.items():
                outcomes[position] = yield from _kept(_outcome(self.session.dispatcher, made))
        finally:
            for made in alone.values():
                self.session.dispatcher.give_up(made)

    def _sent_alone(self, position: int, refused: Refused | None = None) -> Outgoing:
        """Send one call by itself; it has its error if that, or its refusal, can't be followed."""
        uid, args, kwargs = self.asked[position]
        service, name = self.service, self.session.namespace.name
        asked, how = arguments(args, kwargs), (self.idempotent, self.deadline)
        made = Outgoing(name, service, uid, self.method, *asked, *how, self.chain)
        try:
            if refused is not None:
                link, made.may_have_run = self.links[uid], may_have_run(refused)
                made.min_epoch = follow(
                    self.session, uid, service, link, refused, idempotent=self.idempotent
                )
            self.session.dispatcher.send(made)
        except Exception as error:  # noqa: BLE001 - one call's error is its outcome
            made.error = error
        return made
