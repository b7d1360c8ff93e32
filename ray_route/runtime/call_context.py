"""The call that the running code serves: calls that it makes inherit its deadline and its chain."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass
from functools import cache

import ray

from ray_route.clock import Deadline
from ray_route.model import check_duration
from ray_route.protocol.calls import Chain
from ray_route.runtime.joined_ray import joined_by_client

DEFAULT_TIMEOUT_S = 30.0

_MARK = 12


@dataclass(eq=False, slots=True)
class _Serving:
    """A call that is being served: until when, and whether it still is."""

    deadline: Deadline | None
    over: bool = False


_serving: ContextVar[_Serving | None] = ContextVar("ray_route_serving", default=None)


def seconds(timeout: float | None) -> float:
    """Return what a `timeout` argument stands for; raises `InvalidInputError`.

    None: what is left to the call that this code serves, or 30 s where it serves none.
    """
    if timeout is not None:
        return check_duration("timeout", timeout)
    serving = _serving.get()
    if serving is None or serving.deadline is None or serving.over:
        return DEFAULT_TIMEOUT_S
    return serving.deadline.remaining()


Served = tuple[_Serving, Token[_Serving | None]]


def begin_serving(deadline: Deadline | None) -> Served:
    """Have the code from here on serve a call of this deadline; end it with `end_serving`."""
    serving = _Serving(deadline)
    return serving, _serving.set(serving)


def end_serving(served: Served) -> None:
    """Have the code from here on serve what it served before.

    Tasks that the call has started and left behind inherit its deadline no more.
    """
    serving, token = served
    serving.over = True
    _serving.reset(token)


_chain: ContextVar[Chain] = ContextVar("ray_route_chain", default=())


def current_chain() -> Chain:
    """Return the turns within which the running code is called, as numbers; () outside of any.

    A call that comes back to a uid whose turn is among them is let in. Threads and executors do not
    know them by themselves: take this along, and use `in_chain` there.
    """
    return _chain.get()


@contextmanager
def in_chain(chain: Iterable[int]) -> Iterator[None]:
    """Have calls made within count as made within these turns; see `current_chain`."""
    token = begin_chain(tuple(chain))
    try:
        yield
    finally:
        end_chain(token)


def begin_chain(chain: Chain) -> Token[Chain]:
    """Have the code from here on run within these turns; end it with `end_chain`."""
    return _chain.set(chain)


end_chain = _chain.reset

Context = tuple[_Serving | None, Chain]


def context_here() -> Context:
    """Return what the running code serves, and within which turns."""
    return _serving.get(), _chain.get()


def go_back_to(context: Context) -> None:
    """Have the code from here on serve what `context_here` has told."""
    _serving.set(context[0])
    _chain.set(context[1])


# Between processes a deadline is a time of day, since a call may lie in a pod's queue for longer
# than its caller waits. It is exact on one node, which has one clock.


@cache
def node_mark() -> str:
    """Return a mark of this node, which no other is likely to have.

    By Ray Client there is none: Ray knows its server's node, which may not be this program's.
    """
    return "" if joined_by_client() else ray.get_runtime_context().get_node_id()[:_MARK]


def time_of(deadline: Deadline) -> float:
    """Return the time of day of a deadline, in seconds."""
    return time.time() + deadline.remaining()


def deadline_at(time_of_day: float) -> Deadline:
    """Return the deadline of a time of day; one that has passed has nothing left."""
    left_s = time_of_day - time.time()
    return Deadline.after(max(0.0, left_s))
