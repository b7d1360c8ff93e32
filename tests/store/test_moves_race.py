"""A router's insides on a bare event loop: moves against placements, and sweeps."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import ANY

import pytest

from ray_route.config import RouteConfig
from ray_route.errors import StateNotMovedError
from ray_route.model import Link, PodRecord, RoutingState
from ray_route.protocol.commands import EndAt, Fate, Outcome, Release
from ray_route.router.directory import Directory
from ray_route.router.link_table import LinkTable
from ray_route.router.mailbox import Mailboxes
from ray_route.router.membership import Membership
from ray_route.router.moves import Moves
from ray_route.router.shards import Shards
from ray_route.store.connect import AsyncStore, Store
from ray_route.store.keys import Keys
from ray_route.store.links import LinkCalls, Writer
from ray_route.store.pods import Identity, PodCalls
from ray_route.store.scripts import plain_call

pytestmark = pytest.mark.slow

KEYS = Keys("race", 16)
CONFIG = RouteConfig(shards=16)


@dataclass
class Space:
    """A router's insides on a bare event loop; its pods give up what is idle."""

    membership: Membership
    links: LinkTable
    directory: Directory
    moves: Moves
    mailboxes: Mailboxes
    asked: list[tuple[int, str, int]]
    incarnation: int
    busy: set[str] = field(default_factory=set)

    async def place(self, uid: str) -> Link:
        link = (await self.directory.compute("svc", {uid: 0}, None))[uid]
        assert isinstance(link, Link)
        return link

    async def carry_out(self, pod: int, incarnation: int) -> None:
        address = ("svc", pod, incarnation)
        had: list[int] = []
        while True:
            commands = await self.mailboxes.fetch(address, 10, had)
            had = [number for number, _ in commands]
            for number, command in commands:
                if isinstance(command, Release):
                    self.asked += [(pod, uid, epoch) for uid, epoch in command.uids.items()]
                    await asyncio.sleep(0)
                    given = [
                        Outcome(number, uid, epoch, given=uid not in self.busy)
                        for uid, epoch in command.uids.items()
                    ]
                    self.mailboxes.take_outcomes(address, given)
                elif isinstance(command, EndAt):
                    given_up = [
                        uid
                        for uid, epoch in command.uids.items()
                        if (pod, uid, epoch) in self.asked
                    ]
                    self.mailboxes.answer(address, number, given_up)


async def opened(store: Store) -> Space:
    pods = PodCalls(KEYS)
    connection = AsyncStore(store.url)
    store.one(plain_call("HSET", KEYS.meta, "sealed", "this-server"))
    for pod in range(3):
        who = Identity("svc", pod, f"process-{pod}", "node", "")
        store.one(pods.claim(who, RoutingState.READY))
    shards = Shards(connection, KEYS, LinkCalls(KEYS, CONFIG))
    await shards.claim()
    await shards.take_over()
    membership = Membership(connection, KEYS, lambda *_: None, shards)
    links = LinkTable(CONFIG, KEYS, membership, shards)
    directory = Directory(CONFIG, links, connection, membership)
    mailboxes = Mailboxes()
    moves = Moves(membership, links, directory, mailboxes, lambda *_: None, grace_s=60)
    await membership.refresh("svc")
    return Space(membership, links, directory, moves, mailboxes, [], shards.incarnation)


def run(store: Store, work: Callable[[Space], Awaitable[Any]]) -> None:
    async def main() -> None:
        space = await opened(store)
        carrying_out = [
            asyncio.create_task(space.carry_out(pod.pod, pod.incarnation))
            for pod in space.membership.table.available("svc")
        ]
        await work(space)
        for task in carrying_out:
            task.cancel()

    asyncio.run(asyncio.wait_for(main(), 60))


@pytest.mark.parametrize("server", ["valkey"], indirect=True)
def test_a_placement_that_a_move_overtakes_is_given_up_first(store: Store) -> None:
    async def work(space: Space) -> None:
        for number in range(200):
            uid = f"u{number}"
            placed, moved = await asyncio.gather(
                space.place(uid),
                space.moves.set("svc", uid, 2, persistent=False, timeout_s=10),
            )
            assert moved.pod == 2
            released = (placed.pod, uid, placed.epoch) in space.asked
            assert placed == moved or released, (placed, moved)

    run(store, work)


