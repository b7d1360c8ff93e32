"""Misses travel together: one question under way, the rest wait for the next.

A lone miss leaves at once; tasks of an event loop that miss in one tick leave together at its end.
What comes while a question is under way leaves together when its answer is there, so the demand
sets the batch size and nobody waits for company.

Whoever asks only joins a batch, under a lock, and wakes the worker. All else is done by the
worker's thread, which no signal interrupts: however many callers are, the state stays sound.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import InvalidStateError
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from ray_route.client.shared_future import SharedFuture
from ray_route.clock import Deadline, now
from ray_route.errors import RouteError
from ray_route.runtime.waiting import Check, late, no_check, result_of, slices

Put = Callable[[Callable[[], None]], None]
Done = Callable[[Callable[[], Any]], None]
Send = Callable[[str, "dict[str, int]", Done], None]
Take = Callable[[str, "dict[str, int]", Any, float], "dict[str, Any]"]

_MAX_UIDS = 5_000


@dataclass(eq=False, slots=True)
class Batch:
    """What travels in one question: the uids, with the least epoch that each may have.

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
            loop.call_soon(self.send)
            self._called_by = loop


class SharedAnswer(NamedTuple):
    """Wait for the answers to a batch, with all who joined it; giving up does not cancel them."""

    batch: Batch
    what: str
    check: Check = no_check

    def wait(self, deadline: Deadline) -> Any:
        """Wait in the calling thread."""
        self.batch.send()
        return result_of(self.batch.answers, self.what, deadline, self.check)

    async def wait_async(self, deadline: Deadline) -> Any:
        """Wait on the running event loop."""
        answers = self.batch.answers
        if not answers.done():
            self.batch.send_soon(asyncio.get_running_loop())
            await self._answered(answers, deadline)
        return answers.result()

    async def _answered(self, answers: SharedFuture[Any], deadline: Deadline) -> None:
        for slice_s in slices(deadline):
            if not answers.done():
                await answers.waiter(slice_s)
            if answers.done():
                return
            self.check()
        raise late(self.what, deadline)


@dataclass(slots=True)
class _Queue:
    """The misses of one service: whether a batch is under way, and those that wait.

    Nobody joins the one under way: it may have been sent before the uid was moved or dropped.
    """

    send: Callable[[], None]
    is_busy: bool = False
    under_way: Batch | None = None
    waiting: deque[Batch] = field(default_factory=deque)

    def batch_of(self, uid: str, min_epoch: int) -> Batch:
        """Return the batch that will bring the uid's answer."""
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
        """Return the next batch, which is under way from now on, unless one is."""
        if self.is_busy or not self.waiting:
            return None
        self.is_busy = True
        self.under_way = self.waiting.popleft()
        return self.under_way


class Coalescer:
    """Turns single questions into shared ones. Thread-safe.

    `put` has something done by the one thread that sends and takes. `send` asks for one service;
    when the reply is there, it calls in that thread what it was given, with what returns or raises
    the reply. `take` is handed what was wanted, the reply, and the moment before it was asked for,
    and returns the answers.
    """

    def __init__(self, put: Put, send: Send, take: Take) -> None:
        self._put = put
        self._send = send
        self._take = take
        self._lock = threading.Lock()
        self._queues: dict[str, _Queue] = {}
        self._closed: RouteError | None = None

    def close(self, error: RouteError) -> None:
        """Fail what is asked, what waits, and whatever comes."""
        with self._lock:
            self._closed = error
            queues = list(self._queues.values())
            left = [batch for queue in queues for batch in (queue.under_way, *queue.waiting)]
            for queue in queues:
                queue.waiting.clear()
        for batch in left:
            if batch is not None:
                _settle(batch.answers, {}, error)

    def join(self, service: str, uid: str, min_epoch: int = 0) -> Batch:
        """Return the batch whose answers have the uid's among them, and those of its company.

        One future for a whole question: to hand it to a thousand who wait is one step for a thread.
        """
        with self._lock:
            if self._closed is not None:
                return _over(self._closed)
            return self._queue(service).batch_of(uid, min_epoch)

    def join_all(self, service: str, wanted: Mapping[str, int]) -> dict[str, Batch]:
        """Join many uids at once and have them sent; return each one's batch."""
        with self._lock:
            if self._closed is not None:
                return dict.fromkeys(wanted, _over(self._closed))
            queue = self._queue(service)
            joined = {uid: queue.batch_of(uid, least) for uid, least in wanted.items()}
        queue.send()
        return joined

    def _queue(self, service: str) -> _Queue:
        queue = self._queues.get(service)
        if queue is None:
            queue = self._queues[service] = _Queue(partial(self._wake, service))
        return queue

    def _wake(self, service: str) -> None:
        if not self._queues[service].is_busy:  # else what waits leaves when the answer is there
            self._put(partial(self._advance, service))

    # In the worker's thread.

    def _advance(self, service: str) -> None:
        queue = self._queues[service]
        with self._lock:
            batch = queue.next()
        if batch is not None:
            self._ask(service, queue, batch)

    def _ask(self, service: str, queue: _Queue, batch: Batch) -> None:
        answered = partial(self._answered, service, queue, batch, now())
        try:
            self._send(service, batch.wanted, answered)
        except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it
            answered(partial(_raise, error))

    def _answered(
        self, service: str, queue: _Queue, batch: Batch, asked_at: float, reply: Callable[[], Any]
    ) -> None:
        answers, problem = self._taken(service, batch, asked_at, reply)
        with self._lock:  # not before they are kept: who comes in between would ask again
            queue.is_busy, queue.under_way = False, None
        if queue.waiting:
            queue.send()
        _settle(batch.answers, answers, problem)

    def _taken(
        self, service: str, batch: Batch, asked_at: float, reply: Callable[[], Any]
    ) -> tuple[dict[str, Any], BaseException | None]:
        try:
            return self._take(service, batch.wanted, reply(), asked_at), None
        except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it
            return {}, error


def _settle(
    future: SharedFuture[dict[str, Any]], answers: dict[str, Any], problem: BaseException | None
) -> None:
    with contextlib.suppress(InvalidStateError):  # it was closed meanwhile
        if problem is not None:
            future.set_exception(problem)
        else:
            future.set_result(answers)


def _over(error: RouteError) -> Batch:
    """Return a batch that will not be sent."""
    batch = Batch(lambda: None)
    batch.answers.set_exception(error)
    return batch


def _raise(error: BaseException) -> None:
    raise error
