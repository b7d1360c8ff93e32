"""For whom the running code is called: what a user's method can ask."""

from __future__ import annotations

import contextvars
from dataclasses import dataclass, field
from typing import Protocol

from ray_route.clock import Deadline
from ray_route.protocol.calls import Chain, Header, chain_of
from ray_route.runtime.call_context import (
    Context,
    begin_chain,
    begin_serving,
    context_here,
    end_chain,
    end_serving,
    go_back_to,
)


@dataclass(frozen=True, slots=True)
class CurrentLink:
    """The uid that the running call is for, and the epoch under which this pod owns it.

    A store that the user's code writes to can refuse an epoch lower than the highest it has
    seen for the uid: then a pod that was fenced in mid-call can't overwrite its successor.
    """

    service: str
    uid: str
    pod: int
    incarnation: int
    epoch: int
    deadline: Deadline | None = field(default=None, repr=False, compare=False)

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the caller gives up, never negative; None if it has no deadline."""
        return None if self.deadline is None else self.deadline.remaining()


_current: contextvars.ContextVar[under | None] = contextvars.ContextVar(
    "ray_route_link", default=None
)


def current_link() -> CurrentLink | None:
    """Return the link under which the running code was called; None outside a fenced call."""
    serving = _current.get()
    return None if serving is None else serving.link


def served_here() -> tuple[under | None, Context]:
    """Return all that the running code knows of the call that it serves."""
    return _current.get(), context_here()


def serve_again(served: tuple[under | None, Context]) -> None:
    """Have the code from here on serve what `served_here` has told."""
    _current.set(served[0])
    go_back_to(served[1])


class _Agent(Protocol):
    service: str

    @property
    def pod(self) -> int: ...


class under:  # noqa: N801 - used as a function; a generator would take twice as long
    """Have the user's code within serve the call of a header, until its deadline.

    What it calls itself is within the turns of `chain`; by default those that the call came with.
    """

    __slots__ = ("_agent", "_chain", "_chained", "_due", "_header", "_pod", "_serving", "_token")

    def __init__(
        self, agent: _Agent, header: Header, due: Deadline | None, chain: Chain | None = None
    ) -> None:
        self._agent, self._pod = agent, agent.pod
        self._header = header
        self._due = due
        self._chain = chain_of(header) if chain is None else chain

    @property
    def link(self) -> CurrentLink:
        """What the user's code is told; made when it asks, which few calls do."""
        uid, epoch, incarnation = self._header[:3]
        return CurrentLink(self._agent.service, uid, self._pod, incarnation, epoch, self._due)

    def __enter__(self) -> None:
        self._token, self._serving = _current.set(self), begin_serving(self._due)
        self._chained = begin_chain(self._chain)

    def __exit__(self, *_: object) -> None:
        end_chain(self._chained)
        end_serving(self._serving)
        _current.reset(self._token)
