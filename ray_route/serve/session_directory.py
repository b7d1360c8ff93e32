"""A request router's way to the directory. Never blocks the event loop that it is used on.

The request router itself travels by value, with globals of its own in every process; what a
process shares (the session with its caches) is reached from here.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, NamedTuple

import ray

from ray_route.client import operations
from ray_route.client.session import NoSuchActorError, Session
from ray_route.client.sessions import open_session_async
from ray_route.clock import Deadline
from ray_route.config import RouteConfig
from ray_route.errors import PodUnavailableError
from ray_route.model import Life, Link, check_name
from ray_route.runtime.waiting import Operation, run_async
from ray_route.serve import replica_agent
from ray_route.serve.use_reports import UseReports

logger = logging.getLogger(__name__)

_OPEN_S = 60.0
_ENLIST_RETRY_S = 1.0
_JOIN_S = 3.0
_JOIN_POLL_S = 0.02
_REPORT_SHARE = 1 / 10


class Home(NamedTuple):
    """Where a session lives: its link, and the name of that pod's Ray actor."""

    link: Link
    actor: str


class SessionDirectory:
    """One router's view of one service. Belongs to one event loop."""

    def __init__(
        self, namespace: str, service: str, redis_url: str | None, options: dict[str, Any]
    ) -> None:
        self.namespace = check_name("namespace", namespace)
        self.service = check_name("service", service)
        RouteConfig.of(options)
        self._redis_url = redis_url
        self._options = options
        self._session: Session | None = None
        self._opening: asyncio.Task[Session] | None = None
        self._settling: asyncio.Task[Session] | None = None
        self._enlisting: set[asyncio.Task[None]] = set()
        self._failure_reports: dict[tuple[int, int], asyncio.Task[Any]] = {}
        self._use_reports: dict[str, UseReports] = {}
        self._died: set[str] = set()

    # Sessions.

    def near(self, uid: str) -> Home | None:
        """Return the home that this process knows of and may believe: no I/O."""
        session = self._session
        if session is None:
            return None
        link = session.near.get(self.service, uid)
        if link is None:
            return None
        record = session.table.get(self.service, link.pod)
        if record is None or record.actor in self._died:
            return None
        self._report_use(record.actor, uid, link, _REPORT_SHARE * session.namespace.config.ttl_s)
        return Home(link, record.actor)

    async def home(self, uid: str, deadline: Deadline) -> Home:
        """Return a session's home, placing or relinking it.

        Raises what stands in the way, and `RouteTimeoutError` at the deadline.
        """
        session = await self._settled(deadline)
        home = await run_async(self._computed(session, uid, 0), deadline)
        if home.actor in self._died:
            await self._report_failure(session, home.link, deadline)
            home = await run_async(self._computed(session, uid, home.link.epoch + 1), deadline)
        self._report_use(home.actor, uid, home.link, 0)
        return home

    def _computed(self, session: Session, uid: str, min_epoch: int) -> Operation[Home]:
        link = yield from operations.compute(session, uid, self.service, min_epoch)
        try:
            record = yield from session.record(self.service, link)
        except NoSuchActorError as error:
            raise PodUnavailableError(
                reason=str(error),
                may_have_run=False,
                namespace=self.namespace,
                service=self.service,
                uid=uid,
                pod=link.pod,
            ) from error
        return Home(link, record.actor)

    async def _report_failure(self, session: Session, link: Link, deadline: Deadline) -> None:
        """Have the router look whether a pod whose actor Ray calls dead has ended; once for all."""
        key = (link.pod, link.incarnation)
        asked = self._failure_reports.get(key)
        if asked is None:
            operation = session.namespace.ask("report_failure", self.service, *key, died=True)
            asked = self._failure_reports[key] = asyncio.create_task(run_async(operation, deadline))
            asked.add_done_callback(lambda _: self._failure_reports.pop(key, None))
        await asyncio.shield(asked)

    def _report_use(self, actor: str, uid: str, link: Link, delay_s: float) -> None:
        use_reports = self._use_reports.get(actor)
        if use_reports is not None:
            use_reports.add(uid, link, delay_s)

    # Replicas.

    def meet(self, actor: str, handle: Any) -> None:
        """Have a replica join the service, unless that has been seen to."""
        if actor in self._use_reports:
            return

        async def tell(links: dict[str, Link]) -> None:
            session = await self._opened(Deadline.after(_OPEN_S))
            await handle.__ray_call__.remote(replica_agent.use, self._address(session), links)

        self._use_reports[actor] = UseReports(tell)
        task = asyncio.create_task(self._enlist(actor, handle))
        self._enlisting.add(task)
        task.add_done_callback(self._enlisting.discard)

    def forget(self, actor: str, *, died: bool = False) -> None:
        """Tell a replica nothing any more; route nothing to one that Ray calls dead."""
        self._use_reports.pop(actor, None)
        if died:
            self._died.add(actor)

    def may_serve(self, actor: str) -> bool:
        """True unless it is known that a replica holds no sessions any more."""
        if self._session is None:
            return True
        records = list(self._session.table.pods(self.service).values())
        return any(record.actor == actor and record.life is Life.ALIVE for record in records)

    async def _enlist(self, actor: str, handle: Any) -> None:
        while actor in self._use_reports:
            try:
                session = await self._opened(Deadline.after(_OPEN_S))
                await handle.__ray_call__.remote(replica_agent.enlist, self._address(session))
            except ray.exceptions.ActorDiedError:
                return
            except Exception as error:  # noqa: BLE001 - a replica that can't join gets nobody
                logger.warning("%s can't join %s yet: %s", actor, self.service, error)
                await asyncio.sleep(_ENLIST_RETRY_S)
            else:
                return

    def _address(self, session: Session) -> replica_agent.ServiceAddress:
        return replica_agent.ServiceAddress(self.namespace, self.service, session.namespace.url)

    # The session.

    async def _settled(self, deadline: Deadline) -> Session:
        """Return the session once the first replicas have joined.

        Else the first of them would get all sessions that wait at the start.
        """
        if self._settling is None:
            self._settling = asyncio.create_task(self._settle())
        if self._settling.done():
            return self._settling.result()
        return await _within(deadline, self._settling, f"the replicas of {self.service!r} to join")

    async def _settle(self) -> Session:
        try:
            session = await self._opened(Deadline.after(_OPEN_S))
        except BaseException:
            self._settling = None
            raise
        limit = Deadline.after(_JOIN_S)
        while True:
            joined = self._use_reports and all(map(self.may_serve, self._use_reports))
            if joined or limit.remaining() == 0:
                return session
            await asyncio.sleep(_JOIN_POLL_S)

    async def _opened(self, deadline: Deadline) -> Session:
        if self._session is not None:
            return self._session
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        return await _within(deadline, self._opening, f"namespace {self.namespace!r} to open")

    async def _open(self) -> Session:
        args = (self.namespace, self._redis_url, self._options, Deadline.after(_OPEN_S))
        try:
            self._session = await open_session_async(*args)
        finally:
            self._opening = None
        return self._session


async def _within(deadline: Deadline, task: asyncio.Task[Session], what: str) -> Session:
    """Wait for a task that others wait for too."""
    try:
        return await asyncio.wait_for(asyncio.shield(task), deadline.remaining())
    except asyncio.TimeoutError:
        deadline.check(what)
        raise
