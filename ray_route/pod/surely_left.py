"""What a call leaves behind if it is interrupted: nothing."""

from __future__ import annotations

from typing import Protocol

from ray_route.pod.call_order import Place
from ray_route.pod.current_link import serve_again, served_here
from ray_route.pod.gate import Gate


class _Agent(Protocol):
    @property
    def joined(self) -> bool: ...

    @property
    def gate(self) -> Gate: ...


class surely_left:  # noqa: N801 - used as a function; a generator would take twice as long
    """Have a call within be served by nothing of it afterwards; and leave once more if it fails.

    For what is raised may have come at any line of the pod's own: while the call entered, and
    nobody had noted that, or while it left. To leave twice changes nothing.
    """

    __slots__ = ("_agent", "_call", "_place", "_served", "_uid")

    def __init__(self, agent: _Agent, uid: str, call: object, place: Place | None = None) -> None:
        self._agent = agent
        self._uid = uid
        self._call = call
        self._place = place

    def __enter__(self) -> None:
        self._served = served_here()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        serve_again(self._served)
        if kind is None:
            return
        if self._place is not None:
            self._place.leave()
        if self._agent.joined:
            self._agent.gate.leave(self._uid, self._call)