@pytest.mark.parametrize("server", ["valkey"], indirect=True)
def test_moves_of_one_uid_take_turns(store: Store) -> None:
    async def work(space: Space) -> None:
        for number in range(60):
            uid = f"u{number}"
            first = await space.place(uid)
            links = await asyncio.gather(
                *(
                    space.moves.set("svc", uid, pod, persistent=None, timeout_s=10)
                    for pod in (0, 1, 2, 0, 1)
                )
            )
            owners = {(link.pod, link.epoch) for link in [first, *links]}
            last = max(owners, key=lambda owner: owner[1])
            given_up = {(pod, epoch) for pod, asked, epoch in space.asked if asked == uid}
            assert owners - given_up == {last}

    run(store, work)


@pytest.mark.parametrize("server", ["valkey"], indirect=True)
@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("pod", [0, 1])
def test_a_move_keeps_the_kind_of_a_link_whose_removal_is_scheduled(
    store: Store, pod: int, persistent: bool
) -> None:
    async def work(space: Space) -> None:
        held = await space.moves.set("svc", "u", 0, persistent=persistent, timeout_s=10)
        assert await space.links.remove("svc", "u", held, 60.0)
        moved = await space.moves.set("svc", "u", pod, persistent=None, timeout_s=10)
        assert (moved.pod, moved.persistent) == (pod, persistent)
        assert await space.links.read("svc", "u") == moved

    run(store, work)


@pytest.mark.parametrize("server", ["valkey"], indirect=True)
def test_what_a_pod_keeps_is_left(store: Store) -> None:
    async def work(space: Space) -> None:
        held = {
            uid: await space.moves.set("svc", uid, 0, persistent=False, timeout_s=10)
            for uid in ("idle", "busy")
        }
        space.busy.add("busy")
        left: list[int] = []
        kept = await space.moves.hand_over(
            "svc", held, 1, closes=False, note=lambda step: left.append(step.left)
        )
        assert (kept, left[-1]) == (["busy"], 1)

    run(store, work)


@pytest.mark.parametrize("server", ["valkey"], indirect=True)
def test_a_hand_over_and_a_move_never_overwrite_each_other(store: Store) -> None:
    async def work(space: Space) -> None:
        for number in range(60):
            uid = f"u{number}"
            held = await space.moves.set("svc", uid, 0, persistent=False, timeout_s=10)
            await asyncio.gather(
                space.moves.hand_over("svc", {uid: held}, 10, closes=True, note=lambda *_: None),
                space.moves.set("svc", uid, 2, persistent=False, timeout_s=10),
                return_exceptions=True,
            )
            link = await space.links.read("svc", uid)
            assert link is not None
            given_up = [(pod, epoch) for pod, asked, epoch in space.asked if asked == uid]
            assert (0, held.epoch) in given_up
            assert (link.pod, link.epoch) not in given_up

    run(store, work)


def test_a_sweep_never_blocks_redis_for_5_ms(store: Store) -> None:
    links = LinkCalls(KEYS, CONFIG)
    uids = [f"u{number}" for number in range(60_000)]
    by_shard: dict[int, list[str]] = {}
    for uid in uids:
        by_shard.setdefault(KEYS.shard(uid), []).append(uid)

    async def work(space: Space) -> None:
        owners = space.membership.table.available("svc")
        for shard, some in by_shard.items():
            for start in range(0, len(some), 500):
                part = some[start : start + 500]
                to = [f"{owners[0].pod}:{owners[0].incarnation}"] * len(part)
                writer = Writer(space.incarnation, 0)
                store.one(links.set_if_absent(writer, shard, "svc", part, to))
        assert await space.membership.declare_gone("svc", owners[0], silent=False)
        store._client.config_resetstat()
        assert await space.directory.sweep("svc") == len(uids)
        # The mean, since a busy machine may stop the server in the middle of any one command.
        stats = store._client.info("commandstats")
        took_us = {name: stats[f"cmdstat_{name}"]["usec_per_call"] for name in ("scan", "evalsha")}
        print(f"a sweep of {len(uids)} links, mean time on the server: {took_us} µs")
        assert max(took_us.values()) < 5_000
        assert await space.directory.sweep("svc") == 0

    run(store, work)


