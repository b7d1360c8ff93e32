"""An interrupt, wherever it comes, leaves what all callers share sound.

See `interrupting`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from typing import Any

import pytest
from helpers import eventually, unique_name
from interrupting import Interrupter, at_every_line
from test_change_reader import Stream
from test_direct_reads import CONFIG, Process

from ray_route.client import change_reader, coalescer, lookups, shared_future
from ray_route.client.change_reader import ChangeReader, Known
from ray_route.client.coalescer import Batch, Done, SharedAnswer
from ray_route.client.lookups import Found, Judge, Lookups, NewUids
from ray_route.clock import Deadline, now
from ray_route.model import Life, Link, PodRecord, RoutingState
from ray_route.protocol.changes import Change
from ray_route.runtime import belief, link_reads, worker
from ray_route.runtime.belief import Belief
from ray_route.state import link_cache
from ray_route.state.link_cache import LinkCache
from ray_route.state.pod_table import PodTable
from ray_route.store import bulk, connect, lanes
from ray_route.store.bulk import FAILED, BulkReader
from ray_route.store.connect import Store
from ray_route.store.embedded import EmbeddedServer
from ray_route.store.keys import Keys
from ray_route.store.url import parse_url

pytestmark = pytest.mark.slow

S = "chat"
PATIENCE_S = 10
SHARED = (coalescer, lookups, shared_future, belief, link_reads, worker, link_cache, lanes)
READING = (bulk, connect)


class Client:
    """Look-ups as a client's, whose router answers in a thread of its own."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.near = LinkCache(4)  # of few places, so that links give way to others
        self.lookups = Lookups(
            process.worker.put,
            Judge(process.keys, CONFIG, {S: dict.fromkeys(range(9), 7)}),
            NewUids(),
            self._ready,
            process.reads,
            self._keep,
            self._send,
            self._take,
        )
        self._router = ThreadPoolExecutor(1)

    def _ready(self) -> bool:
        if not self.process.belief.is_ready():
            self.process.belief.renewed()
            return False
        return True

    def _keep(self, service: str, found: Found, asked_at: float) -> None:
        self.near.put_all(service, found.links, asked_at)

    def _send(self, _: str, wanted: dict[str, int], done: Done) -> None:
        def answer() -> None:
            pods = {uid: 3 if uid == "known" else 1 for uid in wanted}
            links = {uid: Link(pods[uid], 7, 8, persistent=False, lease_s=9) for uid in wanted}
            self.process.worker.put(lambda: done(lambda: links))

        self._router.submit(answer)

    def _take(self, *of_a_reply: Any) -> dict[str, Any]:
        return dict(of_a_reply[2])

    def look_up(self, uid: str) -> Any:
        """Do what the sync client does at a miss."""
        batch = None
        if self._ready():
            answer = self.lookups.look_here(S, uid) or self._wait(
                self.lookups.reading.join(S, uid), uid
            )
            if isinstance(answer, Link):
                return answer
            batch = answer if isinstance(answer, Batch) else None
        return self._wait(batch or self.lookups.deciding.join(S, uid), uid)

    def look_up_together(self, uid: str) -> Any:
        """Do what it does while another thread reads."""
        answer = self._wait(self.lookups.reading.join(S, uid), uid)
        return self._wait(answer, uid) if isinstance(answer, Batch) else answer

    def _wait(self, batch: Batch, uid: str) -> Any:
        return SharedAnswer(batch, "an answer").wait(Deadline.after(PATIENCE_S))[uid]

    async def look_up_async(self, uid: str) -> Any:
        """Do what the async client does at a miss."""
        answer: Any = self.lookups.reading.join(S, uid)
        while isinstance(answer, Batch):
            shared = SharedAnswer(answer, "an answer")
            answer = (await shared.wait_async(Deadline.after(PATIENCE_S)))[uid]
        return answer

    def check(self) -> None:
        """Find all look-ups well: here, in another thread, of what is known and of what is new."""
        for look_up in (self.look_up, self.look_up_together):
            assert look_up("known").pod == 3
            assert look_up("new").pod == 1
        with ThreadPoolExecutor(1) as other:
            assert other.submit(self.look_up, "known").result(PATIENCE_S).pod == 3


@pytest.fixture
def client(server: EmbeddedServer) -> Iterator[Client]:
    process = Process(parse_url(server.url), Keys(unique_name(), CONFIG.shards))
    process.link("known", "3:7")
    process.believe()
    client = Client(process)
    client.check()
    yield client
    process.close()


@pytest.mark.parametrize("uid", ["known", "new"])
@pytest.mark.parametrize("way", ["look_up", "look_up_together"])
def test_a_lookup_that_is_interrupted_anywhere_costs_no_later_one_its_answer(
    client: Client, way: str, uid: str
) -> None:
    lines = at_every_line(lambda: getattr(client, way)(uid), client.check, *SHARED)
    assert lines > 10


