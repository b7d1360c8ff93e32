"""What a client can do, written once for the sync and the async client.

Every operation is a generator (see `runtime.waiting`) on a session: it says what to wait for, and
the client that runs it decides how.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import ray

from ray_route.client.coalescer import Batch, SharedAnswer
from ray_route.client.lookups import Lookups, Lost
from ray_route.client.pods import Pods
from ray_route.client.session import NoSuchActorError, Session
from ray_route.clock import Deadline, now
from ray_route.errors import (
    LostWritesError,
    PodRestartingError,
    RouteError,
    RouterUnavailableError,
)
from ray_route.model import (
    DrainProgress,
    Explanation,
    Link,
    Pod,
    RoutingState,
    check_duration,
    check_name,
    check_pod,
    check_uid,
)
from ray_route.runtime.metrics import CALL_REPEATS
from ray_route.runtime.waiting import INLINE_S, Blocking, Operation, Pause

_BACKOFF_S = 0.02
_DRAIN_POLL_S = 0.1
# A router ends a drain at its deadline, and gives the pod back then.
_VERDICT_S = 0.7
_RESTART_POLL_S = 0.1


# One uid.


def compute(session: Session, uid: str, service: str, min_epoch: int = 0) -> Operation[Link]:
    """See `RouteClient.compute_linked_pod`."""
    hit = cached(session, uid, service, min_epoch)
    if hit is not None:
        return hit
    while True:
        answer = yield from _answer(session, session.computing, uid, service, min_epoch)
        if isinstance(answer, PodRestartingError):
            yield Pause(_RESTART_POLL_S, f"pod {answer.pod} of {service!r} to restart")
        elif isinstance(answer, RouteError):
            raise answer
        else:
            return answer  # type: ignore[no-any-return]


def get(session: Session, uid: str, service: str) -> Operation[Link | None]:
    """See `RouteClient.get_linked_pod`."""
    hit = cached(session, uid, service)
    if hit is not None:
        return hit
    answer = yield from _answer(session, session.finding, uid, service, 0)
    if isinstance(answer, RouteError):
        raise answer
    return answer  # type: ignore[no-any-return]


class _Looked(NamedTuple):
    """Wait for what Redis says of a uid: a link, the batch of the router's answers, or `Lost`."""

    session: Session
    lookups: Lookups
    service: str
    uid: str

    def wait(self, deadline: Deadline) -> Any:
        """Read it here if nobody else reads now, and if the deadline can't pass meanwhile."""
        if deadline.remaining() > INLINE_S:
            answer = self.lookups.look_here(self.service, self.uid)
            if answer is not None:
                return answer
        return self._shared().wait(deadline)[self.uid]

    async def wait_async(self, deadline: Deadline) -> Any:
        """Have it read, together with whatever else is asked in this tick of the loop."""
        return (await self._shared().wait_async(deadline))[self.uid]

    def _shared(self) -> SharedAnswer:
        address = self.session.namespace.url.address
        what = f"Redis at {address} about uid {self.uid!r} of {self.service!r}"
        batch = self.lookups.reading.join(self.service, self.uid)
        return SharedAnswer(batch, what, self.session.namespace.check_here)


def _answer(
    session: Session, lookups: Lookups, uid: str, service: str, min_epoch: int
) -> Operation[Any]:
    """Look a uid up in Redis; what that does not tell, have the router decide.

    Whoever has just been refused, and wants a higher epoch, asks the router. Who asks for a uid of
    a lost shard waits for its recovery: by himself, so that nobody else does.
    """
    batch = None
    if min_epoch == 0 and session.may_know(service):
        answer = yield _Looked(session, lookups, service, uid)
        if isinstance(answer, Link):
            return answer
        if isinstance(answer, Lost):
            yield from session.recover([uid])
        else:
            batch = answer
    while True:
        answer = yield from _decided(session, lookups, batch, uid, service, min_epoch)
        if not isinstance(answer, LostWritesError):
            return answer
        batch = None
        yield from session.recover([uid])


