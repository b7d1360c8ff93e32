"""Users that move at the same time move together: counted in messages. The pods are played."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest
from helpers import soon
from test_moves_race import Space, opened

from ray_route.clock import Deadline
from ray_route.model import Link, RoutingState
from ray_route.protocol.commands import Command, Outcome, Release, Settled, Take, Taken
from ray_route.router import hand_over, shifts
from ray_route.router.shifts import Shifts
from ray_route.store.connect import Store

pytestmark = pytest.mark.parametrize("server", ["valkey"], indirect=True)

UIDS = [f"u{number}" for number in range(20)]


@dataclass
class Pods:
    """Three pods, which give up what is idle, keep its state, and fetch what they are told to."""

    space: Space
    links: dict[str, Link] = field(default_factory=dict)
    asked: list[Command] = field(default_factory=list)
    has_state: bool = True
    busy: set[str] = field(default_factory=set)
    problem: str = ""
    """Why no state is fetched."""
    at_release: Callable[[], Awaitable[object]] = field(default=lambda: asyncio.sleep(0))
    one_by_one: bool = False

    def of(self, kind: type[Command]) -> list[Command]:
        return [command for command in self.asked if isinstance(command, kind)]

    async def serve(self, pod: int) -> None:
        boxes = self.space.mailboxes
        address = ("svc", pod, self.space.membership.table.pods("svc")[pod].incarnation)
        had: list[int] = []
        while True:
            commands = await boxes.fetch(address, 10, had)
            had = [number for number, _ in commands]
            for number, command in commands:
                self.asked.append(command)
                if isinstance(command, Release):
                    await self.at_release()
                    for uid, epoch in command.uids.items():
                        given = uid not in self.busy
                        told = Outcome(number, uid, epoch, given, self.has_state and given)
                        boxes.take_outcomes(address, [told])
                        for _ in range(20 if self.one_by_one else 0):
                            await asyncio.sleep(0)  # all that can go on does
                elif isinstance(command, Take):
                    taken = [Taken(number, uid, self.problem) for uid in command.uids]
                    boxes.take_outcomes(address, taken)
                elif isinstance(command, Settled):
                    boxes.answer(address, number, None)

    async def shift(self, *, to: int = 1) -> dict[str, str]:
        targets = {uid: (link.epoch, to) for uid, link in self.links.items()}
        space = self.space
        return await Shifts(space.membership, space.mailboxes, space.moves).shift(
            "svc", targets, 0.2
        )

    async def pods_of(self) -> dict[str, int | None]:
        found = {uid: await self.space.links.read("svc", uid) for uid in self.links}
        return {uid: link and link.pod for uid, link in found.items()}


def tell(store: Store, story: Callable[[Pods], Awaitable[None]]) -> None:
    """Have pod 0 of three hold all uids."""

    async def main() -> None:
        pods = Pods(await opened(store))
        table = pods.space.membership.table.pods("svc")
        for uid in UIDS:
            pods.links[uid] = await pods.space.links.set_if_absent(
                "svc", uid, table[0], persistent=False
            )
        serving = [asyncio.create_task(pods.serve(pod)) for pod in table]
        await story(pods)
        for task in serving:
            task.cancel()

    asyncio.run(asyncio.wait_for(main(), 60))


@pytest.mark.parametrize("has_state", [False, True])
def test_users_that_even_loads_out_are_asked_for_and_fetched_by_one_message(
    store: Store, *, has_state: bool
) -> None:
    async def story(pods: Pods) -> None:
        pods.has_state = has_state
        assert await pods.shift() == dict.fromkeys(UIDS, "")
        assert await pods.pods_of() == dict.fromkeys(UIDS, 1)
        (release,) = pods.of(Release)
        assert list(release.uids) == UIDS
        takes = [list(take.uids) for take in pods.of(Take)]
        assert takes == ([UIDS] if has_state else [])
        assert await pods.shift() == dict.fromkeys(UIDS, ""), "whose answer was lost asks again"
        assert len(pods.of(Release)) == 1

    tell(store, story)


def test_users_of_several_pods_do_not_wait_for_each_other(store: Store) -> None:
    async def story(pods: Pods) -> None:
        table = pods.space.membership.table.pods("svc")
        other = await pods.space.links.set_if_absent("svc", "other", table[2], persistent=False)
        pods.links["other"] = other
        both_asked = asyncio.Event()

        async def wait_for_both() -> None:
            if len(pods.of(Release)) == 2:
                both_asked.set()
            await both_asked.wait()

        pods.at_release = wait_for_both
        assert await pods.shift() == dict.fromkeys([*UIDS, "other"], "")

    tell(store, story)


def test_those_that_are_given_up_one_by_one_within_a_moment_go_on_together(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 0.001 <= hand_over._TOGETHER_S <= 0.05, "long enough for more, and nobody's pause"
    monkeypatch.setattr(hand_over, "_TOGETHER_S", 1.0)  # the machine may be busy

    async def story(pods: Pods) -> None:
        pods.one_by_one = True
        await pods.space.moves.hand_over("svc", pods.links, 10, closes=True, note=lambda _: None)
        assert 0 not in (await pods.pods_of()).values()
        takes = [list(take.uids) for take in pods.of(Take)]
        assert sorted(uid for some in takes for uid in some) == sorted(UIDS)
        assert len(takes) <= 3, "few for each pod that they go to"

    tell(store, story)


def test_who_moves_one_by_a_call_of_his_own_is_not_waited_for(store: Store) -> None:
    async def story(pods: Pods) -> None:
        async with pods.space.moves._in_move.turn("svc", "u3", Deadline.after(30)):
            told = await asyncio.wait_for(pods.shift(), 10)
        assert "somebody else moves the uid" in told.pop("u3")
        assert set(told.values()) == {""}
        (release,) = pods.of(Release)
        assert "u3" not in release.uids

    tell(store, story)


def test_nor_is_he_kept_waiting_who_comes_meanwhile(store: Store) -> None:
    async def story(pods: Pods) -> None:
        shifted: list[asyncio.Task[dict[str, str]]] = []
        at_release = asyncio.Event()
        pods.at_release = at_release.wait
        shifted.append(asyncio.create_task(pods.shift()))
        await soon(lambda: pods.of(Release), "they are asked for")
        moved = pods.space.moves.set("svc", "u3", 2, persistent=None, timeout_s=10)
        moving = asyncio.create_task(moved)
        await soon(lambda: pods.space.moves._in_move.has_turn("svc", "u3"), "he has his turn")
        at_release.set()
        assert (await moving).pod == 2
        told = await shifted[0]
        assert told.pop("u3") != ""
        assert set(told.values()) == {""}

    tell(store, story)


def test_who_has_a_call_stays_and_keeps_no_other(store: Store) -> None:
    async def story(pods: Pods) -> None:
        pods.busy = {"u3"}
        told = await pods.shift()
        assert "its calls did not end in time" in told.pop("u3")
        assert set(told.values()) == {""}
        (release,) = pods.of(Release)
        assert (release.closes, release.patience_s) == (False, 0.2)

    tell(store, story)


def test_a_state_that_is_not_fetched_is_given_back_and_nobody_else_gets_it(store: Store) -> None:
    async def story(pods: Pods) -> None:
        pods.problem = "that pod leaves"
        told = await pods.shift()
        assert all("that pod leaves" in why for why in told.values())
        assert len(pods.of(Take)) == 1
        for uid, link in pods.links.items():
            now = await pods.space.links.read("svc", uid)
            assert now is not None
            assert (now.pod, now.replaced) == (0, link.epoch), "it is its pod's, under a new epoch"

    tell(store, story)


def test_a_target_that_closes_meanwhile_gets_nobody(store: Store) -> None:
    async def story(pods: Pods) -> None:
        space = pods.space
        record = space.membership.table.pods("svc")[1]

        async def close() -> None:
            await space.membership.set_state("svc", record, RoutingState.DENY_NEW)

        pods.at_release = close
        told = await pods.shift()
        assert all("it takes no links" in why for why in told.values())
        assert await pods.pods_of() == dict.fromkeys(UIDS, 0)
        again = await pods.shift()
        assert all("it takes no links" in why for why in again.values())
        assert len(pods.of(Release)) == 1, "it was asked of nobody"

    tell(store, story)


def test_a_pod_that_answers_nothing_is_not_waited_for_for_ever(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shifts, "_MOVE_S", 0.5)

    async def story(pods: Pods) -> None:
        pods.at_release = asyncio.Event().wait
        told = await pods.shift()
        assert all("within 0.5 s" in why for why in told.values())
        assert await pods.pods_of() == dict.fromkeys(UIDS, 0)

    tell(store, story)


def test_one_whose_pod_ends_meanwhile_stays_with_what_becomes_of_it(store: Store) -> None:
    async def story(pods: Pods) -> None:
        space = pods.space
        record = space.membership.table.pods("svc")[0]

        async def end() -> None:
            space.mailboxes.end("svc", 0, record.incarnation)

        pods.at_release = end
        told = await pods.shift()
        assert all("its life has ended" in why for why in told.values())

    tell(store, story)


def test_nobody_is_asked_for_users_of_a_pod_that_has_ended(store: Store) -> None:
    async def story(pods: Pods) -> None:
        record = pods.space.membership.table.pods("svc")[0]
        assert await pods.space.membership.declare_gone("svc", record, silent=False)
        told = await pods.shift()
        assert all("its life has ended" in why for why in told.values())
        assert pods.asked == []

    tell(store, story)


def test_one_that_came_to_its_target_by_other_ways_is_not_counted(store: Store) -> None:
    async def story(pods: Pods) -> None:
        for pod in (2, 1):
            await pods.space.moves.set("svc", "u3", pod, persistent=None, timeout_s=10)
        told = await pods.shift()
        assert "its link is another now" in told.pop("u3")
        assert set(told.values()) == {""}

    tell(store, story)
