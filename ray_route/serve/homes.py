"""Where sessions live: look-ups in the directory, with what this process knows. No replicas here.

Never blocks the event loop that it is used on.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ray_route.client import operations
from ray_route.client.session import NoSuchActorError, Session
from ray_route.client.sessions import open_session_async
from ray_route.clock import Deadline
from ray_route.config import RouteConfig
from ray_route.errors import (
    ConfigError,
    InvalidInputError,
    PodUnavailableError,
    RouterUnavailableError,
    UnsafeStoreError,
)
from ray_route.model import Life, Link, check_name
from ray_route.runtime.waiting import Operation, run_async
from ray_route.serve.statements import Home
from ray_route.store.url import StoreUrl

LASTING = (ConfigError, InvalidInputError, UnsafeStoreError)
"""Errors of a look-up that no waiting mends."""

_OPEN_S = 60.0


class Homes:
    """One process's view of one service's sessions. Belongs to one event loop."""

    def __init__(
        self,
        namespace: str,
        service: str,
        redis_url: str | StoreUrl | None,
        options: dict[str, Any],
    ) -> None:
        self.namespace = check_name("namespace", namespace)
        self.service = check_name("service", service)
        RouteConfig.of(options)
        self._redis_url = redis_url
        self._options = options
        self._opening: asyncio.Task[Session] | None = None
        self._failure_reports: dict[tuple[int, int], asyncio.Task[Any]] = {}
        self._died: set[str] = set()
        self.session: Session | None = None
        """None until somebody has waited for `opened`."""

    def near(self, uid: str) -> Home | None:
        """Return the home that this process knows of and may believe: no I/O."""
        session = self.session
        if session is None:
            return None
        link = session.near.get(self.service, uid)
        if link is None:
            return None
        record = session.table.get(self.service, link.pod)
        if record is None or record.actor in self._died:
            return None
        return Home(link, record.actor)

    async def find(self, uid: str, deadline: Deadline, min_epoch: int = 0) -> Home:
        """Return a session's home, placing or relinking it.

        Raises what stands in the way, and `RouteTimeoutError` at the deadline.
        """
        session = await self.opened(deadline)
        home = await run_async(self._computed(session, uid, min_epoch), deadline)
        if home.actor in self._died:
            await self._report_failure(session, home.link, deadline)
            home = await run_async(self._computed(session, uid, home.link.epoch + 1), deadline)
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

    def died(self, actor: str) -> None:
        """Take in that Ray calls a replica dead: its sessions get homes elsewhere once proven."""
        self._died.add(actor)

    def late(self, uid: str | None, reason: str, patience_s: float) -> RouterUnavailableError:
        """Make the error of a request that has waited long enough.

        Never a `TimeoutError`: what waits for Serve's answer takes that for its own.
        """
        return RouterUnavailableError(
            reason=f"{reason} (a request waits for {patience_s:g} s, its patience_s)",
            namespace=self.namespace,
            service=self.service,
            uid=uid,
        )

    def may_serve(self, actor: str) -> bool:
        """True unless it is known that a replica holds no sessions any more."""
        if self.session is None:
            return True
        records = list(self.session.table.pods(self.service).values())
        return any(record.actor == actor and record.life is Life.ALIVE for record in records)

    async def opened(self, deadline: Deadline) -> Session:
        """Return this process's session with the namespace; others may wait for it, too."""
        if self.session is not None:
            return self.session
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        return await within(deadline, self._opening, f"namespace {self.namespace!r} to open")

    async def _open(self) -> Session:
        args = (self.namespace, self._redis_url, self._options, Deadline.after(_OPEN_S))
        try:
            self.session = await open_session_async(*args)
        finally:
            self._opening = None
        return self.session


async def within(deadline: Deadline, task: asyncio.Task[Session], what: str) -> Session:
    """Wait for a task that others wait for too."""
    try:
        return await asyncio.wait_for(asyncio.shield(task), deadline.remaining())
    except asyncio.TimeoutError:
        raise deadline.passed(what) from None
