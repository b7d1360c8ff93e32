"""The door of a Serve replica: which requests of sessions it runs, refuses, or passes on.

A request that came by one of our routers says where its session lives, and costs no I/O. One that
did not (HAProxy, direct ingress, other routers) is looked up as a router would, once per session
and lease. With `on_stray="serve"` nothing waits for that; else a session's requests enter the
replica's gate like the calls of any pod, which holds off their session's move until they end.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ray.serve.context as serves_context

from ray_route.errors import FencedError
from ray_route.pod.agent import PodAgent
from ray_route.serve.arrival import Arrival, arriving
from ray_route.serve.homes import Homes
from ray_route.serve.replica_options import ReplicaOptions
from ray_route.serve.sightings import Sightings
from ray_route.serve.statements import Home, Way
from ray_route.serve.strays import Cause


class NotEnteredError(FencedError):
    """A request that was passed on to a replica has not entered there: it has not run."""


class Door:
    """Judges the requests that reach one replica. Belongs to the replica's event loop.

    Args:
        agent: of this replica.
        actor: the name of this replica's actor.
        homes: where sessions live.
        options: what the deployment wants.

    """

    def __init__(self, agent: PodAgent, actor: str, homes: Homes, options: ReplicaOptions) -> None:
        self._agent = agent
        self._actor = actor
        self._homes = homes
        self._seen = Sightings(agent, actor, homes)
        self.overlooked = self._seen.strays.overlooked
        self.configure(options)

    def configure(self, options: ReplicaOptions) -> None:
        """Take in what the deployment wants now."""
        self.options = options
        self.ids = options.ids
        self._seen.patience_s = options.patience_s

    @property
    def is_guarded(self) -> bool:
        """True if strays are not served."""
        return self.options.on_stray != "serve"

    # Seeing.

    def arriving(self, metadata: Any) -> None:
        """Take in a request, in its own context, before anything of it runs: no I/O."""
        arrival = arriving(metadata)
        if metadata.session_id:
            self._in_session(arrival, metadata.session_id)

    def name(self, arrival: Arrival, session_id: str, *, in_body: bool) -> None:
        """Take in the session of a request whose metadata do not tell it."""
        arrival.in_body = in_body
        context = serves_context._get_serve_request_context()  # noqa: SLF001 - see `sessions`
        named: Any = replace(context, session_id=session_id)
        serves_context._serve_request_context.set(named)  # noqa: SLF001 - the same
        arrival.metadata = replace(arrival.metadata, session_id=session_id)
        self._in_session(arrival, session_id)

    def _in_session(self, arrival: Arrival, session_id: str) -> None:
        arrival.session_id = session_id
        if not self.is_guarded:
            self._seen.look(arrival)

    # Entering.

    async def enter(self, arrival: Arrival) -> Home | None:
        """Let a request of a session in, until `leave`; return its home if it is to go there.

        Raises `FencedError` if it may do neither, and what its look-up raises.
        """
        if arrival.came(Way.SPILLED):
            self._seen.look(arrival)
            return None
        home = arrival.said.home if arrival.said else await self._seen.find(arrival)
        try:
            return await self._led(arrival, self._seen.cause(arrival), home)
        except FencedError as error:
            if arrival.came(Way.FORWARDED):
                raise error.told_as(NotEnteredError) from error
            raise

    async def enter_again(
        self, arrival: Arrival, home: Home, refused: NotEnteredError
    ) -> Home | None:
        """Do the same once the home that a request was passed on to has not let it in."""
        if self._seen.patience(arrival).remaining() == 0:
            told: NotEnteredError = getattr(refused, "cause", refused)  # Ray's wrapper has no facts
            raise told.told_as(FencedError) from refused
        home = await self._seen.find(arrival, home.link.epoch + 1)
        return await self._led(arrival, Cause.MOVED, home)

    async def _led(self, arrival: Arrival, cause: Cause, home: Home) -> Home | None:
        cause, home = await self._enter(arrival, cause, home)
        arrival.is_home = home.actor == self._actor
        if arrival.is_home:
            return None
        self._check(arrival, cause, home)
        self._seen.note(arrival, cause, "forwarded", home)
        return home

    def leave(self, arrival: Arrival) -> None:
        """End a request that was let in; nothing for others."""
        gate, arrival.gate = arrival.gate, None
        if gate is not None:
            gate.leave(arrival.uid)

    async def _enter(self, arrival: Arrival, cause: Cause, home: Home) -> tuple[Cause, Home]:
        """Enter the gate if this is the session's home; return its home, and why it is another."""
        while home.actor == self._actor:
            try:
                await self._through_gate(arrival, home)
                break
            except FencedError:
                if arrival.came(Way.FORWARDED) or self._seen.patience(arrival).remaining() == 0:
                    raise
            cause, home = Cause.MOVED, await self._seen.find(arrival, home.link.epoch + 1)
        return cause, home

    async def _through_gate(self, arrival: Arrival, home: Home) -> None:
        gate = self._agent.gate
        await gate.enter_async(arrival.uid, home.link.epoch, home.link.incarnation)
        arrival.gate = gate

    def _check(self, arrival: Arrival, cause: Cause, home: Home) -> None:
        """Raise the refusal of a stray that may not be passed on."""
        lives = f"its session lives on {home.actor}"
        reason = ""
        if self.options.on_stray != "forward":
            reason = lives
        elif arrival.came(Way.FORWARDED):
            reason = f"{lives}, and it has been passed on once"
        elif arrival.metadata.is_grpc_request or arrival.is_web_socket:
            reason = f"{lives}, and gRPC and web sockets are not passed on"
        if reason:
            self._seen.note(arrival, cause, "refused", home)
            raise self.refusal(arrival, home, reason)

    def refusal(self, arrival: Arrival, home: Home, reason: str) -> FencedError:
        """Make the error of a request that is not run."""
        return FencedError(
            reason=f"{reason}; this is {self._actor}",
            may_have_run=False,
            uid=arrival.uid,
            pod=home.link.pod,
            epoch=home.link.epoch,
            namespace=self._homes.namespace,
            service=self._homes.service,
        )
