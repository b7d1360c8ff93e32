"""A request that has reached a replica, for as long as it runs there."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from ray_route.clock import Deadline
from ray_route.pod.gate import Gate
from ray_route.serve.names import session_uid
from ray_route.serve.statements import Statement, Way, stated


@dataclass
class Arrival:
    """A request that has reached this replica."""

    metadata: Any
    said: Statement | None
    session_id: str = ""
    in_body: bool = False
    is_home: bool | None = None
    gate: Gate | None = None
    """What it has entered, and is to leave."""
    deadline: Deadline | None = None
    """Until when its home is looked for."""

    @property
    def uid(self) -> str:
        """The uid of its session, if it has one."""
        return session_uid(self.session_id)

    @property
    def is_web_socket(self) -> bool:
        """True for a web socket, to which Serve gives this method."""
        return bool(self.metadata._http_method == "WS")  # noqa: SLF001 - nothing public says it

    def came(self, way: Way) -> bool:
        """True if it says that it came so."""
        return self.said is not None and self.said.way is way


_arrival: ContextVar[Arrival | None] = ContextVar("ray_route_arrival", default=None)


def arriving(metadata: Any) -> Arrival:
    """Take in a request, in its own context."""
    arrival = Arrival(metadata, stated(metadata))
    _arrival.set(arrival)
    return arrival


def arrived() -> Arrival | None:
    """Return the request that runs here; None outside of one, and where no door is."""
    return _arrival.get()
