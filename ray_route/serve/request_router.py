"""The request router: sends every request of a session to that session's home replica.

Ray ships it by value, and whatever of this package it names, to every process that routes. So it
holds no state, and looks up what does (`session_directory`) where it has arrived.
"""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, Any

from ray.serve.request_router import (
    FIFOMixin,
    LocalityMixin,
    MultiplexMixin,
    PendingRequest,
    ReplicaID,
    RequestRouter,
    RunningReplica,
)

from ray_route.clock import Deadline
from ray_route.errors import (
    ConfigError,
    InvalidInputError,
    NoAvailablePodError,
    RouteError,
    UnsafeStoreError,
)
from ray_route.serve.names import service_name, session_uid

if TYPE_CHECKING:
    from ray_route.serve.session_directory import SessionDirectory
    from ray_route.serve.statements import Home

logger = logging.getLogger("ray.serve")

DEFAULT_NAMESPACE = "serve"
PATIENCE_S = 30.0


class StickyRequestRouter(FIFOMixin, LocalityMixin, MultiplexMixin, RequestRouter):
    """Routes every request of a session to that session's home in the ray_route directory.

    Requests without a session id take the less busy of two replicas, first come, first served.

    Args (`request_router_kwargs` of Serve's `RequestRouterConfig`):
        namespace: of the directory; default "serve".
        service: default "application.deployment".
        redis_url: as for `ray_route.connect`; better given as `RAY_ROUTE_REDIS_URL`, since
            Serve shows its configuration.
        when_full: what a request does whose home has no room: "wait", or "spill" to another
            replica for this once; the session stays.
        on_stray: what a replica does with a request whose session lives elsewhere: "serve" it
            (counted, and told once), "refuse" it, or "forward" it to its home.
        session_id_from: where requests that carry no session id of Serve's name theirs, by HTTP:
            header:NAME, cookie:NAME, query:NAME, path:/a/{session}, json:FIELD; by handles:
            argument:FIELD, a field of the first argument; the first found.
        body_limit_bytes: the largest body in which json:… is looked for.
        patience_s: how long a request waits for the directory before it fails.
        options: of `RouteConfig`, such as `ttl_s`.

    """

    def initialize_state(
        self,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        service: str | None = None,
        redis_url: str | None = None,
        when_full: str = "wait",
        patience_s: float = PATIENCE_S,
        **options: Any,
    ) -> None:
        """Take in the configuration. A wrong one is raised to every request of a session.

        Raised here, it would leave every request waiting for ever.
        """
        self._homes: dict[str, RunningReplica] = {}
        self._directory: SessionDirectory | None = None
        self._problem: Exception | None = None
        self._spills = when_full == "spill"
        self._patience_s = patience_s
        try:
            _check(when_full)
            named = service_name(self._deployment_id.app_name, self._deployment_id.name)
            options["patience_s"] = patience_s
            self._directory = _directory_here(namespace, service or named, redis_url, options)
        except Exception as problem:
            logger.exception("%s can't be routed by session", self._deployment_id)
            self._problem = problem

    # Replicas.

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Take in the replicas that Serve has. One that it is stopping serves its sessions yet."""
        super().update_replicas(replicas)
        if self._directory is None:
            return
        here = {replica.replica_id.to_full_id_str(): replica for replica in replicas}
        for actor in [name for name in self._homes if name not in here]:
            if not self._directory.may_serve(actor):
                del self._homes[actor]
                self._directory.forget(actor)
        self._homes.update(here)
        for actor, replica in here.items():
            # Serve's routers talk to their replicas by this handle too; the public way, a look-up
            # of the actor by name, would block the event loop.
            self._directory.meet(actor, replica._actor_handle)  # noqa: SLF001

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Take in that a replica has died: its sessions get new homes once that is proven."""
        super().on_replica_actor_died(replica_id)
        actor = replica_id.to_full_id_str()
        self._homes.pop(actor, None)
        if self._directory is not None:
            self._directory.forget(actor, died=True)

    # Requests.

    async def _choose_replica_for_request(
        self, pending_request: PendingRequest, *, is_retry: bool = False
    ) -> RunningReplica:
        """Return a session's home when that has room.

        Private in Ray, but overridden by Ray's own CapacityQueueRouter too. By way of
        `choose_replicas`, a look-up that awaits lets Ray hand requests to each other's replicas,
        or, as nested calls share an id, to nobody.
        """
        session_id = self._name(pending_request)
        if not session_id:
            await self._joined()
            return await super()._choose_replica_for_request(pending_request, is_retry=is_retry)
        uid, attempt = session_uid(session_id), 0
        deadline = Deadline.after(self._patience_s)
        while True:
            if attempt or is_retry:
                await self._backoff(attempt)
            found = await self._home(uid, deadline)
            if found is not None:
                deadline = Deadline.after(self._patience_s)
                home, replica = found
                chosen = await self._with_room(replica, attempt)
                if chosen is not None:
                    self._state(pending_request, home, spilled=chosen is not replica)
                    return chosen
            elif not self._replicas:
                await self._some_replica()
                deadline = Deadline.after(self._patience_s)
            attempt += 1

    def _name(self, pending_request: PendingRequest) -> str:
        """Return a request's session id; empty: it has none that can be seen here."""
        if self._directory is None:
            return pending_request.metadata.session_id
        return self._directory.name(pending_request.metadata, pending_request.args)

    def _state(self, pending_request: PendingRequest, home: Home, *, spilled: bool) -> None:
        assert self._directory is not None
        self._directory.state(pending_request.metadata, home, spilled=spilled)

    async def _joined(self) -> None:
        """Wait for replicas that have joined, if these look for session ids."""
        if self._directory is not None and self._directory.replicas_name:
            await self._directory.joined(Deadline.after(self._patience_s))

    async def _home(self, uid: str, deadline: Deadline) -> tuple[Home, RunningReplica] | None:
        """Return a session's home; None: not yet. Raise what does not pass, or not in time."""
        if self._directory is None:
            assert self._problem is not None
            raise self._problem
        try:
            home = self._directory.near(uid) or await self._directory.home(uid, deadline)
        except (ConfigError, InvalidInputError, UnsafeStoreError):
            raise
        except RouteError as error:
            waiting = not self._replicas and isinstance(error, NoAvailablePodError)
            if deadline.remaining() == 0 and not waiting:
                raise self._directory.late(uid, str(error), self._patience_s) from error
            return None
        replica = self._homes.get(home.actor)
        if replica is None and deadline.remaining() == 0:
            reason = f"Serve does not tell of its home, {home.actor}"
            raise self._directory.late(uid, reason, self._patience_s)
        return None if replica is None else (home, replica)

    async def _with_room(self, home: RunningReplica, attempt: int) -> RunningReplica | None:
        """Return the home if it has room, else another if requests may spill, else None."""
        if home.replica_id not in self._replicas:
            return home  # Serve is stopping it: it says itself whether it takes this one
        chosen = await self._select_from_candidate_replicas([home], attempt)
        if chosen is None and self._spills:
            others = [other for other in self._replicas_list if other is not home]
            some = random.sample(others, min(2, len(others)))
            chosen = await self._select_from_candidate_replicas(some, attempt)
        return chosen

    async def _some_replica(self) -> None:
        self._replicas_updated_event.clear()
        await self._replicas_updated_event.wait()

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Return a session's home, or two replicas to choose from for a request of none.

        For requests without a session, and for callers that only want to know the replica.
        """
        if pending_request is None or not pending_request.metadata.session_id:
            return self._two(self._able(candidate_replicas), pending_request)
        pending_request.routing_context.should_backoff = True
        try:
            uid = session_uid(pending_request.metadata.session_id)
            found = await self._home(uid, Deadline.after(self._patience_s))
        except Exception:
            logger.exception("the home of a session can't be found")
            return []
        return [] if found is None else [[found[1]]]

    def _able(self, candidates: list[RunningReplica]) -> list[RunningReplica]:
        """Return the replicas that look for session ids, if any do; else all."""
        directory = self._directory
        if directory is None or not directory.replicas_name:
            return candidates
        return [one for one in candidates if directory.may_serve(one.replica_id.to_full_id_str())]

    def _two(
        self, candidates: list[RunningReplica], pending_request: PendingRequest | None
    ) -> list[list[RunningReplica]]:
        if pending_request is not None and pending_request.metadata.multiplexed_model_id:
            ids = self.apply_multiplex_routing(pending_request)
        else:
            ids = self.apply_locality_routing(pending_request)
        some = [replica for replica in candidates if replica.replica_id in ids]
        return [random.sample(some, min(2, len(some)))] if some else []


def _check(when_full: str) -> None:
    if when_full not in ("wait", "spill"):
        raise ConfigError(
            option="when_full", reason=f"must be 'wait' or 'spill', not {when_full!r}"
        )


def _directory_here(
    namespace: str, service: str, redis_url: str | None, options: dict[str, Any]
) -> SessionDirectory:
    # Imported here, so that it is this process's own module, whose sessions and agents are shared.
    from ray_route.serve.replica_options import ReplicaOptions  # noqa: PLC0415 - see above
    from ray_route.serve.session_directory import SessionDirectory  # noqa: PLC0415 - see above

    return SessionDirectory(namespace, service, redis_url, ReplicaOptions.of(options))
