"""Eight processes place the same uids at the same moment."""

from __future__ import annotations

import multiprocessing
import random
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier

import pytest

from ray_route.config import RouteConfig
from ray_route.model import Link
from ray_route.store.connect import Store
from ray_route.store.embedded import EmbeddedServer
from ray_route.store.keys import Keys
from ray_route.store.links import LinkCalls, Writer
from ray_route.store.url import parse_url

PROCESSES = 8
UIDS = [f"user-{number}" for number in range(400)]
SHARDS = 4
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
