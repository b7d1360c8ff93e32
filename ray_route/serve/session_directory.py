"""A request router's way to the directory. Never blocks the event loop that it is used on.

The request router itself travels by value, with globals of its own in every process; what a
process shares (the session with its caches) is reached from here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
from typing import Any

import ray

from ray_route.client.session import Session
from ray_route.clock import Deadline
from ray_route.model import Link
from ray_route.serve import replica_agent
from ray_route.serve.homes import Homes, within
from ray_route.serve.replica_options import ReplicaOptions
from ray_route.serve.session_ids import InvalidSessionError
from ray_route.serve.statements import Home, Way, state
from ray_route.serve.use_reports import UseReports

logger = logging.getLogger(__name__)

_OPEN_S = 60.0
_ENLIST_RETRY_S = 1.0
_JOIN_S = 3.0
_JOIN_POLL_S = 0.02
_REPORT_SHARE = 1 / 10


class SessionDirectory:
    """One router's view of one service. Belongs to one event loop."""

    def __init__(
        self, namespace: str, service: str, redis_url: str | None, options: ReplicaOptions
    ) -> None:
        self._homes = Homes(namespace, service, redis_url, options.config)
        self._options = options
        self._ids = options.ids
        self._settling: asyncio.Task[Session] | None = None
        self._enlisting: set[asyncio.Task[None]] = set()
        self._use_reports: dict[str, UseReports] = {}
        self.late = self._homes.late
        self.may_serve = self._homes.may_serve

    # Sessions.

    def name(self, metadata: Any, args: Any) -> str:
        """Return a request's session id; empty: it has none that can be seen here.

        Raises `InvalidSessionError` to a handle's caller. A bad one by HTTP is answered by a
        replica, since of a router's errors Serve's proxy passes none on to the browser.
        """
        if not metadata.session_id and args:
            if not metadata.is_http_request:
                metadata.session_id = self._ids.in_argument(args) or ""
            elif self._ids and isinstance(args[0], bytes):  # as Serve's proxy has made it
                request = pickle.loads(args[0])  # noqa: S301 - see above
                with contextlib.suppress(InvalidSessionError):
                    metadata.session_id = self._ids.in_scope(request.asgi_scope) or ""
        return str(metadata.session_id)

    @property
    def replicas_name(self) -> bool:
        """True if replicas look for session ids that routers do not see: once they have joined."""
        return bool(self._ids)

    def near(self, uid: str) -> Home | None:
        """Return the home that this process knows of and may believe: no I/O."""
        home = self._homes.near(uid)
        if home is not None and self._homes.session is not None:
            ttl_s = self._homes.session.namespace.config.ttl_s
            self._report_use(home, uid, _REPORT_SHARE * ttl_s)
        return home

    async def home(self, uid: str, deadline: Deadline) -> Home:
        """Return a session's home, placing or relinking it.

        Raises what stands in the way, and `RouteTimeoutError` at the deadline.
        """
        await self.settled(deadline)
        home = await self._homes.find(uid, deadline)
        self._report_use(home, uid, 0)
        return home

    def state(self, metadata: Any, home: Home, *, spilled: bool) -> None:
        """Have a request tell its replica where its session lives."""
        state(metadata, home, Way.SPILLED if spilled else Way.HOME)

    def _report_use(self, home: Home, uid: str, delay_s: float) -> None:
        use_reports = self._use_reports.get(home.actor)
        if use_reports is not None:
            use_reports.add(uid, home.link, delay_s)

    # Replicas.

    def meet(self, actor: str, handle: Any) -> None:
        """Have a replica join the service, unless that has been seen to."""
        if actor in self._use_reports:
            return

        async def tell(links: dict[str, Link]) -> None:
            session = await self._homes.opened(Deadline.after(_OPEN_S))
            await handle.__ray_call__.remote(replica_agent.use, self._address(session), links)

        self._use_reports[actor] = UseReports(tell)
        task = asyncio.create_task(self._enlist(actor, handle))
        self._enlisting.add(task)
        task.add_done_callback(self._enlisting.discard)

    def forget(self, actor: str, *, died: bool = False) -> None:
        """Tell a replica nothing any more; route nothing to one that Ray calls dead."""
        self._use_reports.pop(actor, None)
        if died:
            self._homes.died(actor)

    async def _enlist(self, actor: str, handle: Any) -> None:
        while actor in self._use_reports:
            try:
                session = await self._homes.opened(Deadline.after(_OPEN_S))
                given = (self._address(session), self._options)
                await handle.__ray_call__.remote(replica_agent.enlist, *given)
            except ray.exceptions.ActorDiedError:
                return
            except Exception as error:  # noqa: BLE001 - a replica that can't join gets nobody
                logger.warning("%s can't join %s yet: %s", actor, self._homes.service, error)
                await asyncio.sleep(_ENLIST_RETRY_S)
            else:
                return

    def _address(self, session: Session) -> replica_agent.ServiceAddress:
        homes = self._homes
        return replica_agent.ServiceAddress(homes.namespace, homes.service, session.namespace.url)

    async def joined(self, deadline: Deadline) -> None:
        """Wait until some replica has joined; raise `RouterUnavailableError` at the deadline."""
        await self.settled(deadline)
        while not any(map(self.may_serve, self._use_reports)):
            if deadline.remaining() == 0:
                raise self.late(None, "no replica has joined", deadline.timeout_s)
            await asyncio.sleep(_JOIN_POLL_S)

    async def settled(self, deadline: Deadline) -> None:
        """Wait until the first replicas have joined.

        Else the first of them would get all sessions that wait at the start.
        """
        if self._settling is None:
            self._settling = asyncio.create_task(self._settle())
        if self._settling.done():
            self._settling.result()
            return
        await within(deadline, self._settling, f"the replicas of {self._homes.service!r} to join")

    async def _settle(self) -> Session:
        try:
            session = await self._homes.opened(Deadline.after(_OPEN_S))
        except BaseException:
            self._settling = None
            raise
        limit = Deadline.after(_JOIN_S)
        while True:
            joined = self._use_reports and all(map(self.may_serve, self._use_reports))
            if joined or limit.remaining() == 0:
                return session
            await asyncio.sleep(_JOIN_POLL_S)
