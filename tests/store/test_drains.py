"""Drains on a router's insides over a real server; the pods are played."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

import pytest
from helpers import soon
from test_moves_race import KEYS, Space, opened

from ray_route.errors import NoAvailablePodError, PodRestartingError
from ray_route.model import DrainProgress, RoutingState
from ray_route.protocol.commands import Close, Fate, Open, Release, Show, Shown
from ray_route.protocol.commands import Outcome as Given
from ray_route.router.drains import Drains
from ray_route.router.placer import Proposal, owner_of
from ray_route.router.shards import Outcome
from ray_route.store.connect import Store
from ray_route.store.scripts import plain_call

READY = RoutingState.READY
UIDS = [f"u{number}" for number in range(30)]


@dataclass
class Played:
    """Pod 0, which gives up at once what it is asked for; `taken` are the uids whose hooks ran."""

    space: Space
    held: dict[str, int] = field(default_factory=dict)
    taken: list[str] = field(default_factory=list)
    at_release: Callable[[], None] = lambda: None
    undecided: int = 0
    looks: int = 0
    is_slow: bool = False
    """Its hooks do not end."""
    is_silent: bool = False
    """It answers nothing."""

    async def serve(self) -> None:
        boxes = self.space.mailboxes
        address = ("svc", 0, self.space.membership.table.pods("svc")[0].incarnation)
        had: list[int] = []
        while True:
            commands = await boxes.fetch(address, 10, had)
            had = [number for number, _ in commands]
            for number, command in commands:
                if self.is_silent or (self.is_slow and isinstance(command, Release)):
                    continue
                if isinstance(command, Release):
                    self.at_release()
                    self.taken += command.uids
                    given = [Given(number, *it, given=True) for it in command.uids.items()]
                    for uid in command.uids:
                        del self.held[uid]
                    boxes.take_outcomes(address, given)
                elif isinstance(command, (Show, Close, Open)):
                    self.looks += 1
                    boxes.answer(address, number, Shown(dict(self.held), 0, self.undecided))


class Drained(Protocol):
    """Begins a drain of pod 0, or has it go by another deadline; returns how it ended."""

    def __call__(
        self, deadline_s: float = 30, *, go_on: bool = True, only_sooner: bool = False
    ) -> Awaitable[DrainProgress]: ...


Story = Callable[[Space, Played, Drained], Awaitable[None]]


def tell(store: Store, story: Story) -> None:
    """Have pod 0 of three hold some uids, and provide its drain."""

    async def main() -> None:
        space = await opened(store)
        pod = Played(space)
        for uid in UIDS:
            record = space.membership.table.pods("svc")[0]
            link = await space.links.set_if_absent("svc", uid, record, persistent=False)
            pod.held[uid] = link.epoch

        async def never(_: str) -> bool:
            return False

        rooms = (space.membership, space.directory, space.mailboxes, space.moves)
        drains = Drains(*rooms, never)

        async def drained(
            deadline_s: float = 30, *, go_on: bool = True, only_sooner: bool = False
        ) -> DrainProgress:
            record = space.membership.table.pods("svc")[0]
            how = {"go_on": go_on, "only_sooner": only_sooner}
            assert drains.start("svc", record, record.state, deadline_s, **how) is READY
            progress: DrainProgress = await soon(lambda: is_done(drains), "the drain has ended")
            return progress

        serving = asyncio.create_task(pod.serve())
        await story(space, pod, drained)
        serving.cancel()

    asyncio.run(asyncio.wait_for(main(), 60))


def is_done(drains: Drains) -> DrainProgress | None:
    progress = drains.progress("svc", 0)
    return progress if progress and progress.done else None


def damage(store: Store, *uids: str) -> None:
    for uid in uids:
        store.one(plain_call("SET", key_of(uid), "garbage"))


def key_of(uid: str) -> str:
    return KEYS.link(KEYS.shard(uid), "svc", uid)


def test_a_refused_drain_denies_new_uids_not_even_for_a_moment(store: Store) -> None:
    async def story(space: Space, pod: Played, drained: Drained) -> None:
        told: list[RoutingState] = []
        space.membership._on_change = lambda _, record: told.append(record.state)
        for other in (1, 2):
            record = space.membership.table.pods("svc")[other]
            await space.membership.set_state("svc", record, RoutingState.SHUTDOWN)
        told.clear()
        store._client.config_resetstat()
        last = await drained()
        assert last.problem is not None
        assert "no other pod is READY" in last.problem
        assert (told, pod.taken, sorted(pod.held)) == ([], [], sorted(UIDS))
        writes = store._client.info("commandstats")
        assert "cmdstat_hset" not in writes, "its record is as it was, all the time"

    tell(store, story)


def test_damaged_links_hold_up_no_other_and_are_taken_nothing(store: Store) -> None:
    async def story(space: Space, pod: Played, drained: Drained) -> None:
        damage(store, "u3", "u4")
        last = await drained()
        assert (last.moved, last.left) == (len(UIDS) - 2, 2)
        assert last.problem is not None
        assert key_of("u3") in last.problem
        assert {(it.uid, it.key) for it in last.damaged} == {
            (uid, key_of(uid)) for uid in ("u3", "u4")
        }
        assert set(pod.held) == {"u3", "u4"}
        assert sorted(pod.taken) == sorted(set(UIDS) - {"u3", "u4"}), "their hooks have not run"
        assert space.membership.table.pods("svc")[0].state is RoutingState.READY

    tell(store, story)


def test_links_that_are_damaged_while_their_uids_are_given_up_hold_up_no_other(
    store: Store,
) -> None:
    async def story(space: Space, pod: Played, drained: Drained) -> None:
        pod.at_release = lambda: damage(store, "u3")
        last = await drained()
        assert (last.moved, [it.uid for it in last.damaged]) == (len(UIDS) - 1, ["u3"])
        link = await space.place("u5")
        assert link.pod != 0
        pod_0 = ("svc", 0, space.membership.table.pods("svc")[0].incarnation)
        given = {"u3": (1, Fate.GOES), "u5": (1, Fate.GOES), "u6": (1, Fate.STAYS)}
        settled = await space.moves.settle(pod_0, given)
        assert settled == {"u5": (1, 0), "u6": (1, 0)}, "what is damaged stays given up"

    tell(store, story)


def is_given_back(space: Space) -> bool:
    return space.membership.table.pods("svc")[0].state is READY


@pytest.mark.parametrize("trouble", ["is_slow", "is_silent"])
def test_a_drain_ends_at_its_deadline_whatever_it_waits_for(store: Store, trouble: str) -> None:
    async def story(space: Space, pod: Played, drained: Drained) -> None:
        setattr(pod, trouble, True)
        last = await asyncio.wait_for(drained(0.5, go_on=False), 5)
        assert last.problem is not None
        assert "after 0.5 s" in last.problem
        assert is_given_back(space)

    tell(store, story)


def test_a_drain_under_way_goes_by_the_deadline_of_who_asks_last(store: Store) -> None:
    async def story(space: Space, pod: Played, drained: Drained) -> None:
        pod.is_slow = True
        first = asyncio.create_task(drained(600, go_on=False))
        await soon(lambda: not is_given_back(space), "it has begun")
        last = await asyncio.wait_for(drained(0.5, go_on=False), 10)
        assert last == await first
        assert last.problem is not None
        assert "after 0.5 s" in last.problem
        assert "a later drain has set a deadline of 0.5 s" in last.notice
        assert is_given_back(space)

    tell(store, story)


@pytest.mark.slow
def test_a_drain_that_is_told_again_ends_no_later(store: Store) -> None:
    async def story(space: Space, pod: Played, drained: Drained) -> None:
        pod.is_slow = True
        first = asyncio.create_task(drained(1.5, go_on=False))
        await soon(lambda: not is_given_back(space), "it has begun")
        last = await drained(600, go_on=False, only_sooner=True)
        assert last == await first
        assert (last.notice, is_given_back(space)) == ("", True)
        first = asyncio.create_task(drained(600, go_on=False))
        await soon(lambda: not is_given_back(space), "another has begun")
        assert "0.5 s" in (await drained(0.5, go_on=False, only_sooner=True)).notice
        await first

    tell(store, story)


def test_a_drained_pod_has_no_links_however_many_were_counted(store: Store) -> None:
    async def story(space: Space, pod: Played, drained: Drained) -> None:
        record = space.membership.table.pods("svc")[0]
        space.membership.loads.placed("svc", record, [1, 2])  # of links that have run out
        assert (await space.membership.pods("svc"))[0].links == len(UIDS) + 2
        assert (await drained()).problem is None
        assert (await space.membership.pods("svc"))[0].links == 0
        assert pod.held == {}

    tell(store, story)


def test_a_pod_that_has_the_states_of_uids_that_are_nobodys_is_not_shut_down(store: Store) -> None:
    async def story(space: Space, pod: Played, drained: Drained) -> None:
        pod.undecided = 1  # somebody moves it, or it has come from a pod that was drained
        drain = asyncio.create_task(drained())
        await soon(lambda: not pod.held and pod.looks > 5, "the drain looks again and again")
        assert not drain.done()
        assert space.membership.table.pods("svc")[0].state is RoutingState.DENY_NEW
        pod.undecided, pod.held = 0, {"u0": (await space.place("u0")).epoch}  # given back
        last = await drain
        assert (last.moved, last.problem) == (len(UIDS) + 1, None)
        assert space.membership.table.pods("svc")[0].state is RoutingState.SHUTDOWN

    tell(store, story)


def test_nor_does_it_end_where_no_other_pod_can_have_them(store: Store) -> None:
    async def story(space: Space, pod: Played, drained: Drained) -> None:
        for other in (1, 2):
            record = space.membership.table.pods("svc")[other]
            await space.membership.set_state("svc", record, RoutingState.SHUTDOWN)
        pod.held, pod.undecided = {}, 1
        last = await drained()
        assert last.problem is not None
        assert "no other pod is READY" in last.problem
        assert space.membership.table.pods("svc")[0].state is RoutingState.READY

    tell(store, story)


def test_who_finds_no_pod_is_told_for_which_uid(store: Store) -> None:
    async def story(space: Space, _: Played, drained: Drained) -> None:
        del drained
        table = space.membership.table
        held = {"u1": await space.place("u1")}
        for record in list(table.pods("svc").values()):
            await space.membership.set_state("svc", record, RoutingState.DENY_NEW)
        answers = await space.directory.compute("svc", {"new": 0, "newer": 0}, None)
        answers |= await space.directory.give_away("svc", held, None)
        for uid in ("new", "newer", "u1"):
            error = answers[uid]
            assert isinstance(error, NoAvailablePodError)
            assert (error.uid, error.service, sorted(error.known)) == (uid, "svc", [0, 1, 2])

    tell(store, story)


def test_a_sweep_goes_on_past_uids_that_it_can_not_move(store: Store) -> None:
    async def story(space: Space, _: Played, drained: Drained) -> None:
        del drained
        uids = [f"many-{number}" for number in range(2_500)]
        records = space.membership.table.pods("svc")
        for pod in (0, 1):
            some = uids[pod::2]
            proposal = Proposal(records, {pod: owner_of(records[pod])}, dict.fromkeys(some, pod))
            await space.links.place("svc", proposal)
        space.directory._grace_s = 60.0
        for pod in (0, 1):
            assert await space.membership.declare_gone("svc", records[pod], silent=False)
        del space.membership._gone_at["svc", 1]  # long ago: it will not come back
        with pytest.raises(PodRestartingError) as told:
            await space.directory.sweep("svc")
        assert told.value.pod == 0
        outcomes = await space.links.read_many("svc", uids)
        links = {uid: it.link for uid, it in outcomes.items() if isinstance(it, Outcome)}
        assert [link.pod for uid in uids if (link := links[uid])] == [0, 2] * 1_250

    tell(store, story)
