"""Moves of a service without Ray: of one uid, one at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ray_route.clock import Deadline


class MoveTurns:
    """Whose turn it is to move a uid."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: dict[str, threading.Lock] = {}

    @contextmanager
    def turn(self, uid: str, deadline: Deadline) -> Iterator[None]:
        """Let nobody else move the uid meanwhile."""
        with self._lock:
            turn = self._of.setdefault(uid, threading.Lock())
        if not turn.acquire(timeout=deadline.remaining()):
            raise deadline.passed(f"other moves of uid {uid!r}")
        try:
            yield
        finally:
            turn.release()
