"""One attempt at a time, in the background, for all who ask; with pauses after failures."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from ray_route.clock import backoff_s, now
from ray_route.runtime.futures import Outcome
from ray_route.store.circuit import PROBE_S

# A process' records of belief have one name, which its users filter by.
logger = logging.getLogger("ray_route.runtime.belief")

# A failover sends every process of a namespace to its router at once.
_JITTER_S = 0.1
_MAX_BACKOFF_S = 1.0


class Renewals:
    """Attempts at `renew`, which blocks, and raises what prevents it. Thread-safe."""

    def __init__(self, renew: Callable[[], None]) -> None:
        self._renew = renew
        self._lock = threading.Lock()
        self._failures = 0
        self._failed_at = 0.0
        self._is_first = True
        self._latest: Future[None] | None = None

    def begun_or_told(self) -> Future[None]:
        """Return the attempt under way, or a new one; shortly after a failure, that failure."""
        with self._lock:
            if self._latest is None or self._is_to_be_tried_again(self._latest):
                self._latest = self._begun()
            return self._latest

    def _is_to_be_tried_again(self, latest: Future[None]) -> bool:
        if not latest.done():
            return False
        return not self._failures or now() >= self._failed_at + PROBE_S

    def _begun(self) -> Future[None]:
        attempt: Outcome[None] = Outcome()
        attempt.set_running_or_notify_cancel()  # nobody who waits for it can cancel it
        name = "ray_route-belief"
        thread = threading.Thread(target=self._try, args=(attempt,), name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the system has no more threads for us, now
            self._fail(attempt, error)
        return attempt

    def _try(self, attempt: Future[None]) -> None:
        try:
            time.sleep(self._pause_s())
            self._renew()
        except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it
            self._fail(attempt, error)
        else:
            self._failures = 0
            attempt.set_result(None)

    def _fail(self, attempt: Future[None], error: BaseException) -> None:
        self._failures += 1
        self._failed_at = now()
        logger.debug("no server can be vouched for: %s", error)
        attempt.set_exception(error)

    def _pause_s(self) -> float:
        if self._is_first:
            self._is_first = False
            return 0.0
        most_s = backoff_s(self._failures, _JITTER_S, _MAX_BACKOFF_S)
        return random.uniform(0, most_s)  # noqa: S311 - no secret
