"""A pod's count of links follows them when they leave: a drained pod has none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from damagebench import SERVICE, Bench

from ray_route.model import Link, RoutingState
from ray_route.store.connect import Store


def counted(bench: Bench) -> list[int]:
    book, pods = bench.membership.loads, bench.membership.table.pods(SERVICE)
    return [book.links(SERVICE, pods[pod]) for pod in (0, 1)]


def play(store: Store, namespace: str, scenario: Callable[[Bench], Awaitable[None]]) -> None:
    async def go() -> None:
        async with Bench(store, namespace).running() as bench:
            await scenario(bench)

    asyncio.run(go())


def of_pod(bench: Bench, pod: int) -> dict[str, Link]:
    links = bench.placed[SERVICE].items()
    return {uid: link for uid, link in links if isinstance(link, Link) and link.pod == pod}


def test_links_are_counted_down_where_they_leave(store: Store, namespace: str):
    async def scenario(bench: Bench) -> None:
        zero, one = (of_pod(bench, pod) for pod in (0, 1))
        assert counted(bench) == [len(zero), len(one)]
        uid, held = next(iter(zero.items()))
        target = bench.membership.table.pods(SERVICE)[1]
        await bench.links.set(SERVICE, uid, target, held, persistent=False)
        await bench.links.set(SERVICE, uid, target, held, persistent=False)  # too late
        assert counted(bench) == [len(zero) - 1, len(one) + 1]
        gone, link = next(iter(one.items()))
        assert await bench.links.remove(SERVICE, gone, link, 0)
        assert not await bench.links.remove(SERVICE, gone, link, 0)
        assert counted(bench) == [len(zero) - 1, len(one)]

    play(store, namespace, scenario)


def test_a_pod_that_has_given_all_away_has_no_links(store: Store, namespace: str):
    async def scenario(bench: Bench) -> None:
        everything = len(bench.placed[SERVICE])
        links = of_pod(bench, 0)
        record = bench.membership.table.pods(SERVICE)[0]
        await bench.membership.set_state(SERVICE, record, RoutingState.DENY_NEW)
        await bench.directory.give_away(SERVICE, links, None)
        assert counted(bench) == [0, everything]

    play(store, namespace, scenario)


def test_a_uid_that_is_given_back_counts_once(store: Store, namespace: str):
    async def scenario(bench: Bench) -> None:
        before = counted(bench)
        uid, link = next(iter(of_pod(bench, 0).items()))
        await bench.links.regrant(SERVICE, {uid: link.epoch})
        assert counted(bench) == before

    play(store, namespace, scenario)
