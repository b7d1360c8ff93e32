"""Whether requests are where their sessions live: noted, and looked up where nobody has told."""

from __future__ import annotations

import asyncio
import contextlib

from ray_route.clock import Deadline
from ray_route.errors import RouteError
from ray_route.pod.agent import PodAgent
from ray_route.serve.arrival import Arrival
from ray_route.serve.homes import LASTING, Homes
from ray_route.serve.statements import Home, Statement, Way
from ray_route.serve.strays import Cause, Strays

_RETRY_S = 0.05
# Look-ups that nobody waits for; of more sessions at once, some go unnoticed.
_LOOKS = 1_000


class Sightings:
    """Notes which requests are at home on one replica. Belongs to the replica's event loop.

    `patience_s` is how long the look-ups of one request may take.
    """

    def __init__(self, agent: PodAgent, actor: str, homes: Homes) -> None:
        self._agent = agent
        self._actor = actor
        self._homes = homes
        self._looking: set[asyncio.Task[None]] = set()
        self.strays = Strays(homes.namespace, homes.service, actor)
        self.patience_s = 0.0

    def look(self, arrival: Arrival) -> None:
        """Note whether a request is at home, soon: it runs meanwhile."""
        if arrival.said is not None:
            self._heard(arrival, arrival.said)
        elif (home := self._homes.near(arrival.uid)) is not None:
            self._found(arrival, home)
        elif len(self._looking) < _LOOKS:
            task = asyncio.get_running_loop().create_task(self._look_up(arrival))
            self._looking.add(task)
            task.add_done_callback(self._looking.discard)

    def _heard(self, arrival: Arrival, said: Statement) -> None:
        here = said.home.actor == self._actor and said.way is not Way.SPILLED
        over = here and self._agent.joined and self._is_over(arrival.uid, said.home)
        arrival.is_home = here and not over
        if over:
            self.note(arrival, Cause.MOVED, "served", None)
        elif not here:
            self.note(arrival, self.cause(arrival), "served", said.home)

    def _is_over(self, uid: str, home: Home) -> bool:
        return self._agent.gate.admission.is_over(uid, home.link.epoch)

    async def _look_up(self, arrival: Arrival) -> None:
        with contextlib.suppress(RouteError):  # then it is not known
            self._found(arrival, await self.find(arrival))

    def _found(self, arrival: Arrival, home: Home) -> None:
        arrival.is_home = home.actor == self._actor
        if not arrival.is_home:
            self.note(arrival, self.cause(arrival), "served", home)

    def note(self, arrival: Arrival, cause: Cause, outcome: str, home: Home | None) -> None:
        """Take in a stray, and what became of it; without `home` it is not known."""
        where = "elsewhere by now" if home is None else home.actor
        self.strays.note(cause, outcome, arrival.uid, where)

    def cause(self, arrival: Arrival) -> Cause:
        """Return why a request is not at home, if nobody has moved its session."""
        if arrival.came(Way.SPILLED):
            return Cause.SPILLED
        if arrival.in_body:
            return Cause.BODY
        return Cause.BYPASSED if arrival.metadata.is_direct_ingress else Cause.UNROUTED

    def patience(self, arrival: Arrival) -> Deadline:
        """Return until when a request's home is looked for: from its first look-up on."""
        arrival.deadline = arrival.deadline or Deadline.after(self.patience_s)
        return arrival.deadline

    async def find(self, arrival: Arrival, min_epoch: int = 0) -> Home:
        """Look a session's home up; raise what does not pass, or not in time."""
        uid, deadline = arrival.uid, self.patience(arrival)
        while True:
            try:
                near = self._homes.near(uid) if min_epoch == 0 else None
                home = near or await self._homes.find(uid, deadline, min_epoch)
            except LASTING:
                raise
            except RouteError as error:
                if deadline.remaining() == 0:
                    raise self._homes.late(uid, str(error), self.patience_s) from error
            else:
                if home.link.epoch < min_epoch:  # it still holds, though its pod lets nobody in
                    await asyncio.sleep(_RETRY_S)
                return home
            await asyncio.sleep(_RETRY_S)
