"""Misses travel together: one call to the router under way, the rest wait for the next.

A lone miss leaves at once. What comes while a call is under way leaves together when its answer
is there, so the load sets the batch size and nobody waits for company.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from ray_route.clock import now

Send = Callable[[str, "dict[str, int]"], Any]
Keep = Callable[[str, "dict[str, Any]", float], None]

_MAX_UIDS = 5_000


@dataclass(slots=True)
class _Lane:
    """The misses of one service: those under way, and those that wait."""

    flying: dict[str, Future[Any]] = field(default_factory=dict)
    waiting: dict[str, Future[Any]] = field(default_factory=dict)
    min_epochs: dict[str, int] = field(default_factory=dict)


class Coalescer:
    """Turns single questions into shared calls. Thread-safe.

    `send` makes the call for one service and returns its `ObjectRef`; `keep` is handed every
    answer once, with the moment before its call was sent.
    """

    def __init__(self, send: Send, keep: Keep) -> None:
        self._send = send
        self._keep = keep
        self._lock = threading.Lock()
        self._lanes: dict[str, _Lane] = {}

    def ask(self, service: str, uid: str, min_epoch: int = 0) -> Future[Any]:
        """Return a future of the uid's answer; the future is shared with all who ask for it."""
        with self._lock:
            lane = self._lanes.setdefault(service, _Lane())
            flying = lane.flying.get(uid)
            if flying is not None and min_epoch == 0:
                return flying
            future = lane.waiting.setdefault(uid, Future())
            lane.min_epochs[uid] = max(min_epoch, lane.min_epochs.get(uid, 0))
            departing = self._board(lane)
        if departing:
            self._depart(service, lane, departing)
        return future

    def _board(self, lane: _Lane) -> dict[str, int]:
        """Move the next load from waiting to flying, unless one is under way."""
        if lane.flying or not lane.waiting:
            return {}
        uids = list(lane.waiting)[:_MAX_UIDS]
        lane.flying = {uid: lane.waiting.pop(uid) for uid in uids}
        return {uid: lane.min_epochs.pop(uid) for uid in uids}

    def _depart(self, service: str, lane: _Lane, wanted: dict[str, int]) -> None:
        asked_at = now()
        try:
            reply = self._send(service, wanted).future()
        except Exception as error:  # noqa: BLE001 - whoever waits must hear of it
            reply = Future()
            reply.set_exception(error)
        reply.add_done_callback(lambda done: self._land(service, lane, done, asked_at))

    def _land(self, service: str, lane: _Lane, reply: Future[Any], asked_at: float) -> None:
        with self._lock:
            landed, lane.flying = lane.flying, {}
            departing = self._board(lane)
        if departing:
            self._depart(service, lane, departing)
        try:
            answers = reply.result()
            self._keep(service, answers, asked_at)
            results = [answers[uid] for uid in landed]
        except Exception as error:  # noqa: BLE001 - whoever waits must hear of it
            for future in landed.values():
                future.set_exception(error)
            return
        for future, result in zip(landed.values(), results, strict=True):
            future.set_result(result)
