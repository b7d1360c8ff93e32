"""What a client can do, written once for the sync and the async client.

Every operation is a generator of steps (see `steps`): it says what to wait for, and the client
that runs it decides how.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import ray

from ray_route.client.batch import BatchOptions, look_up
from ray_route.client.coalesce import Load
from ray_route.client.session import NoSuchActorError, Session
from ray_route.clock import Deadline, now
from ray_route.errors import (
    PodRestartingError,
    RouteError,
    RouterUnavailableError,
)
from ray_route.metrics import CALL_REPEATS
from ray_route.model import (
    DrainProgress,
    Explanation,
    Link,
    LinkedPods,
    Pod,
    check_duration,
    check_name,
    check_pod,
    check_uid,
    check_uids,
    listed,
)
from ray_route.steps import Blocking, Pause, Remote, Shared, Steps
from ray_route.wire import pack_question

# Many uids: the router works on a call for about 8 ms, and answers others in between.
_UIDS_PER_CALL = 1_000
_CALLS_IN_FLIGHT = 2
_BACKOFF_S = 0.02
_DRAIN_POLL_S = 0.1
_RESTART_POLL_S = 0.1
_MAX_BACKOFF_S = 0.5


@dataclass(frozen=True, slots=True)
class _Asked:
    """A call to the router that is under way; leases count from `asked_at`."""

    service: str
    wanted: dict[str, int]
    question: bytes
    ref: Any
    asked_at: float


class Operations:
    """The client's methods as steps."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def named(self, **ids: Any) -> dict[str, Any]:
        """Ids for an error."""
        return {"namespace": self.session.namespace, **ids}

    # One uid.

    def compute(self, uid: str, service: str, min_epoch: int = 0) -> Steps[Link]:
        """See `RouteClient.compute_linked_pod`."""
        hit = self.cached(uid, service, min_epoch)
        if hit is not None:
            return hit
        while True:
            answer = yield from self._shared(self.session.computing.board, uid, service, min_epoch)
            if isinstance(answer, PodRestartingError):
                yield Pause(_RESTART_POLL_S, f"pod {answer.pod} of {service!r} to restart")
            elif isinstance(answer, RouteError):
                raise answer
            else:
                return answer  # type: ignore[no-any-return]

    def get(self, uid: str, service: str) -> Steps[Link | None]:
        """See `RouteClient.get_linked_pod`."""
        hit = self.cached(uid, service)
        if hit is not None:
            return hit
        answer = yield from self._shared(self.session.finding.board, uid, service, 0)
        if isinstance(answer, RouteError):
            raise answer
        return answer  # type: ignore[no-any-return]

    def _shared(
        self, board: Callable[[str, str, int], Load], uid: str, service: str, min_epoch: int
    ) -> Steps[Any]:
        """Ask the router together with whoever else asks now; again while it is restarted."""
        what = f"the router's answer about uid {uid!r} of {service!r}"
        backoff_s = _BACKOFF_S
        while True:
            try:
                return (yield Shared(board(service, uid, min_epoch), what))[uid]
            except (ray.exceptions.RayActorError, RouterUnavailableError):
                yield Pause(backoff_s, what)
                backoff_s = min(2 * backoff_s, _MAX_BACKOFF_S)
                yield Blocking(self.session.find_router, what)

    def cached(self, uid: str, service: str, min_epoch: int = 0) -> Link | None:
        """See `RouteClient.get_linked_in_cache`."""
        hit = self.session.near.get(service, uid, min_epoch)
        if hit is None:  # what is in the cache was valid
            check_uid(uid)
            check_name("service", service)
        return hit

    def stored(self, uid: str, service: str) -> Steps[Link | None]:
        """See `RouteClient.get_linked_pod_not_cache`."""
        check_uid(uid)
        check_name("service", service)
        links = yield from self._read(uid, [service])
        return links[0]

    def cached_or_persistent(self, uid: str, service: str) -> Steps[Link | None]:
        """See `RouteClient.get_linked_pod_in_cache_or_if_persist`."""
        hit = self.cached(uid, service)
        if hit is not None:
            return hit
        asked_at = now()
        link = yield from self.stored(uid, service)
        if link is None or not link.persistent:
            return None
        self.session.keep(service, {uid: link}, asked_at)
        return link

    def _read(self, uid: str, services: list[str]) -> Steps[list[Link | None]]:
        shard = self.session.keys.shard(uid)
        return (yield from self.session.read(shard, [(service, uid) for service in services]))

    def expire(self, uid: str, service: str) -> Steps[Link | None]:
        """See `RouteClient.cache_expired`."""
        check_uid(uid)
        check_name("service", service)
        near = self.session.near.drop(service, uid)
        routers = yield from self.session.ask("drop", service, uid)
        return near or routers

    def set_cache(self, uid: str, service: str, link: Link) -> Steps[Link | None]:
        """See `RouteClient.set_cache`."""
        previous = self.cached(uid, service)
        asked_at = now()
        held = yield from self.stored(uid, service)
        if held == link:
            lease_s = min(held.lease_s, link.lease_s)
            verified = Link(held.pod, held.incarnation, held.epoch, held.persistent, lease_s)
            self.session.near.put(service, uid, verified, asked_at)
        return previous

    def set_if_absent(self, uid: str, service: str, pod: int, *, persistent: bool) -> Steps[Link]:
        """See `RouteClient.set_linked_pod_if_absent`."""
        check_uid(uid)
        check_name("service", service)
        check_pod(pod)
        asked_at = now()
        link: Link = yield from self.session.ask(
            "set_if_absent", service, uid, pod, persistent=persistent
        )
        self.session.keep(service, {uid: link}, asked_at)
        return link

    def move(self, uid: str, service: str, pod: int, timeout_s: float) -> Steps[Link]:
        """See `RouteClient.move`."""
        check_uid(uid)
        check_name("service", service)
        check_pod(pod)
        asked_at = now()
        link: Link = yield from self.session.ask(
            "set_link", service, uid, pod, persistent=None, timeout_s=timeout_s
        )
        self.session.near.drop(service, uid, link.epoch - 1)
        self.session.keep(service, {uid: link}, asked_at)
        return link

    def link_service(self, uid: str) -> Steps[dict[str, Link]]:
        """See `RouteClient.get_link_service`."""
        check_uid(uid)
        session = self.session
        services = yield Blocking(session.services, f"Redis at {session.url.address}")
        if not services:
            return {}
        links = yield from self._read(uid, services)
        pairs = zip(services, links, strict=True)
        return {service: link for service, link in pairs if link is not None}

    # Many uids.

    def compute_many(self, uids: Iterable[str], service: str) -> Steps[dict[str, Any]]:
        """See `RouteClient.compute_linked_pods`."""
        wanted = check_uids(uids)
        check_name("service", service)
        session = self.session
        answers: dict[str, Any] = session.near.get_all(service, dict.fromkeys(wanted, 0))
        missing = [uid for uid, link in answers.items() if link is None]
        if len(missing) > _UIDS_PER_CALL:
            # Shard by shard: a call then is a few scripts of many uids, not 256 of a few.
            missing.sort(key=session.keys.shard)
        under_way: deque[_Asked] = deque()
        for start in range(0, len(missing), _UIDS_PER_CALL):
            if len(under_way) == _CALLS_IN_FLIGHT:
                answers.update((yield from self._computed(under_way.popleft())))
            some = dict.fromkeys(missing[start : start + _UIDS_PER_CALL], 0)
            under_way.append(self._asked(service, some))
        while under_way:
            answers.update((yield from self._computed(under_way.popleft())))
        return answers

    def _asked(self, service: str, wanted: dict[str, int]) -> _Asked:
        session = self.session
        question = pack_question(service, wanted, session.node)
        asked_at = now()
        return _Asked(service, wanted, question, session.router.compute.remote(question), asked_at)

    def _computed(self, asked: _Asked) -> Steps[dict[str, Any]]:
        """Wait for one call's answers; ask again if the router was not there."""
        session, asked_at = self.session, asked.asked_at
        what = f"the router's answers about {len(asked.wanted)} uids of {asked.service!r}"
        try:
            packed = yield Remote(asked.ref, what)
        except (ray.exceptions.RayActorError, RouterUnavailableError):
            asked_at = now()
            packed = yield from session.ask("compute", asked.question)
        return session.take(asked.service, asked.wanted, packed, asked_at)

    def batch(
        self, uids: Iterable[str], service: str, deadline: Deadline, options: BatchOptions
    ) -> Steps[LinkedPods]:
        """See `RouteClient.batch_get_linked_pod`."""
        check_name("service", service)
        wanted = listed(uids)
        return (yield from look_up(self.session, service, wanted, deadline, options))

    # Pods.

    def pods(self, service: str) -> Steps[dict[int, Pod]]:
        """See `RouteClient.pods`."""
        check_name("service", service)
        pods: dict[int, Pod] = yield from self.session.ask("pods", service)
        return pods

    def begin_drain(self, service: str, pod: int, deadline_s: float, *, go_on: bool) -> Steps[None]:
        """Begin to drain a pod, unless that is under way."""
        check_name("service", service)
        check_pod(pod)
        check_duration("deadline_s", deadline_s)
        yield from self.session.ask("drain", service, pod, deadline_s, go_on=go_on)

    def watch_drain(
        self, service: str, pod: int, deadline_s: float, *, go_on: bool
    ) -> Steps[DrainProgress]:
        """Return how far a drain has come, a moment later; take it up again with a new router."""
        what = f"the drain of pod {pod} of {service!r}"
        while True:
            yield Pause(_DRAIN_POLL_S, what)
            progress: DrainProgress | None = yield from self.session.ask(
                "drain_progress", service, pod
            )
            if progress is not None:
                return progress
            yield from self.begin_drain(service, pod, deadline_s, go_on=go_on)

    def sweep(self, service: str) -> Steps[int]:
        """See `RouteClient.sweep`."""
        check_name("service", service)
        moved: int = yield from self.session.ask("sweep", service)
        return moved

    def explain(self, uid: str, service: str) -> Steps[Explanation]:
        """See `RouteClient.explain`."""
        check_uid(uid)
        check_name("service", service)
        explanation: Explanation = yield from self.session.ask("explain", service, uid)
        return explanation

    def actor(self, uid: str, service: str) -> Steps[Any]:
        """See `RouteClient.actor`."""
        min_epoch, what = 0, f"the actor of uid {uid!r} of {service!r}"
        while True:
            link = yield from self.compute(uid, service, min_epoch)
            try:
                return (yield from self.session.handle(service, link))
            except NoSuchActorError:
                min_epoch = yield from self.failed(uid, service, link)
                yield Pause(_BACKOFF_S, what)

    def failed(
        self, uid: str, service: str, link: Link, error: Exception | None = None
    ) -> Steps[int]:
        """Have the router look into a pod that could not be reached; return the min_epoch."""
        self.session.near.drop(service, uid, link.epoch)
        self.session.drop_handle(service, link)
        self.session.meter.count(CALL_REPEATS, service, "unreachable")
        died = isinstance(error, ray.exceptions.ActorDiedError)
        yield from self.session.ask(
            "report_failure", service, link.pod, link.incarnation, died=died
        )
        return link.epoch + 1
