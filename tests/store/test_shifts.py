"""What a rebalancing asks of a router, on its insides over a real server; the pods are played."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from test_moves_race import Space, opened, run

from ray_route.errors import PodUnavailableError
from ray_route.model import HotUid
from ray_route.protocol.commands import Count, Release, Weigh, Weighed
from ray_route.router import shifts
from ray_route.router.shifts import Shifts
from ray_route.store.connect import Store


def shifts_of(space: Space) -> Shifts:
    return Shifts(space.membership, space.mailboxes, space.moves)


async def placed(space: Space, uid: str) -> tuple[int, int]:
    """Place a uid; return its epoch, and a pod that does not have it."""
    link = await space.place(uid)
    return link.epoch, (link.pod + 1) % 3


@pytest.mark.parametrize("server", ["valkey"], indirect=True)
def test_who_has_no_call_moves_and_all_others_stay_with_a_reason(store: Store) -> None:
    async def work(space: Space) -> None:
        moves = {uid: await placed(space, uid) for uid in ("idle", "busy", "other", "late", "put")}
        epoch, target = moves["other"]
        moves["other"] = (epoch - 1, target)  # its link is another than that of the plan
        space.busy.add("busy")
        pod = (await space.place("put")).pod
        put = await space.moves.set("svc", "put", pod, persistent=True, timeout_s=10)
        told = await shifts_of(space).shift("svc", moves, 0.2)
        assert (told["idle"], told["late"]) == ("", "")
        assert "its calls did not end in time" in told["busy"]
        assert "its link is another now" in told["other"]
        assert "its link is persistent" in told["put"]
        assert await space.links.read("svc", "put") == put
        for uid, (epoch, target) in moves.items():
            link = await space.place(uid)
            has_moved = uid in ("idle", "late")
            stands = uid in ("busy", "put")
            assert (link.pod == target, link.epoch > epoch) == (has_moved, not stands)
        again = await shifts_of(space).shift("svc", {"idle": moves["idle"]}, 0.2)
        assert again == {"idle": ""}, "whose answer was lost, by a router's death, asks again"
        assert not {"other", "put"} & {uid for _, uid, _ in space.asked}, "they are asked of nobody"

    run(store, work)


@pytest.mark.parametrize("server", ["valkey"], indirect=True)
def test_nobodys_call_is_refused_for_it(store: Store) -> None:
    async def main() -> None:
        space = await opened(store)
        epoch, target = await placed(space, "u")
        link = await space.place("u")
        work = asyncio.create_task(shifts_of(space).shift("svc", {"u": (epoch, target)}, 0.2))
        commands = await space.mailboxes.fetch(("svc", link.pod, link.incarnation), 10)
        ((_, command),) = commands
        assert isinstance(command, Release)
        assert (command.closes, command.patience_s) == (False, 0.2)
        work.cancel()

    asyncio.run(asyncio.wait_for(main(), 60))


@pytest.mark.parametrize("server", ["valkey"], indirect=True)
def test_a_pod_that_does_not_say_what_it_holds_is_an_error_and_hides_no_hot_uid_of_others(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shifts, "_ANSWER_S", 0.5)
    weighed = Weighed({"u": 1}, {}, {}, [], [])
    hot = HotUid("u", 0, 0.5, None)

    async def main() -> None:
        space = await opened(store)
        pods = {pod.pod: pod.incarnation for pod in space.membership.table.available("svc")}
        silent: set[int] = set()

        async def answer(pod: int) -> None:
            address: Any = ("svc", pod, pods[pod])
            had: list[int] = []
            while True:
                commands = await space.mailboxes.fetch(address, 10, had)
                had = [number for number, _ in commands]
                for number, command in commands:
                    if pod not in silent:
                        assert isinstance(command, Weigh | Count)
                        said: Any = 7
                        if isinstance(command, Weigh):
                            said = [hot] if command.hottest else weighed
                        space.mailboxes.answer(address, number, said)

        answering = [asyncio.create_task(answer(pod)) for pod in pods]
        told = await shifts_of(space).weigh("svc")
        assert told == dict.fromkeys(pods.items(), weighed)
        assert await shifts_of(space).count("svc") == dict.fromkeys(pods, 7)
        silent.add(1)
        with pytest.raises(PodUnavailableError, match="does not tell of its uids") as error:
            await shifts_of(space).weigh("svc")
        assert error.value.pod == 1
        with pytest.raises(PodUnavailableError):
            await shifts_of(space).count("svc")
        assert await shifts_of(space).hottest("svc", 3) == [hot, hot]
        for task in answering:
            task.cancel()

    asyncio.run(asyncio.wait_for(main(), 60))