class _Decided(NamedTuple):
    """Wait for the router's answer about a uid; raises the one that it can't tell yet."""

    answers: SharedAnswer
    uid: str

    def wait(self, deadline: Deadline) -> Any:
        """Wait in the calling thread."""
        return self._own(self.answers.wait(deadline))

    async def wait_async(self, deadline: Deadline) -> Any:
        """Wait on the running event loop."""
        return self._own(await self.answers.wait_async(deadline))

    def _own(self, answers: Any) -> Any:
        answer = answers[self.uid]
        if isinstance(answer, RouterUnavailableError):
            raise answer
        return answer


def _decided(
    session: Session, lookups: Lookups, batch: Batch | None, uid: str, service: str, min_epoch: int
) -> Operation[Any]:
    """Wait for the router's answer about a uid; ask again if the router could not tell."""
    batches = iter([batch])

    def send(what: str) -> _Decided:
        joined = next(batches, None) or lookups.deciding.join(service, uid, min_epoch)
        return _Decided(SharedAnswer(joined, what, session.namespace.check_here), uid)

    what = f"the router's answer about uid {uid!r} of {service!r}"
    return (yield from session.namespace.until_answered(send, what))


def cached(session: Session, uid: str, service: str, min_epoch: int = 0) -> Link | None:
    """See `RouteClient.get_linked_in_cache`."""
    hit = session.near.get(service, uid, min_epoch)
    if hit is None:  # what is in the cache was valid
        check_uid(uid)
        check_name("service", service)
    return hit


def stored(session: Session, uid: str, service: str) -> Operation[Link | None]:
    """See `RouteClient.get_linked_pod_not_cache`."""
    check_uid(uid)
    check_name("service", service)
    links = yield from _read(session, uid, [service])
    return links[0]


def cached_or_persistent(session: Session, uid: str, service: str) -> Operation[Link | None]:
    """See `RouteClient.get_linked_pod_in_cache_or_if_persist`."""
    hit = cached(session, uid, service)
    if hit is not None:
        return hit
    asked_at = now()
    link = yield from stored(session, uid, service)
    if link is None or not link.persistent:
        return None
    session.keep(service, {uid: link}, asked_at)
    return link


def _read(session: Session, uid: str, services: list[str]) -> Operation[list[Link | None]]:
    shard = session.namespace.keys.shard(uid)
    return (yield from session.namespace.read(shard, [(service, uid) for service in services]))


def expire(session: Session, uid: str, service: str) -> Operation[Link | None]:
    """See `RouteClient.cache_expired`."""
    check_uid(uid)
    check_name("service", service)
    near = session.near.drop(service, uid)
    routers = yield from session.namespace.ask("drop", service, uid)
    return near or routers


def set_cache(session: Session, uid: str, service: str, link: Link) -> Operation[Link | None]:
    """See `RouteClient.set_cache`."""
    previous = cached(session, uid, service)
    asked_at = now()
    held = yield from stored(session, uid, service)
    if held == link:
        lease_s = min(held.lease_s, link.lease_s)
        verified = Link(held.pod, held.incarnation, held.epoch, held.persistent, lease_s)
        session.near.put(service, uid, verified, asked_at)
    return previous


def set_if_absent(
    session: Session, uid: str, service: str, pod: int, *, persistent: bool
) -> Operation[Link]:
    """See `RouteClient.set_linked_pod_if_absent`."""
    check_uid(uid)
    check_name("service", service)
    check_pod(pod)
    asked_at = now()
    link: Link = yield from session.namespace.ask(
        "set_if_absent", service, uid, pod, persistent=persistent
    )
    session.keep(service, {uid: link}, asked_at)
    return link


def move(session: Session, uid: str, service: str, pod: int, timeout_s: float) -> Operation[Link]:
    """See `RouteClient.move`."""
    check_uid(uid)
    check_name("service", service)
    check_pod(pod)
    asked_at = now()
    link: Link = yield from session.namespace.ask(
        "set_link", service, uid, pod, persistent=None, timeout_s=timeout_s
    )
    session.near.drop(service, uid, link.epoch - 1)
    session.keep(service, {uid: link}, asked_at)
    return link


def remove(
    session: Session, uid: str, service: str, after_s: float, timeout_s: float
) -> Operation[bool]:
    """See `RouteClient.remove`."""
    check_uid(uid)
    check_name("service", service)
    if after_s != 0:
        check_duration("after_s", after_s)
    removed: bool = yield from session.namespace.ask(
        "remove_link", service, uid, None, after_s=after_s, timeout_s=timeout_s
    )
    session.near.drop(service, uid)
    return removed


