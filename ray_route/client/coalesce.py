"""Misses travel together: one call to the router under way, the rest wait for the next.

A lone miss leaves at once; tasks of an event loop that miss in one tick leave together at its
end. What comes while a call is under way leaves together when its answer is there, so the load
sets the batch size and nobody waits for company.
"""

from __future__ import annotations

import threading
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ray_route.clock import now
from ray_route.landing import Landing

Send = Callable[[str, "dict[str, int]"], Any]
Take = Callable[[str, "dict[str, int]", Any, float], "dict[str, Any]"]

_MAX_UIDS = 5_000


@dataclass(eq=False, slots=True)
class Load:
    """What travels in one call: the uids, with the least epoch that each may have.

    Whoever boards must see to it that it leaves, by `depart` or `depart_soon`.
    """

    depart: Callable[[], None]
    wanted: dict[str, int] = field(default_factory=dict)
    answers: Landing[dict[str, Any]] = field(default_factory=Landing)
    _called_by: AbstractEventLoop | None = None

    def depart_soon(self, loop: AbstractEventLoop) -> None:
        """Leave when all tasks that run in this tick of a loop have had time to board."""
        if self._called_by is not loop:
            self._called_by = loop
            loop.call_soon(self.depart)


@dataclass(slots=True)
class _Lane:
    """The misses of one service: the load under way, and those that wait."""

    depart: Callable[[], None]
    flying: Load | None = None
    waiting: deque[Load] = field(default_factory=deque)

    def load_of(self, uid: str, min_epoch: int) -> Load:
        """Return the load that brings the uid's answer; board it if there is none."""
        if self.flying is not None and min_epoch == 0 and uid in self.flying.wanted:
            return self.flying
        for load in self.waiting:
            if uid in load.wanted:
                break
        else:
            load = self._room()
        load.wanted[uid] = max(min_epoch, load.wanted.get(uid, 0))
        return load

    def _room(self) -> Load:
        if not self.waiting or len(self.waiting[-1].wanted) >= _MAX_UIDS:
            self.waiting.append(Load(self.depart))
        return self.waiting[-1]

    def departing(self) -> Load | None:
        """Let the next load fly, unless one is under way."""
        if self.flying is not None or not self.waiting:
            return None
        self.flying = self.waiting.popleft()
        return self.flying


class Coalescer:
    """Turns single questions into shared calls. Thread-safe.

    `send` makes the call for one service and returns its `ObjectRef`; `take` is handed what was
    wanted, the reply, and the moment before the call was sent, and returns the answers.
    """

    def __init__(self, send: Send, take: Take) -> None:
        self._send = send
        self._take = take
        self._lock = threading.Lock()
        self._lanes: dict[str, _Lane] = {}

    def board(self, service: str, uid: str, min_epoch: int = 0) -> Load:
        """Return the load whose answers have the uid's among them, and those of its company.

        One future for a whole call: to hand it to a thousand who wait takes a thread one step.
        """
        with self._lock:
            lane = self._lanes.get(service)
            if lane is None:
                lane = self._lanes[service] = _Lane(partial(self._depart_next, service))
            return lane.load_of(uid, min_epoch)

    def _depart_next(self, service: str) -> None:
        lane = self._lanes[service]
        with self._lock:
            departing = lane.departing()
        if departing is not None:
            self._depart(service, lane, departing)

    def _depart(self, service: str, lane: _Lane, load: Load) -> None:
        asked_at = now()
        try:
            reply = self._send(service, load.wanted).future()
        except Exception as error:  # noqa: BLE001 - whoever waits must hear of it
            reply = Future()
            reply.set_exception(error)
        reply.add_done_callback(lambda done: self._land(service, lane, load, done, asked_at))

    def _land(
        self, service: str, lane: _Lane, load: Load, reply: Future[Any], asked_at: float
    ) -> None:
        answers, problem = self._taken(service, load, reply, asked_at)
        with self._lock:  # not before they are kept: who comes in between would ask again
            lane.flying = None
        self._depart_next(service)
        if problem is not None:
            load.answers.set_exception(problem)
        else:
            load.answers.set_result(answers)

    def _taken(
        self, service: str, load: Load, reply: Future[Any], asked_at: float
    ) -> tuple[dict[str, Any], Exception | None]:
        try:
            return self._take(service, load.wanted, reply.result(), asked_at), None
        except Exception as error:  # noqa: BLE001 - whoever waits must hear of it
            return {}, error
