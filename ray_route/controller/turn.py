"""Whose turn it is to change a service: a caller's, or that of what its controller does by itself.

Whoever waits does so no longer than his deadline, and is told then what was done instead.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from ray_route.clock import Deadline
from ray_route.controller.doing import Doing
from ray_route.controller.upgrading import Upgrading
from ray_route.runtime.waiting import Pause, late
from ray_route.store.wanted import Wanted

_AGAIN_S = 0.2


class Turn:
    """The turn at one service. Thread-safe; `lock` is held by whoever has it."""

    def __init__(self, service: str, doing: Doing, upgrading: Upgrading) -> None:
        self._service = service
        self._doing = doing
        self._upgrading = upgrading
        self.lock = threading.Lock()

    @contextlib.contextmanager
    def taken(self, deadline: Deadline) -> Iterator[None]:
        """Hold the turn; raise `RouteTimeoutError` if it does not come in time."""
        if not self.lock.acquire(timeout=deadline.remaining()):
            raise late(self._in_the_way(), deadline)
        try:
            yield
        finally:
            self._doing.say("")
            self.lock.release()

    @contextlib.contextmanager
    def taken_after_upgrades(
        self, deadline: Deadline, wanted: Callable[[], Wanted]
    ) -> Iterator[Wanted]:
        """Hold the turn once no upgrade is under way, forth or back; provide what is `wanted`."""
        while True:
            with self.taken(deadline):
                found = wanted()
                if found.upgrade is None:
                    yield found
                    return
            Pause(_AGAIN_S, self._in_the_way()).wait(deadline)

    def _in_the_way(self) -> str:
        """Say what is done now."""
        what = self._upgrading.told() or f"the turn at service {self._service!r}"
        doing = self._doing.words
        return f"{what} ({doing})" if doing else what
