from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from ray_route.client.coalescer import _MAX_UIDS, Coalescer, Done
from ray_route.errors import ClosedError
from ray_route.runtime.worker import Worker


class Ref:
    """A question under way."""

    def __init__(self, service: str, wanted: dict[str, int], done: Done) -> None:
        self.service = service
        self.wanted = dict(wanted)
        self._done = done

    def answer(self) -> None:
        self._done(lambda: [f"link of {uid}" for uid in self.wanted])

    def fail(self, error: Exception) -> None:
        def reply() -> Any:
            raise error

        self._done(reply)


def at_once(work: Callable[[], None]) -> None:
    """Do what a worker does, at once."""
    work()


def ask(coalescer: Coalescer, uid: str, service: str = "chat", min_epoch: int = 0) -> Future[Any]:
    """Join a batch and have it sent, as a thread does."""
    batch = coalescer.join(service, uid, min_epoch)
    batch.send()
    return batch.answers


class Router:
    """What is sent comes here and stays under way until a test answers it."""

    def __init__(self) -> None:
        self.sent: list[Ref] = []
        self.kept: list[tuple[str, dict[str, Any], float]] = []
        self.coalescer = Coalescer(at_once, self._send, self._take)

    def _send(self, service: str, wanted: dict[str, int], done: Done) -> None:
        self.sent.append(Ref(service, wanted, done))

    def _take(
        self, service: str, wanted: dict[str, int], reply: list[str], asked_at: float
    ) -> dict[str, Any]:
        answers = dict(zip(wanted, reply, strict=True))
        self.kept.append((service, answers, asked_at))
        return answers

    def ask(self, uid: str, service: str = "chat", min_epoch: int = 0) -> Future[Any]:
        return ask(self.coalescer, uid, service, min_epoch)

    def travelled(self) -> list[list[str]]:
        return [list(ref.wanted) for ref in self.sent]


@pytest.fixture
def router() -> Router:
    return Router()


def test_a_lone_miss_leaves_at_once(router: Router):
    future = router.ask("a")
    assert router.travelled() == [["a"]]
    router.sent[0].answer()
    assert future.result(0) == {"a": "link of a"}


def test_all_that_comes_while_a_call_is_under_way_travels_in_one(router: Router):
    futures = {uid: router.ask(uid) for uid in ("a", "b", "c", "d")}
    assert router.travelled() == [["a"]]
    router.sent[0].answer()
    assert router.travelled() == [["a"], ["b", "c", "d"]]
    router.sent[1].answer()
    assert {uid: future.result(0)[uid] for uid, future in futures.items()} == {
        uid: f"link of {uid}" for uid in futures
    }


def test_nothing_more_is_sent_when_nobody_waits(router: Router):
    router.ask("a")
    router.sent[0].answer()
    assert len(router.sent) == 1
    router.ask("b")
    assert router.travelled() == [["a"], ["b"]]


def test_who_asks_for_the_same_uid_shares_its_future(router: Router):
    router.ask("a")
    waiting = router.ask("b")
    assert router.ask("b") is waiting
    router.sent[0].answer()
    router.sent[1].answer()
    assert router.travelled() == [["a"], ["b"]]


def test_nobody_joins_a_question_that_was_sent_before_he_came(router: Router):
    under_way = router.ask("a")
    later = router.ask("a")  # "a" may have been moved meanwhile
    assert later is not under_way
    router.sent[0].answer()
    assert not later.done()
    router.sent[1].answer()
    assert later.result(0) == {"a": "link of a"}


def test_an_answer_is_not_kept_for_those_who_come_later(router: Router):
    first = router.ask("a")
    router.sent[0].answer()
    assert router.ask("a") is not first
    assert router.travelled() == [["a"], ["a"]]


def test_who_wants_a_newer_epoch_does_not_take_the_answer_that_is_under_way(router: Router):
    stale = router.ask("a")
    fresh = router.ask("a", min_epoch=101)
    assert fresh is not stale
    router.sent[0].answer()
    assert stale.done()
    assert not fresh.done()
    assert router.sent[1].wanted == {"a": 101}


def test_the_highest_epoch_that_anybody_wants_is_asked_for(router: Router):
    router.ask("other")
    for min_epoch in (0, 101, 55):
        router.ask("a", min_epoch=min_epoch)
    router.ask("b")
    router.sent[0].answer()
    assert router.sent[1].wanted == {"a": 101, "b": 0}


def test_services_do_not_wait_for_each_other(router: Router):
    router.ask("a", "chat")
    router.ask("a", "game")
    assert [ref.service for ref in router.sent] == ["chat", "game"]


def test_an_error_reaches_all_who_travelled_and_nobody_else(router: Router):
    first = router.ask("a")
    others = [router.ask("b"), router.ask("c")]
    router.sent[0].answer()
    last = router.ask("d")
    error = ConnectionError("the router is gone")
    router.sent[1].fail(error)
    assert first.result(0)["a"] == "link of a"
    assert [future.exception(0) for future in others] == [error, error]
    router.sent[2].answer()
    assert last.result(0)["d"] == "link of d"


