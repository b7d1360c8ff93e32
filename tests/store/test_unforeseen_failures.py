"""What fails for one uid, in a user's strategy or by a fault of ours, fails for nobody else."""

from __future__ import annotations

from typing import Any

import pytest
from bare_router import SERVICE, Router, tell

from ray_route.errors import ConfigError, RouterUnavailableError
from ray_route.model import Link
from ray_route.placement import Strategy
from ray_route.router.placer import Placer, Proposal
from ray_route.store.connect import Store


class UnshowableError(Exception):
    """An error of the user's that can't even be shown."""

    def __repr__(self) -> str:
        raise LookupError("no words")


class NoPod:
    """What a strategy may return by mistake: it can't be looked up, and can't be shown."""

    __hash__ = None  # type: ignore[assignment]
    __repr__ = UnshowableError.__repr__


def fails(raised: BaseException) -> Strategy:
    def strategy(_: Any, __: Any, uid: str, ___: str | None) -> int:
        if uid == "odd":
            raise raised
        return 1

    return strategy


def chooses(what: Any) -> Strategy:
    def strategy(_: Any, __: Any, uid: str, ___: str | None) -> int:
        return what if uid == "odd" else 1  # type: ignore[no-any-return]

    return strategy


STRATEGIES = {
    "an error": fails(KeyError("odd")),
    "an error that can't be shown": fails(UnshowableError()),
    "an exit": fails(SystemExit(3)),
    "an interrupt": fails(KeyboardInterrupt()),
    "another pod": chooses(99),
    "no number": chooses(None),
    "a list": chooses([1]),
    "nothing to be shown": chooses(NoPod()),
}


def place_by(router: Router, strategy: Strategy) -> None:
    router.directory._placer = Placer(router.membership, strategy, router.keys.namespace)


async def compute(router: Router, *uids: str) -> dict[str, Any]:
    found: dict[str, Any] = await router.directory.compute(SERVICE, dict.fromkeys(uids, 0), None)
    return found


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_a_strategy_that_fails_for_one_uid_places_all_others(
    store: Store, namespace: str, strategy: Strategy
) -> None:
    async def story(router: Router) -> None:
        place_by(router, strategy)
        found = await compute(router, "ann", "odd", "bob")
        assert [found["ann"].pod, found["bob"].pod] == [1, 1]
        assert isinstance(found["odd"], ConfigError)
        assert found["odd"].uid == "odd"
        assert "the strategy" in str(found["odd"])

    tell(store, namespace, story)


def test_a_strategy_that_fails_for_a_uid_with_a_link_is_none_of_its_concern(
    store: Store, namespace: str
) -> None:
    async def story(router: Router) -> None:
        link = await router.place("odd")
        router.links.cache.drop(SERVICE, "odd")
        place_by(router, STRATEGIES["an error"])
        found = await compute(router, "ann", "odd")
        assert found["odd"].epoch == link.epoch
        assert found["ann"].pod == 1

    tell(store, namespace, story)


def break_for(router: Router, broken: set[str]) -> list[int]:
    """Let a fault of ours meet whoever places some uids; count how many are placed at a time."""
    place, sizes = router.links.place, list[int]()

    async def broken_place(service: str, proposal: Proposal) -> Any:
        sizes.append(len(proposal.chosen))
        if not broken.isdisjoint(proposal.chosen):
            raise ZeroDivisionError
        return await place(service, proposal)

    router.links.place = broken_place  # type: ignore[method-assign]
    return sizes


def test_what_nobody_foresaw_for_one_uid_is_its_own_error_and_places_all_others(
    store: Store, namespace: str
) -> None:
    async def story(router: Router) -> None:
        sizes = break_for(router, {"broken"})
        uids = [f"u{number}" for number in range(300)]
        found = await compute(router, *uids[:100], "broken", *uids[100:])
        assert all(isinstance(found[uid], Link) for uid in uids)
        failed = found["broken"]
        assert isinstance(failed, RouterUnavailableError)
        assert (failed.passes, failed.uid) == (False, "broken")
        assert "ZeroDivisionError" in str(failed)
        assert len(sizes) < 30

    tell(store, namespace, story)


def test_what_nobody_foresaw_for_all_is_not_tried_for_each_of_thousands(
    store: Store, namespace: str
) -> None:
    async def story(router: Router) -> None:
        uids = [f"u{number}" for number in range(3_000)]
        sizes = break_for(router, set(uids))
        found = await compute(router, *uids)
        assert {type(answer) for answer in found.values()} == {RouterUnavailableError}
        assert len(sizes) < 200

    tell(store, namespace, story)
