"""Misses travel together: one call to the router under way, the rest wait for the next.

A lone miss is sent at once; tasks of an event loop that miss in one tick are sent together at its
end. What comes while a call is under way is sent together when its answer is there, so the demand
sets the batch size and nobody waits for company.
"""

from __future__ import annotations

import asyncio
import threading
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ray_route.client.shared_future import SharedFuture
from ray_route.clock import Deadline, now
from ray_route.runtime.waiting import late, result_of

Send = Callable[[str, "dict[str, int]"], Any]
Take = Callable[[str, "dict[str, int]", Any, float], "dict[str, Any]"]

_MAX_UIDS = 5_000


@dataclass(eq=False, slots=True)
class Batch:
    """What travels in one call: the uids, with the least epoch that each may have.

    Whoever joins it must see to it that it is sent, by `send` or `send_soon`; `send` does nothing
    once it has been sent, or while it must wait for its turn.
    """

    send: Callable[[], None]
    wanted: dict[str, int] = field(default_factory=dict)
    answers: SharedFuture[dict[str, Any]] = field(default_factory=SharedFuture)
    _called_by: AbstractEventLoop | None = None

    def send_soon(self, loop: AbstractEventLoop) -> None:
        """Send it when all tasks that run in this tick of a loop have had time to join."""
        if self._called_by is not loop:
            self._called_by = loop
            loop.call_soon(self.send)


@dataclass(frozen=True, slots=True)
class SharedAnswer:
    """Wait for the answers to a batch, with all who joined it; giving up does not cancel them."""

    batch: Batch
    what: str

    def wait(self, deadline: Deadline) -> Any:
        """Wait in the calling thread."""
        self.batch.send()
        return result_of(self.batch.answers, self.what, deadline)

    async def wait_async(self, deadline: Deadline) -> Any:
        """Wait on the running event loop."""
        answers = self.batch.answers
        if not answers.done():
            self.batch.send_soon(asyncio.get_running_loop())
            await answers.waiter(deadline.remaining())
        if not answers.done():
            raise late(self.what, deadline)
        return answers.result()


@dataclass(slots=True)
class _Queue:
    """The misses of one service: the batch under way, and those that wait."""

    send: Callable[[], None]
    under_way: Batch | None = None
    waiting: deque[Batch] = field(default_factory=deque)

    def batch_of(self, uid: str, min_epoch: int) -> Batch:
        """Return the batch that brings the uid's answer; join one if there is none."""
        if self.under_way is not None and min_epoch == 0 and uid in self.under_way.wanted:
            return self.under_way
        for batch in self.waiting:
            if uid in batch.wanted:
                break
        else:
            batch = self._with_room()
        batch.wanted[uid] = max(min_epoch, batch.wanted.get(uid, 0))
        return batch

    def _with_room(self) -> Batch:
        if not self.waiting or len(self.waiting[-1].wanted) >= _MAX_UIDS:
            self.waiting.append(Batch(self.send))
        return self.waiting[-1]

    def next(self) -> Batch | None:
        """Put the next batch under way, unless one is."""
        if self.under_way is not None or not self.waiting:
            return None
        self.under_way = self.waiting.popleft()
        return self.under_way


class Coalescer:
    """Turns single questions into shared calls. Thread-safe.

    `send` makes the call for one service and returns its `ObjectRef`; `take` is handed what was
    wanted, the reply, and the moment before the call was sent, and returns the answers.
    """

    def __init__(self, send: Send, take: Take) -> None:
        self._send = send
        self._take = take
        self._lock = threading.Lock()
        self._queues: dict[str, _Queue] = {}

    def join(self, service: str, uid: str, min_epoch: int = 0) -> Batch:
        """Return the batch whose answers have the uid's among them, and those of its company.

        One future for a whole call: to hand it to a thousand who wait is one step for a thread.
        """
        with self._lock:
            queue = self._queues.get(service)
            if queue is None:
                queue = self._queues[service] = _Queue(partial(self._send_next, service))
            return queue.batch_of(uid, min_epoch)

    def _send_next(self, service: str) -> None:
        queue = self._queues[service]
        with self._lock:
            batch = queue.next()
        if batch is not None:
            self._send_batch(service, queue, batch)

    def _send_batch(self, service: str, queue: _Queue, batch: Batch) -> None:
        asked_at = now()
        try:
            reply = self._send(service, batch.wanted).future()
        except Exception as error:  # noqa: BLE001 - whoever waits must hear of it
            reply = Future()
            reply.set_exception(error)
        reply.add_done_callback(lambda done: self._answered(service, queue, batch, done, asked_at))

    def _answered(
        self, service: str, queue: _Queue, batch: Batch, reply: Future[Any], asked_at: float
    ) -> None:
        answers, problem = self._taken(service, batch, reply, asked_at)
        with self._lock:  # not before they are kept: who comes in between would ask again
            queue.under_way = None
        self._send_next(service)
        if problem is not None:
            batch.answers.set_exception(problem)
        else:
            batch.answers.set_result(answers)

    def _taken(
        self, service: str, batch: Batch, reply: Future[Any], asked_at: float
    ) -> tuple[dict[str, Any], Exception | None]:
        try:
            return self._take(service, batch.wanted, reply.result(), asked_at), None
        except Exception as error:  # noqa: BLE001 - whoever waits must hear of it
            return {}, error
