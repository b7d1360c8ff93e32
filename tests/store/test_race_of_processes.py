"""Eight processes place the same uids at the same moment."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from multiprocessing.synchronize import Barrier

import pytest

from ray_route.config import RouteConfig
from ray_route.model import Link
from ray_route.store.connect import Store
from ray_route.store.embedded import EmbeddedServer
from ray_route.store.keys import Keys
from ray_route.store.links import LinkCalls, Writer
from ray_route.store.url import parse_url

pytestmark = pytest.mark.slow

PROCESSES = 8
UIDS = [f"user-{number}" for number in range(400)]
SHARDS = 4
CONTESTED = ["a", "b", "c:d", "ü"]
TURNS = 400
Answers = dict[str, tuple[Link, bool]]

_start: Barrier


def _remember(barrier: Barrier) -> None:
    global _start  # noqa: PLW0603 - a pool hands a barrier to its workers only this way
    _start = barrier


def place_all(url: str, namespace: str, rank: int) -> Answers:
    """Place every uid on this process's own pod, in batches and an order of its own."""
    config = RouteConfig(shards=SHARDS)
    calls = LinkCalls(Keys(namespace, SHARDS), config)
    store = Store(parse_url(url))
    parts = _batches(calls.keys, random.Random(rank))
    _start.wait(30)
    answers: Answers = {}
    for shard, uids in parts:
        owners = [f"{rank}:7"] * len(uids)
        call = calls.set_if_absent(Writer(1), shard, "chat", uids, owners)
        reply = calls.parse(store.one(call))
        assert reply.status == "ok"
        answers.update(zip(uids, zip(reply.links, reply.written, strict=True), strict=True))
    store.close()
    return answers


@dataclass(frozen=True)
class Operation:
    """One verb on one uid as its process saw it; `expected` is None for set-if-absent."""

    uid: str
    expected: int | None
    epoch: int
    owner: tuple[int, int]
    written: bool
    began: float
    ended: float


def relink_all(url: str, namespace: str, rank: int) -> list[Operation]:
    """Place and relink a few uids again and again, each time from the epoch last seen."""
    calls = LinkCalls(Keys(namespace, 1), RouteConfig(shards=1))
    store, choose = Store(parse_url(url)), random.Random(rank)
    seen: dict[str, int] = {}
    done: list[Operation] = []
    _start.wait(30)
    for _ in range(TURNS):
        uid = choose.choice(CONTESTED)
        expected = seen.get(uid)
        owners = [f"{rank}:{len(done) + 1}"]
        if expected is None or choose.random() < 0.2:
            expected = None
            call = calls.set_if_absent(Writer(1), 0, "chat", [uid], owners)
        else:
            call = calls.relink(Writer(1), 0, "chat", [uid], [expected], owners)
        began = time.monotonic()
        reply = calls.parse(store.one(call))
        ended = time.monotonic()
        link = reply.links[0]
        assert link is not None
        seen[uid] = link.epoch
        owner = (link.pod, link.incarnation)
        done.append(Operation(uid, expected, link.epoch, owner, reply.written[0], began, ended))
    store.close()
    return done


def not_linearizable(history: list[Operation]) -> list[str]:
    """Say what of one uid's history no order of its operations explains.

    Every write makes a new epoch, so the order of writes is that of epochs: each must follow
    from the one before it, each operation must see the last write before it, and what had ended
    before another began must not have seen more.
    """
    wrong = []
    writes = sorted((op for op in history if op.written), key=lambda op: op.epoch)
    for before, write in pairwise([None, *writes]):
        assert write is not None
        if write.expected != (before.epoch if before else None):
            wrong.append(f"{write} does not follow from {before}")
    owners = {write.epoch: write.owner for write in writes}
    wrong += [f"{op} saw what nobody wrote" for op in history if owners.get(op.epoch) != op.owner]
    latest = 0
    for moment, op in sorted(
        [(op.ended, op) for op in history] + [(op.began, op) for op in history],
        key=lambda item: item[0],
    ):
        if moment == op.ended:
            latest = max(latest, op.epoch)
        elif op.epoch < latest:
            wrong.append(f"{op} saw less than what had been seen before it began")
    return wrong


def _batches(keys: Keys, order: random.Random) -> list[tuple[int, list[str]]]:
    by_shard: dict[int, list[str]] = {}
    for uid in order.sample(UIDS, len(UIDS)):
        by_shard.setdefault(keys.shard(uid), []).append(uid)
    parts = []
    for shard, uids in by_shard.items():
        while uids:
            size = order.randint(1, 5)
            parts.append((shard, uids[:size]))
            del uids[:size]
    order.shuffle(parts)
    return parts


@pytest.fixture(scope="module")
def pool():
    """Eight fresh processes. A fork of this one would share its threads' locks."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ray_route.store.connect"])
    workers = ProcessPoolExecutor(PROCESSES, context, _remember, (context.Barrier(PROCESSES),))
    yield workers
    workers.shutdown()


@pytest.fixture
def answers(pool: ProcessPoolExecutor, server: EmbeddedServer, namespace: str) -> list[Answers]:
    running = [pool.submit(place_all, server.url, namespace, rank) for rank in range(PROCESSES)]
    return [answer.result(60) for answer in running]


def test_each_uid_has_exactly_one_winner_and_all_are_told_the_same(answers: list[Answers]):
    for uid in UIDS:
        links = [answer[uid][0] for answer in answers]
        assert links.count(links[0]) == PROCESSES
        winners = [rank for rank, answer in enumerate(answers) if answer[uid][1]]
        assert winners == [links[0].pod]
    assert len({answers[0][uid][0].epoch for uid in UIDS}) == len(UIDS)
    # Without this the processes ran one after the other, and nothing was tested.
    assert len(Counter(answers[0][uid][0].pod for uid in UIDS)) > 1


def test_set_if_absent_and_relink_are_linearizable_for_each_uid(
    pool: ProcessPoolExecutor, server: EmbeddedServer, namespace: str
):
    running = [pool.submit(relink_all, server.url, namespace, rank) for rank in range(PROCESSES)]
    history = [op for one in running for op in one.result(60)]
    for uid in CONTESTED:
        own = [op for op in history if op.uid == uid]
        assert not_linearizable(own) == []
        writers = {op.owner[0] for op in own if op.written}
        refused = sum(not op.written and op.expected is not None for op in own)
        assert len(writers) > 1, "without a race nothing was tested"
        assert refused > 0, "nobody came too late"


def test_this_check_would_notice_a_lost_update_a_stale_read_and_a_made_up_link():
    first = Operation("u", None, 10, (0, 1), True, 0.0, 1.0)
    second = Operation("u", 10, 11, (1, 1), True, 2.0, 3.0)
    seen = Operation("u", None, 11, (1, 1), False, 4.0, 5.0)
    assert not_linearizable([first, second, seen]) == []
    lost = replace(second, epoch=12, owner=(2, 1))
    assert "does not follow" in not_linearizable([first, second, lost])[0]
    stale = replace(seen, epoch=10, owner=(0, 1))
    assert "saw less" in not_linearizable([first, second, stale])[0]
    made_up = replace(seen, owner=(7, 7))
    assert "nobody wrote" in not_linearizable([first, second, made_up])[0]