@pytest.mark.parametrize("server", ["valkey"], indirect=True)
def test_a_uid_that_somebody_moves_is_not_given_back_meanwhile(store: Store) -> None:
    async def story(space: Space) -> None:
        link = await space.place("u")
        given = {"u": (link.epoch, Fate.STAYS)}
        address = ("svc", link.pod, link.incarnation)
        with space.moves._in_move.marked([("svc", "u")]):
            assert await space.moves.settle(address, given) == {}
            held = await space.links.read("svc", "u")
            assert held is not None
            assert held.epoch == link.epoch
        assert await space.moves.settle(address, given) == {"u": (link.epoch, ANY)}
        back = await space.links.read("svc", "u")
        assert back is not None
        assert (back.pod, back.incarnation) == (link.pod, link.incarnation)
        assert back.epoch > link.epoch

    run(store, story)


@pytest.mark.parametrize("server", ["valkey"], indirect=True)
def test_a_uid_that_its_pod_has_given_up_for_good_loses_its_link(store: Store) -> None:
    async def story(space: Space) -> None:
        link = await space.place("u")
        address = ("svc", link.pod, link.incarnation)
        given = {"u": (link.epoch, Fate.GOES)}
        assert await space.moves.settle(address, given) == {"u": (link.epoch, 0)}
        assert await space.links.read("svc", "u") is None

    run(store, story)


@pytest.mark.parametrize("server", ["valkey"], indirect=True)
@pytest.mark.parametrize("when", ["before", "as it is removed", "never"])
def test_a_uid_that_nobody_uses_keeps_its_link_if_that_is_persistent_by_now(
    store: Store, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(space: Space) -> None:
        link = await space.place("u")
        given, address = {"u": (link.epoch, Fate.UNUSED)}, ("svc", link.pod, link.incarnation)
        target = await space.membership.target("svc", link.pod)
        remove = space.links.remove

        async def is_set() -> None:
            await space.links.set("svc", "u", target, link, persistent=True)

        async def late(*args: Any, **options: Any) -> bool:
            await is_set()
            return await remove(*args, **options)

        if when == "before":
            await is_set()
        elif when == "as it is removed":
            monkeypatch.setattr(space.links, "remove", late)
            assert await space.moves.settle(address, given) == {}
            assert not space.links.removals.cover("svc", "u", link.epoch), "a recovery would do so"
        settled = await space.moves.settle(address, given)
        left = await space.links.read("svc", "u")
        if when == "never":
            assert settled == {"u": (link.epoch, 0)}
            assert left is None
            return
        assert left is not None
        assert settled == {"u": (link.epoch, left.epoch)}
        assert (left.pod, left.persistent, left.replaced) == (link.pod, True, link.epoch)

    run(store, story)


@pytest.mark.parametrize("server", ["valkey"], indirect=True)
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_target_that_has_ended_is_not_waited_for(store: Store, when: str) -> None:
    """What `run` allows for is less than what the carry was given."""

    async def work(space: Space) -> None:
        link = await space.place("u")
        target = space.membership.table.pods("svc")[(link.pod + 1) % 3]
        end = space.membership.set_state("svc", target, RoutingState.SHUTDOWN)
        if when == "before":
            await end
        carrying = asyncio.create_task(carried(space, link, target))
        if when == "meanwhile":
            await asyncio.sleep(0)
            await end
            space.mailboxes.end("svc", target.pod, target.incarnation)
        answer = (await carrying)["u"]
        assert isinstance(answer, StateNotMovedError)
        assert not answer.is_final, "another may have it"
        assert "ended" in str(answer)

    run(store, work)


async def carried(space: Space, link: Link, target: PodRecord) -> dict[str, Any]:
    answers = {}
    async for some in space.moves._carrier.carry("svc", {"u": link}, target, 1_000.0):
        answers |= some
    return answers
