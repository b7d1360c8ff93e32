"""Links as a process reads them straight from Redis: only what is to be believed.

What makes such a read safe is in `docs/guarantees.md`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from itertools import islice, repeat
from threading import Lock
from typing import Any, NamedTuple

from ray_route.clock import Deadline
from ray_route.errors import RouteError
from ray_route.runtime.belief import Belief
from ray_route.runtime.futures import Outcome
from ray_route.runtime.waiting import Check, late, no_check, result_of, slices
from ray_route.runtime.worker import Worker
from ray_route.store.lanes import Lane, has_moved, is_moving
from ray_route.store.links import LinkCalls, ShardReply
from ray_route.store.scripts import Call

# What a value ends with whose removal is scheduled.
_ENDING = (b":t", b":p")

# Longer than others take, but for one who was interrupted with a lane in his hand.
_WAIT_S = 3.0

# Whoever comes next waits for all that travel together: 100 lone uids are 3 ms of a server's time.
_TOGETHER = 100

Names = Collection[tuple[str, str]]
"""Pairs of service and uid."""


@dataclass(frozen=True, slots=True)
class OfService(Names):
    """The names of many uids of one service, without a pair in memory for each."""

    service: str
    uids: Sequence[str]

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.uids)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Yield each pair."""
        return zip(repeat(self.service), self.uids)

    def __contains__(self, name: object) -> bool:
        """Say whether a pair is among them."""
        return any(name == each for each in self)


class Part(NamedTuple):
    """What is asked of one shard: links by (service, uid), 500 at most."""

    shard: int
    names: Names


class Reading(NamedTuple):
    """What a believed server says of one part; its status is "ok", or "lost": it has lost writes.

    `ending[i]` is true if the removal of link i is scheduled.
    """

    reply: ShardReply
    ending: list[bool]


Readings = list[Reading | Exception | None]


class Awaited(NamedTuple):
    """Wait for a future that others may wait for; giving up does not cancel it."""

    future: Future[Any]
    what: str
    check: Check = no_check

    def wait(self, deadline: Deadline) -> Any:
        """Wait in the calling thread."""
        return result_of(self.future, self.what, deadline, self.check)

    async def wait_async(self, deadline: Deadline) -> Any:
        """Wait on the running event loop."""
        answer = asyncio.wrap_future(self.future)
        for slice_s in slices(deadline):
            done, _ = await asyncio.wait({answer}, timeout=slice_s)
            if done:
                return answer.result()
            self.check()
        raise late(self.what, deadline)


