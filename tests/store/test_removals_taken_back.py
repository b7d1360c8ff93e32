"""A link that is to go is set anew, where it is: it stays, if that succeeds, whoever dies.

The router's insides and the pods' are the real ones, over a real server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from helpers import soon
from test_states_against_a_model import ALWAYS_S, SERVICE, World, placed

from ray_route.errors import StoreUnavailableError
from ray_route.model import Link
from ray_route.protocol.commands import Kinds
from ray_route.store.connect import Store
from ray_route.store.scripts import Call

pytestmark = pytest.mark.parametrize("server", ["valkey"], indirect=True)

# Long enough for a router to set the link within it, on a busy machine too.
DUE_S = 2.0


def play(
    store: Store, namespace: str, story: Callable[[World, Link, Any], Awaitable[None]]
) -> None:
    """Play a story of "a", which has been called once, and its pod."""

    async def whole() -> None:
        world = World(store, namespace, 1)
        await world.begin()
        link = await placed(world)
        await story(world, link, world.pods[link.pod])
        world.end()
        await world.router.connection.close()

    asyncio.run(whole())


def value(world: World, uid: str) -> bytes:
    key = world.keys.link(world.keys.shard(uid), SERVICE, uid)
    found: bytes = world.store.one(Call(key, ("GET", key)))
    return found


@pytest.mark.slow
def test_where_that_fails_it_goes_when_it_is_due_and_its_hook_runs(
    store: Store, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World, link: Link, pod: Any) -> None:
        moves, links = world.router.moves, world.router.links
        await moves.remove(SERVICE, "a", None, after_s=DUE_S, timeout_s=20.0)

        async def fails(*_: object, **__: object) -> Link:
            raise StoreUnavailableError(address="its address", reason="it is away")

        monkeypatch.setattr(links, "set", fails)
        with pytest.raises(StoreUnavailableError):
            await moves.set(SERVICE, "a", link.pod, persistent=None, timeout_s=20.0)
        assert await pod.add("a", link) == 2, "until then it is served"
        await soon(lambda: "a" not in pod.held.entries, "it is given up, and that is settled")
        assert await links.read(SERVICE, "a") is None
        assert any("release of" in what for uid, what in world.diary if uid == "a")

    play(store, namespace, story)


@pytest.mark.slow
@pytest.mark.parametrize("persistent", [True, False])
def test_where_its_pod_does_not_hear_of_it_it_stays_with_its_state(
    store: Store, namespace: str, persistent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The router has set the link, and answered, and dies before it has told the pod."""

    async def story(world: World, link: Link, pod: Any) -> None:
        moves, links, boxes = world.router.moves, world.router.links, world.router.mailboxes
        await moves.remove(SERVICE, "a", None, after_s=DUE_S, timeout_s=20.0)
        post = boxes.post

        def dies(address: Any, command: Any) -> int:
            return 0 if isinstance(command, Kinds) else post(address, command)

        monkeypatch.setattr(boxes, "post", dies)
        await moves.set(SERVICE, "a", link.pod, persistent=persistent, timeout_s=20.0)
        assert await pod.add("a", link) == 2
        await soon(lambda: not pod.held.scheduled, "it was due, and given back")
        back = await links.read(SERVICE, "a")
        assert back is not None
        assert (back.pod, back.persistent, back.replaced) == (link.pod, persistent, link.epoch)
        assert await pod.add("a", back) == 3

    play(store, namespace, story)


@pytest.mark.slow
@pytest.mark.parametrize("persistent", [True, False])
def test_one_that_is_removed_twice_is_of_its_kind_after_a_loss_of_all(
    store: Store, namespace: str, persistent: bool
) -> None:
    async def story(world: World, link: Link, pod: Any) -> None:
        moves = world.router.moves
        await moves.set(SERVICE, "a", link.pod, persistent=persistent, timeout_s=20.0)
        for _ in range(2):
            await moves.remove(SERVICE, "a", None, after_s=ALWAYS_S, timeout_s=20.0)
        before = value(world, "a")
        assert before.endswith(b":p" if persistent else b":t")
        await world.lose_everything()
        assert value(world, "a") == before
        kept = await moves.set(SERVICE, "a", link.pod, persistent=None, timeout_s=20.0)
        assert kept.persistent is persistent

    play(store, namespace, story)
