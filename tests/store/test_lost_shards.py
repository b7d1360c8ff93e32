"""What Redis has lost of some shards keeps nobody waiting who asks for uids of others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
from bare_router import SERVICE, Router, Story, tell

from ray_route.errors import LostWritesError
from ray_route.model import Link
from ray_route.store.connect import Store
from ray_route.store.scripts import plain_call

Run = Callable[[Story], None]

# Less than whoever waits for a recovery has to wait.
WITHIN_S = 15


@pytest.fixture
def run(store: Store, namespace: str) -> Run:
    return partial(tell, store, namespace)


def uid_of(router: Router, shard: int, name: str) -> str:
    uids = (f"{name}{number}" for number in range(1000))
    return next(uid for uid in uids if router.keys.shard(uid) == shard)


async def answered(router: Router, verb: str, uids: list[str]) -> dict[str, object]:
    asked = dict.fromkeys(uids, 0)
    if verb == "find":
        return dict(await router.directory.find(SERVICE, asked))
    return dict(await router.directory.compute(SERVICE, asked, None))


async def make_shard_lost(router: Router, shard: int) -> None:
    """No pod says any more what it remembers: the recovery can't end."""
    await router.place(uid_of(router, shard, "somebody"))
    assert router.answering is not None
    router.answering.cancel()
    router.store.one(plain_call("DEL", router.keys.counter(shard)))


async def place(router: Router, uid: str) -> Link:
    link = await router.place(uid)
    router.links.cache.drop(SERVICE, uid)
    return link


async def end_pod_of(router: Router, link: Link) -> None:
    record = router.pod(link.pod)
    assert await router.membership.declare_gone(SERVICE, record, silent=False)


async def nothing(_: Router, __: Link) -> None:
    """Leave the pod as it is."""


@pytest.mark.parametrize(
    ("verb", "before"), [("compute", nothing), ("find", nothing), ("compute", end_pod_of)]
)
def test_uids_of_a_lost_shard_are_told_so_at_once_and_hold_up_no_others(
    run: Run, verb: str, before: Callable[[Router, Link], Awaitable[None]]
) -> None:
    async def story(router: Router) -> None:
        here, there = uid_of(router, 0, "u"), uid_of(router, 1, "v")
        link = await place(router, here)
        await place(router, there)
        await before(router, link)
        await make_shard_lost(router, 1)
        asked = answered(router, verb, [here, there])
        answers = await asyncio.wait_for(asked, WITHIN_S)
        assert isinstance(answers[here], Link)
        error = answers[there]
        assert isinstance(error, LostWritesError)
        assert error.shards == [1]

    run(story)


def test_a_shard_that_is_lost_between_a_look_and_a_relink_holds_up_no_others(run: Run) -> None:
    """Its uids had been read, and were found with a pod that has ended."""

    async def story(router: Router) -> None:
        here, there = uid_of(router, 0, "u"), uid_of(router, 1, "v")
        link = await place(router, there)
        await place(router, here)
        record = router.pod(link.pod)
        assert await router.membership.declare_gone(SERVICE, record, silent=False)
        await make_shard_lost(router, 1)
        lost = {there: link, here: await place(router, here)}
        given = router.directory._relink(SERVICE, lost, None)
        answers = await asyncio.wait_for(given, WITHIN_S)
        assert isinstance(answers[here], Link)
        assert isinstance(answers[there], LostWritesError)

    run(story)


def test_who_asks_again_after_the_recovery_is_answered(run: Run) -> None:
    async def story(router: Router) -> None:
        uid = uid_of(router, 1, "u")
        link = await place(router, uid)
        router.store.one(plain_call("DEL", router.keys.counter(1)))
        router.remembers(link, uid, 0.0, lapsed=False)
        (answer,) = (await answered(router, "compute", [uid])).values()
        assert isinstance(answer, LostWritesError)
        await router.recovery.recover([1])
        (answer,) = (await answered(router, "compute", [uid])).values()
        assert isinstance(answer, Link)
        assert (answer.pod, answer.epoch) == (link.pod, link.epoch)

    run(story)
