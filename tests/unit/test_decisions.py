"""What a router remembers of its decisions, and how it tells them."""

from __future__ import annotations

import re

import pytest

from ray_route.model import Link
from ray_route.protocol.decided import Decision
from ray_route.router import decisions as module
from ray_route.router.decisions import Decisions


def link(pod: int) -> Link:
    return Link(pod=pod, epoch=7, persistent=False, incarnation=1, lease_s=1.0)


def told(decisions: Decisions, count: int, most: int = 100) -> list[str]:
    return [one.uid for one in decisions.after(count, most)]


def test_a_move_tells_from_where_and_whereto():
    decisions = Decisions()
    decisions.note("rooms", {"ann": link(0)}, "placed")
    decisions.note("rooms", {"ann": link(2)}, "moved", {"ann": 0})
    decisions.note("rooms", {"bob": link(1)}, "placed")
    decisions.note("rooms", {"ann": link(2)}, "removed in 5 s", {"ann": 2})
    words = [re.sub(r"^\d\d:\d\d:\d\d ", "", text) for text in decisions.about("rooms", "ann")]
    assert words == ["placed: pod 0", "moved from pod 0: pod 2", "removed in 5 s from pod 2"]
    moved = decisions.after(1, 1)
    assert [(one.source, one.pod) for one in decisions.after(1, 9)] == [(0, 2), (None, 1), (2, 2)]
    assert moved == [Decision(moved[0].at, "rooms", "ann", "removed in 5 s", 2, 2)]


def test_one_who_asks_again_gets_what_is_new_and_nothing_twice():
    decisions = Decisions()
    decisions.note("rooms", {"a": link(0), "b": link(1)}, "placed")
    assert told(decisions, 0) == ["a", "b"]
    seen = decisions.count
    assert told(decisions, seen) == []
    decisions.note("rooms", {"c": link(0)}, "placed")
    assert told(decisions, seen) == ["c"]
    assert told(decisions, 0, most=2) == ["b", "c"], "the last of it"
    assert told(decisions, 99) == []


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_KEPT", 3)
    decisions = Decisions()
    for number in range(5):
        decisions.note("rooms", {str(number): link(0)}, "placed")
    assert decisions.count == 5
    assert told(decisions, 0) == ["2", "3", "4"]
