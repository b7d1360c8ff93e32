"""What the user's code raises is told of, even where it can't be shown: nobody waits in vain."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import ManualClock, eventually
from test_admission_rules import Pod
from test_states import give_up

from ray_route.error_root import in_words
from ray_route.pod.arrivals import Arrivals
from ray_route.pod.exports import Exports
from ray_route.pod.hooks import Hooks
from ray_route.protocol.commands import Take, Taken


class UnshowableError(Exception):
    """Its text is the user's code, too."""

    def __repr__(self) -> str:
        raise LookupError("no words")


def raise_unshowable() -> None:
    raise UnshowableError


class NotWritten:
    def __getstate__(self) -> object:
        raise UnshowableError


class NotRead:
    def __reduce__(self) -> Any:
        return raise_unshowable, ()


class Owner:
    """A pod that states are fetched from."""

    def __init__(self, pod: Pod) -> None:
        self._exports = Exports(pod.held, drops_unpicklable=False)

    def some(self, uids: dict[str, int], within_s: float) -> bytes:
        del within_s
        return self._exports.some(uids)

    def one(self, uid: str, epoch: int, within_s: float) -> Any:
        del within_s
        return self._exports.one(uid, epoch)


@pytest.mark.parametrize("state", [NotWritten(), NotRead()], ids=["written", "read"])
def test_a_state_that_fails_by_what_cannot_be_shown_is_told_of_at_once(state: Any) -> None:
    owner, target = Pod(ManualClock()), Pod(ManualClock())
    for uid, it in (("u", state), ("v", "well")):
        if uid != "u":
            owner.hold(uid, 100)
        give_up(owner, uid, state=it)
    told: list[Taken] = []
    target.held.entries.clear()
    arrivals = Arrivals(target.held, Hooks(carries=True), lambda _: Owner(owner))
    arrivals.begin(5, Take({"u": 100, "v": 100}, "owner", 60.0), told.extend)
    eventually(lambda: len(told) == 2, "both are told of")
    of = {taken.uid: taken for taken in told}
    assert of["v"] == Taken(5, "v")
    assert of["u"].is_final
    assert "UnshowableError, which can't be shown" in of["u"].problem


def test_an_error_of_any_length_is_told_of_by_its_beginning() -> None:
    assert in_words(ValueError("x" * 10)) == "ValueError('xxxxxxxxxx')"
    assert 1_000 < len(in_words(ValueError("x" * 10**6))) < 10_000
