"""Which nodes Ray is about to take away: the one place that asks for it."""

from __future__ import annotations

import time

from ray._private import state

_NO_DEADLINE_S = 30.0


def draining_nodes() -> dict[str, float]:
    """Return the ids of nodes that are being drained, each with the seconds that it has left.

    Ray has no public way to ask. It counts their deadlines by the time of day, and may give none.
    """
    at_ms = time.time() * 1000
    nodes = state.state.get_draining_nodes()
    return {
        node: max(0.0, (due_ms - at_ms) / 1000) if due_ms else _NO_DEADLINE_S
        for node, due_ms in nodes.items()
    }
