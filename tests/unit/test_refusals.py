"""What a pod says instead of a result is small: Ray keeps what is large apart, as a value."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

from ray_route.errors import PodUnavailableError
from ray_route.pod.leaving import leaving
from ray_route.protocol.calls import Refused

# From there on Ray puts a result into its object store.
STORED_BYTES = 100_000


def test_a_refusal_does_not_grow_with_what_the_users_code_raised() -> None:
    agent: Any = SimpleNamespace(namespace="ns", service="rooms", pod=3)
    error = leaving(agent, "ann", "say", SystemExit("x" * 10_000_000), may_have_run=True)
    sent = pickle.dumps(Refused(error))
    assert len(sent) < STORED_BYTES / 10
    heard = pickle.loads(sent).error
    assert type(heard) is PodUnavailableError
    assert (heard.uid, heard.pod, heard.may_have_run) == ("ann", 3, True)
    assert "SystemExit('xxx" in str(heard)