def test_an_error_stops_nobody_from_asking_again(router: Router):
    router.ask("a")
    router.sent[0].fail(ConnectionError())
    again = router.ask("a")
    router.sent[1].answer()
    assert again.result(0)["a"] == "link of a"


def test_a_call_that_can_not_be_sent_is_an_error_for_all_who_wait():
    def send(service: str, wanted: dict[str, int], done: Done) -> None:
        raise ConnectionError(f"no router for {sorted(wanted)}")

    coalescer = Coalescer(at_once, send, lambda *_: None)
    futures = [ask(coalescer, uid) for uid in ("a", "b")]
    assert all(isinstance(future.exception(0), ConnectionError) for future in futures)


def test_every_answer_is_kept_once_before_anybody_hears_of_it():
    kept_when_heard: list[int] = []
    router = Router()
    for uid in ("a", "b", "c"):
        router.ask(uid).add_done_callback(lambda _: kept_when_heard.append(len(router.kept)))
    router.sent[0].answer()
    router.sent[1].answer()
    assert [sorted(answers) for _, answers, _ in router.kept] == [["a"], ["b", "c"]]
    assert kept_when_heard == [1, 2, 2]


def test_leases_count_from_before_the_call_was_sent(monkeypatch: pytest.MonkeyPatch):
    moment = [100.0]
    monkeypatch.setattr("ray_route.client.coalescer.now", lambda: moment[0])
    router = Router()
    router.ask("a")
    router.ask("b")
    moment[0] = 107.0
    router.sent[0].answer()
    moment[0] = 109.0
    router.sent[1].answer()
    assert [asked_at for _, _, asked_at in router.kept] == [100.0, 107.0]


def test_an_error_is_kept_nowhere(router: Router):
    router.ask("a")
    router.sent[0].fail(ConnectionError())
    assert router.kept == []


def test_all_who_wait_and_all_who_come_hear_that_it_has_ended(router: Router):
    under_way, waiting = router.ask("a"), router.ask("b")
    router.coalescer.close(ClosedError(what="the session"))
    late = router.ask("c")
    several = router.coalescer.join_all("chat", {"d": 0, "e": 0})
    for future in (under_way, waiting, late, several["d"].answers):
        with pytest.raises(ClosedError):
            future.result(0)
    router.sent[0].answer()  # which comes for nobody
    assert router.travelled() == [["a"]]


def test_a_crowd_is_split_into_calls_of_bounded_size(router: Router):
    futures = [router.ask(f"u{number}") for number in range(2 * _MAX_UIDS + 1)]
    for _ in range(3):
        router.sent[-1].answer()
    assert [len(ref.wanted) for ref in router.sent] == [1, _MAX_UIDS, _MAX_UIDS]
    assert all(future.done() for future in futures)


def board_soon(router: Router, uid: str) -> Future[Any]:
    """Join a batch as a task does."""
    batch = router.coalescer.join("chat", uid)
    batch.send_soon(asyncio.get_running_loop())
    return batch.answers


def test_tasks_that_miss_in_one_tick_travel_in_one_call(router: Router):
    async def main() -> list[Future[Any]]:
        futures = [board_soon(router, f"u{number % 50}") for number in range(100)]
        assert router.sent == []
        await asyncio.sleep(0)
        return futures

    futures = asyncio.run(main())
    assert router.travelled() == [[f"u{number}" for number in range(50)]]
    router.sent[0].answer()
    assert all(future.done() for future in futures)


def test_a_task_that_misses_alone_leaves_at_the_end_of_its_tick(router: Router):
    async def main() -> None:
        for number in range(3):
            answers = board_soon(router, f"u{number}")
            await asyncio.sleep(0)
            router.sent[-1].answer()
            assert answers.result(0) == {f"u{number}": f"link of u{number}"}

    asyncio.run(main())
    assert router.travelled() == [["u0"], ["u1"], ["u2"]]


def test_who_boards_a_load_of_a_loop_that_ended_leaves_all_the_same(router: Router):
    ended = asyncio.new_event_loop()
    stranded = router.coalescer.join("chat", "a")
    stranded.send_soon(ended)
    ended.close()

    async def main() -> None:
        board_soon(router, "b")
        await asyncio.sleep(0)

    asyncio.run(main())
    assert router.travelled() == [["a", "b"]]


def test_a_hundred_threads_that_miss_one_uid_make_two_calls():
    router = Router()
    together = threading.Barrier(100)

    def miss(_: int) -> Any:
        together.wait(10)
        return router.ask("u")

    with ThreadPoolExecutor(100) as pool:
        futures = list(pool.map(miss, range(100)))
    router.sent[0].answer()
    assert router.travelled() == [["u"], ["u"]]
    assert len(set(map(id, futures))) == 2


def test_threads_that_miss_many_uids_are_all_answered():
    worker = Worker("worker")

    def send(service: str, wanted: dict[str, int], done: Done) -> None:
        worker.put(Ref(service, wanted, done).answer)

    coalescer = Coalescer(worker.put, send, Router()._take)
    uids = [f"u{number % 300}" for number in range(3_000)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda uid: ask(coalescer, uid).result(10)[uid], uids))
    worker.stop(10)
    assert answers == [f"link of {uid}" for uid in uids]