def test_tasks_that_are_interrupted_anywhere_cost_no_later_one_its_answer(client: Client) -> None:
    async def both() -> None:
        # What nobody reads of an interrupted task is printed when it is collected, in the midst of
        # any later test; where that parses a page, Python 3.11 fails: printing parses lines, too.
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        await asyncio.gather(client.look_up_async("known"), client.look_up_async("new"))

    lines = at_every_line(lambda: asyncio.run(both()), client.check, *SHARED)
    assert lines > 10


def test_a_task_that_is_cancelled_at_any_await_costs_no_other_its_answer(client: Client) -> None:
    async def cancelled_after(ticks: int) -> bool:
        tasks = [asyncio.create_task(client.look_up_async(uid)) for uid in ("known", "new")]
        others = [asyncio.create_task(client.look_up_async(uid)) for uid in ("known", "new")]
        for _ in range(ticks):
            await asyncio.sleep(0)
        was_over = all(task.cancel() is False for task in tasks)
        links = await asyncio.wait_for(asyncio.gather(*others), PATIENCE_S)
        assert [link.pod for link in links] == [3, 1]
        return was_over

    for ticks in range(20):
        asyncio.run(cancelled_after(ticks))
        client.check()


def test_a_cache_that_is_interrupted_anywhere_goes_on_to_keep_and_to_forget() -> None:
    cache = LinkCache(3)
    numbers = count()

    def put_and_drop() -> None:
        number = next(numbers)
        links = {f"u{number + n}": Link(0, 7, 100, persistent=False, lease_s=9) for n in range(2)}
        cache.put_all(S, links, now())
        cache.drop(S, f"u{number}")

    def check() -> None:
        for _ in range(5):
            put_and_drop()
        link = Link(0, 7, 101, persistent=False, lease_s=9)
        assert cache.put(S, "last", link, now())
        assert cache.get(S, "last") == link
        assert len(cache._links[S]) <= 4

    assert at_every_line(put_and_drop, check, link_cache) > 10


def test_a_bulk_read_that_is_interrupted_anywhere_gives_the_next_no_answers_of_its_own(
    client: Client,
) -> None:
    process = client.process
    uids = [f"u{number}".encode() for number in range(40)]
    for number in range(0, 40, 2):
        process.link(f"u{number}", "3:7")

    def read(some: list[bytes]) -> list[bool]:
        reader = BulkReader(process.store, process.keys, S, process.seen)
        owned = reader.read(some, Deadline.after(PATIENCE_S))
        assert not owned.failed
        return [code > FAILED for code in owned.codes]

    def check() -> None:
        assert read(uids[::-1]) == [number % 2 == 1 for number in range(40)]
        assert read([b"u1", b"u2"]) == [False, True]

    assert at_every_line(lambda: read(uids) and None, check, *READING) > 10


@pytest.mark.parametrize("server", ["valkey"], indirect=True)
@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.long)])
def test_a_change_reader_that_anything_ends_at_any_line_goes_on_and_misses_nothing(
    store: Store, namespace: str, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is raised in its thread: no change is lost, and no stale link is served."""
    monkeypatch.setattr(change_reader, "_RETRY_S", 0.01)
    keys = Keys(namespace, CONFIG.shards)
    stream, near, table = Stream(store, keys), LinkCache(100), PodTable()
    believed = Belief(store, lambda: None)  # type: ignore[arg-type, return-value]
    for number in count(1, stride):
        own, known = Store(store.url, retries=0), Known(table, near, believed, lambda _: None)
        reader = ChangeReader(own, keys, CONFIG, known, stream.position, now())
        interrupter = Interrupter(number, (change_reader,), {"_run"})  # a line without work

        def run(reader: ChangeReader = reader, interrupter: Interrupter = interrupter) -> None:
            with suppress(KeyboardInterrupt), interrupter:  # the last thing it does may be cut off
                ChangeReader._run(reader)

        reader._thread = threading.Thread(target=run)
        near.put(S, "u", Link(0, 7, 100, persistent=False, lease_s=99), now())
        reader.start()
        stream.append(Change("link", S, stale={"u": 100}))
        eventually(lambda: near.get(S, "u") is None, f"it hears, line {number}")
        stream.append(Change("pod", S, pod=life(2 * number)))
        eventually(lambda number=number: knows(table, 2 * number), f"it reads on, line {number}")
        stream.skip(1)
        stream.append(Change("pod", S, pod=life(2 * number + 1)))
        eventually(lambda number=number: knows(table, 2 * number + 1), f"on and on, line {number}")
        reader.stop()
        if interrupter.lines < number:
            assert number > 30
            return


def life(number: int) -> PodRecord:
    return PodRecord(0, number, RoutingState.READY, Life.ALIVE, 0.0, "n", "p", "a", 1)


def knows(table: PodTable, number: int) -> bool:
    record = table.get(S, 0)
    return record is not None and record.incarnation == number
