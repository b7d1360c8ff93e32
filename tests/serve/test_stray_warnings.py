"""What is told of requests that are not where their session lives."""

from __future__ import annotations

import pytest
from helpers import unique_name

from ray_route.runtime.metrics import SERVE_STRAYS, meter
from ray_route.serve.strays import Cause, Strays


def test_each_cause_is_told_once_with_an_example_and_what_to_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    namespace = unique_name()
    strays = Strays(namespace, "app.Chat", "replica 1")
    for number in range(3):
        strays.note(Cause.BYPASSED, "served", f"ann {number}", "replica 2")
        strays.note(Cause.MOVED, "refused", f"bob {number}", "replica 2")
        strays.note(Cause.SPILLED, "served", f"eve {number}", "replica 2")
    assert len(caplog.records) == 2
    bypassed, moved = (record.getMessage() for record in caplog.records)
    for part in ("ann 0", "replica 1", "app.Chat", "replica 2", "RAY_SERVE_ENABLE_HA_PROXY"):
        assert part in bypassed
    assert "bob 0" in moved
    assert "refused" in moved
    counted = meter(namespace).counts
    labels = ("app.Chat", "bypassed", "served")
    assert counted[SERVE_STRAYS.name, labels] == 3, "counted without the session"
    assert counted[SERVE_STRAYS.name, ("app.Chat", "spilled", "served")] == 3


def test_bodies_over_the_limit_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    namespace = unique_name()
    strays = Strays(namespace, "app.Chat", "replica 1")
    strays.overlooked(1_000)
    strays.overlooked(1_000)
    assert len(caplog.records) == 1
    assert "body_limit_bytes" in caplog.text
    assert meter(namespace).counts[SERVE_STRAYS.name, ("app.Chat", "overlooked", "served")] == 2