def link_service(session: Session, uid: str) -> Operation[dict[str, Link]]:
    """See `RouteClient.get_link_service`."""
    check_uid(uid)
    services = yield Blocking(session.services, f"Redis at {session.namespace.url.address}")
    if not services:
        return {}
    links = yield from _read(session, uid, services)
    pairs = zip(services, links, strict=True)
    return {service: link for service, link in pairs if link is not None}


# Pods.


def pods(session: Session, service: str) -> Operation[dict[int, Pod]]:
    """See `RouteClient.pods`."""
    check_name("service", service)
    found: dict[int, Pod] = yield from session.namespace.ask("pods", service)
    return Pods(found)


@dataclass(slots=True)
class Drain:
    """A drain as the client that asked for it sees it.

    `found` is the pod's routing state before it, for a router that takes the drain up after
    another.
    """

    service: str
    pod: int
    deadline: Deadline
    go_on: bool
    found: RoutingState | None = None

    @property
    def is_late(self) -> bool:
        """True once its router should have ended it: a later drain may have a later deadline."""
        return not self.go_on and now() > self.deadline.at + _VERDICT_S


def begin_drain(
    session: Session, service: str, pod: int, deadline_s: float, *, go_on: bool
) -> Operation[Drain]:
    """Begin to drain a pod, or join the drain of it that is under way."""
    check_name("service", service)
    check_pod(pod)
    check_duration("deadline_s", deadline_s)
    drain = Drain(service, pod, Deadline.after(deadline_s), go_on)
    drain.found = yield from session.namespace.ask("drain", service, pod, deadline_s, go_on=go_on)
    return drain


def watch_drain(session: Session, drain: Drain) -> Operation[DrainProgress]:
    """Return how far a drain has come, a moment later; take it up again with a new router."""
    service, pod = drain.service, drain.pod
    while True:
        yield Pause(_DRAIN_POLL_S, f"the drain of pod {pod} of {service!r}")
        progress: DrainProgress | None = yield from session.namespace.ask(
            "drain_progress", service, pod
        )
        if progress is not None:
            return _by_then(progress, drain)
        left_s = drain.deadline.remaining()
        drain.found = yield from session.namespace.ask(
            "drain", service, pod, left_s, go_on=drain.go_on, found=drain.found
        )


def _by_then(progress: DrainProgress, drain: Drain) -> DrainProgress:
    """Return how far a drain has come; one's own deadline ends the watching."""
    if progress.done or not drain.is_late:
        return progress
    why = progress.notice or "its end is still to be written"
    problem = f"after {drain.deadline.timeout_s:g} s its drain goes on: {why}"
    return replace(progress, done=True, problem=problem)


def sweep(session: Session, service: str) -> Operation[int]:
    """See `RouteClient.sweep`."""
    check_name("service", service)
    moved: int = yield from session.namespace.ask("sweep", service)
    return moved


def explain(session: Session, uid: str, service: str) -> Operation[Explanation]:
    """See `RouteClient.explain`."""
    check_uid(uid)
    check_name("service", service)
    explanation: Explanation = yield from session.namespace.ask("explain", service, uid)
    return explanation


def actor(session: Session, uid: str, service: str) -> Operation[Any]:
    """See `RouteClient.actor`."""
    min_epoch, what = 0, f"the actor of uid {uid!r} of {service!r}"
    while True:
        link = yield from compute(session, uid, service, min_epoch)
        try:
            return (yield from session.handle(service, link))
        except NoSuchActorError:
            min_epoch = yield from failed(session, uid, service, link)
            yield Pause(_BACKOFF_S, what)


def failed(
    session: Session, uid: str, service: str, link: Link, error: Exception | None = None
) -> Operation[int]:
    """Have the router look into a pod that could not be reached; return the min_epoch."""
    session.near.drop(service, uid, link.epoch)
    session.drop_handle(service, link)
    session.meter.count(CALL_REPEATS, service, "unreachable")
    died = isinstance(error, ray.exceptions.ActorDiedError)
    yield from session.namespace.ask(
        "report_failure", service, link.pod, link.incarnation, died=died
    )
    return link.epoch + 1
