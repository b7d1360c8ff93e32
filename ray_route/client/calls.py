"""Fenced calls: to the pod that owns the uid, and after it when it moves.

Written once for the sync and the async client, as steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray

from ray_route.client.operations import Operations
from ray_route.client.session import NoSuchActorError
from ray_route.clock import now
from ray_route.errors import (
    FencedError,
    InvalidInputError,
    NoAvailablePodError,
    PodUnavailableError,
)
from ray_route.metrics import CALL_REPEATS, CALL_SECONDS
from ray_route.model import Link, check_uid
from ray_route.pod.fenced import Header, Raised, Refused
from ray_route.steps import LifeEndedError, Pause, Remote, Steps

_GONE = (ray.exceptions.RayActorError, LifeEndedError)
_BACKOFF_S = 0.02
_MAX_BACKOFF_S = 0.5


def call(
    ops: Operations,
    uid: str,
    service: str,
    method: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    idempotent: bool,
    min_epoch: int = 0,
) -> Steps[Any]:
    """See `RouteClient.call`."""
    what = f"{method} on the pod of uid {uid!r} of {service!r}"
    attempt, begun_at = 0, now()
    while True:
        if attempt:
            yield Pause(_backoff_s(attempt), what)
        attempt += 1
        try:
            link = yield from ops.compute(uid, service, min_epoch)
            handle = yield from ops.session.handle(service, link)
        except NoAvailablePodError:
            if attempt == 1 and not min_epoch:
                raise
            continue  # its pod has just gone; another may be on its way
        except NoSuchActorError:
            min_epoch = yield from ops.failed(uid, service, link)
            continue
        header = [uid, link.epoch, link.incarnation, method]
        try:
            ref = handle._ray_route_call.remote(header, *args, **kwargs)
            result = yield Remote(ref, what, partial(ops.session.has_ended, service, link))
        except _GONE as error:
            if isinstance(error, ray.exceptions.RayTaskError):
                raise  # the user's code met it elsewhere
            min_epoch = yield from ops.failed(uid, service, link, error)
            if not idempotent:
                raise _unavailable(ops, uid, service, link, error) from error
            continue
        if type(result) is not Refused:
            ops.session.meter.observe(CALL_SECONDS, now() - begun_at, service)
            return result
        min_epoch = _follow(ops, uid, service, link, result, idempotent=idempotent)


def _follow(
    ops: Operations, uid: str, service: str, link: Link, refused: Refused, *, idempotent: bool
) -> int:
    """Return the epoch to ask for after a refusal; raise it if it can't be followed."""
    refusal = refused.error
    if not isinstance(refusal, FencedError) or (refusal.may_have_run and not idempotent):
        raise refusal
    ops.session.near.drop(service, uid, link.epoch)
    ops.session.meter.count(CALL_REPEATS, service, "fenced")
    return link.epoch + 1


def _unavailable(
    ops: Operations, uid: str, service: str, link: Link, error: Exception
) -> PodUnavailableError:
    first_line = str(error).partition("\n")[0]
    return PodUnavailableError(
        reason=f"{type(error).__name__}: {first_line}",
        may_have_run=True,
        **ops.named(service=service, uid=uid, pod=link.pod),
    )


def _backoff_s(attempt: int) -> float:
    return min(_BACKOFF_S * 2.0 ** (attempt - 1), _MAX_BACKOFF_S)


@dataclass(frozen=True, slots=True)
class _Load:
    """Calls that go to one pod together: their places in the caller's order."""

    link: Link
    places: list[int]


def call_many(
    ops: Operations,
    calls: Iterable[tuple[str, tuple[Any, ...]]],
    service: str,
    method: str,
    *,
    idempotent: bool,
) -> Steps[list[Any]]:
    """See `RouteClient.call_many`."""
    asked = [_checked(item) for item in calls]
    links = yield from ops.compute_many([uid for uid, _ in asked], service)
    outcomes: list[Any] = [links[uid] for uid, _ in asked]
    flights = []
    for load in _loads(outcomes):
        batch = [
            (
                (asked[place][0], outcomes[place].epoch, load.link.incarnation, method),
                asked[place][1],
            )
            for place in load.places
        ]
        flights.append((load, (yield from _send(ops, service, load.link, batch))))
    singly: list[int] = []
    for load, ref in flights:
        uids = [asked[place][0] for place in load.places]
        answers = yield from _landed(ops, service, load, uids, ref, idempotent=idempotent)
        for place, answer in zip(load.places, answers, strict=True):
            outcomes[place] = answer
            if type(answer) is Refused:
                singly.append(place)
    for place in sorted(singly):
        uid, args = asked[place]
        refused, link = outcomes[place], links[uid]
        try:
            least = _follow(ops, uid, service, link, refused, idempotent=idempotent)
            one = call(ops, uid, service, method, args, {}, idempotent=idempotent, min_epoch=least)
            outcomes[place] = yield from one
        except Exception as error:  # noqa: BLE001 - one call's error is its outcome
            outcomes[place] = error
    return [item.error if type(item) is Raised else item for item in outcomes]


def _checked(item: tuple[str, tuple[Any, ...]]) -> tuple[str, tuple[Any, ...]]:
    if not isinstance(item, tuple) or len(item) != 2 or not isinstance(item[1], tuple):
        raise InvalidInputError(
            argument="calls", value=item, reason="must hold pairs (uid, tuple of arguments)"
        )
    check_uid(item[0])
    return item


def _loads(links: list[Any]) -> list[_Load]:
    loads: dict[tuple[int, int], _Load] = {}
    for place, link in enumerate(links):
        if isinstance(link, Link):
            load = loads.setdefault((link.pod, link.incarnation), _Load(link, []))
            load.places.append(place)
    return list(loads.values())


def _send(
    ops: Operations, service: str, link: Link, batch: list[tuple[Header, tuple[Any, ...]]]
) -> Steps[Any]:
    """Send one pod its calls; return the reference of its answers, or the error instead."""
    try:
        handle = yield from ops.session.handle(service, link)
        return handle._ray_route_call_many.remote(batch)
    except Exception as error:  # noqa: BLE001 - other pods' calls have been sent by now
        return error


def _landed(
    ops: Operations, service: str, load: _Load, uids: list[str], ref: Any, *, idempotent: bool
) -> Steps[list[Any]]:
    """Wait for a pod's answers; if they don't come, answer for it."""
    if isinstance(ref, NoSuchActorError):  # none of them ran
        yield from ops.failed(uids[0], service, load.link)
        return [Refused(FencedError(reason=str(ref), may_have_run=False))] * len(uids)
    if isinstance(ref, Exception):
        return [Raised(ref)] * len(uids)
    try:
        what = f"{len(uids)} calls on pod {load.link.pod}"
        over = partial(ops.session.has_ended, service, load.link)
        answers: list[Any] = yield Remote(ref, what, over)
    except _GONE as died:
        yield from ops.failed(uids[0], service, load.link, died)
        if idempotent:
            return [Refused(FencedError(reason="its pod is gone", may_have_run=True))] * len(uids)
        return [Raised(_unavailable(ops, uid, service, load.link, died)) for uid in uids]
    except Exception as error:  # noqa: BLE001 - other pods' results count
        return [Raised(error)] * len(uids)
    else:
        return answers