class _Asked:
    """Parts that somebody wants to have read, and the future that he waits for."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts
        self.future: Outcome[Readings] = Outcome()
        self.future.set_running_or_notify_cancel()  # nobody who waits for it can cancel it

    def settle(self, outcome: Readings | BaseException) -> None:
        """Let whoever waits have it."""
        with contextlib.suppress(InvalidStateError):  # it was closed meanwhile
            if isinstance(outcome, BaseException):
                self.future.set_exception(outcome)
            else:
                self.future.set_result(outcome)


class LinkReads:
    """Reads links in a thread of its own, by connections whose servers are believed.

    `seen` gives the highest counter that this process knows of a shard, `saw_all` takes more in.
    """

    def __init__(
        self,
        worker: Worker,
        belief: Belief,
        links: LinkCalls,
        seen: Callable[[int], int],
        saw_all: Callable[[Iterable[tuple[int, int]]], None],
    ) -> None:
        self._worker = worker
        self._belief = belief
        self._links = links
        self._seen = seen
        self._saw_all = saw_all
        self._lock = Lock()
        self._waiting: list[_Asked] = []
        self._under_way: list[_Asked] = []
        self._closed: RouteError | None = None

    def close(self, error: RouteError) -> None:
        """Fail what is asked and what will be: the worker ends."""
        with self._lock:
            self._closed, left = error, [*self._waiting, *self._under_way]
        for asked in left:
            asked.settle(error)

    def ask(self, parts: Sequence[Part]) -> Future[Readings]:
        """Have parts read soon, together with what others ask meanwhile; see `read`."""
        asked = _Asked(parts)
        with self._lock:
            if self._closed is not None:
                asked.settle(self._closed)
                return asked.future
            self._waiting.append(asked)
            is_first = len(self._waiting) == 1
        if is_first:
            self._worker.put(self._answer_waiting)
        return asked.future

    def _answer_waiting(self) -> None:
        with self._lock:
            self._under_way, self._waiting = self._waiting[:_TOGETHER], self._waiting[_TOGETHER:]
            asked = self._under_way
            if self._waiting:
                self._worker.put(self._answer_waiting)
        try:
            readings = iter(self.read([part for each in asked for part in each.parts]))
        except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it
            for each in asked:
                each.settle(error)
        else:
            for each in asked:
                each.settle(list(islice(readings, len(each.parts))))

    def read(self, parts: Sequence[Part]) -> Readings:
        """Return what each part's server says, or its refusal; None where nothing is believed.

        In the worker's thread; one round trip, to all servers at once.
        """
        readings: Readings = [None] * len(parts)
        by_lane = self._by_lane(parts)
        try:
            sent = {
                name: self._send(lane, [parts[index] for index in some])
                for name, (lane, some) in by_lane.items()
            }
            for name, (lane, some) in by_lane.items():
                received = self._receive(lane, [parts[index].shard for index in some], sent[name])
                for index, reading in zip(some, received, strict=True):
                    readings[index] = reading
        except BaseException:  # what is on its way must not be an answer to somebody else
            for lane, _ in by_lane.values():
                self._belief.drop(lane)
            raise
        finally:
            for lane, _ in by_lane.values():
                self._belief.give_back(lane)
        return readings

    def read_here(self, part: Part) -> Reading | Exception | None:
        """Read one part in the calling thread; None also while others read.

        It takes two thirds of the time that it takes by way of the worker.
        """
        lane = self._belief.take(self._server_of(part), 0)
        if lane is None:
            return None
        try:
            (reading,) = self._receive(lane, [part.shard], self._send(lane, [part]))
        except BaseException:  # what is on its way must not be an answer to somebody else
            self._belief.drop(lane)
            raise
        finally:
            self._belief.give_back(lane)
        return reading

    def _by_lane(self, parts: Sequence[Part]) -> dict[str | None, tuple[Lane, list[int]]]:
        """Take the lanes to the parts' servers; say by which lane each part is read."""
        lanes: dict[str | None, tuple[Lane, list[int]]] = {}
        for index, part in enumerate(parts):
            name = self._server_of(part)
            if name not in lanes:
                lane = self._belief.take(name, _WAIT_S)
                if lane is None:
                    continue
                lanes[name] = lane, []
            lanes[name][1].append(index)
        return lanes

    def believes(self, shard: int) -> bool:
        """True if the server that holds a shard is believed now."""
        return self._belief.believes(self._server_of(Part(shard, ())))

    def doubt(self, shard: int) -> None:
        """End belief in the server that holds a shard."""
        self._belief.doubt(self._server_of(Part(shard, ())))

    def _server_of(self, part: Part) -> str | None:
        return self._belief.server_of(self._links.keys.counter(part.shard))

    def _send(self, lane: Lane, parts: Sequence[Part]) -> list[Call]:
        calls = [self._links.read(self._seen(shard), shard, names) for shard, names in parts]
        try:
            lane.send(calls)
        except RouteError:
            self._belief.drop(lane)
        return calls

    def _receive(self, lane: Lane, shards: Sequence[int], calls: Sequence[Call]) -> Readings:
        if not lane.is_believed:
            return [None] * len(calls)
        try:
            replies = lane.receive()
        except RouteError:
            self._belief.drop(lane)
            return [None] * len(calls)
        asked = zip(shards, calls, replies, strict=True)
        return [self._believed(lane, shard, call, reply) for shard, call, reply in asked]

    def _believed(
        self, lane: Lane, shard: int, call: Call, reply: Any
    ) -> Reading | Exception | None:
        """Judge a reply by what is known when it is there: that may be more than when it left."""
        if isinstance(reply, Exception):
            return self._refusal(lane, reply)
        parsed = self._links.parse(reply, call)
        if not lane.is_believed:
            return None
        if parsed.status == "ok":
            seen = self._seen(shard)
            if parsed.counter < seen:
                return None  # it was overtaken
            if parsed.counter > seen:
                self._saw_all([(shard, parsed.counter)])
        return Reading(parsed, [bool(value) and value[-2:] in _ENDING for value in reply[2::3]])

    def _refusal(self, lane: Lane, refusal: Exception) -> RouteError | None:
        """Return what refused one part alone: a damaged key must not end belief in a server."""
        if has_moved(refusal):
            self._belief.drop(lane)
            return None
        return None if is_moving(refusal) else lane.translated(refusal)
