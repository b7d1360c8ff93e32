"""Spans of counters that scripts have taken: one server's never overlap, whoever answers first."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from ray_route.router.spans import Spans

COUNTERS = st.lists(st.integers(0, 10_000), min_size=2, max_size=30, unique=True).map(sorted)


@given(COUNTERS, st.randoms(use_true_random=False))
def test_one_servers_spans_are_each_scripts_own(counters: list[int], random: object) -> None:
    spans, scripts = Spans(), list(pairwise(counters))
    random.shuffle(scripts)  # type: ignore[attr-defined]
    assert all(spans.take(found, left) for found, left in scripts)
    assert spans._taken == [(counters[0], counters[-1])], "joined where they touch"
    assert not any(spans.take(found, left) for found, left in scripts), "each of them once"


@given(COUNTERS, st.data())
def test_another_servers_are_noticed(counters: list[int], data: st.DataObject) -> None:
    spans = Spans()
    for found, left in pairwise(counters):
        assert spans.take(found, left)
    # It began where this one was, and counts on by itself.
    begun = data.draw(st.sampled_from(counters[:-1]))
    assert not spans.take(begun, begun + data.draw(st.integers(1, 20_000)))
    assert spans.take(begun, begun), "who writes nothing hides nothing"


@given(st.lists(st.integers(1, 5), min_size=100, max_size=200))
def test_gaps_by_others_are_kept_in_bounds(gaps: list[int]) -> None:
    spans, at = Spans(), 0
    for gap in gaps:
        assert spans.take(at + gap, at + gap + 1)
        at += gap + 1
    assert len(spans._taken) <= 32
