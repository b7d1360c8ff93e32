"""Joining a service in the background, however long that takes."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable

import ray

from ray_route.errors import PodUnavailableError, RouteError

# An agent's records have one name, which its users filter by.
logger = logging.getLogger("ray_route.pod.agent")

_BACKOFF_S = 0.2
# Short enough to serve within seconds of the return of a store, and for a store that comes back
# to a thousand pods no more than some hundred attempts a second.
_MAX_BACKOFF_S = 3.0


class Joiner:
    """Calls `join` in a thread of its own until it succeeds.

    What a pod waits for when it starts (a store that is away, a router that is being made, the
    lease of another) may take any time, and Ray makes a pod whose constructor failed never again.
    """

    def __init__(self, join: Callable[[], None], name: str) -> None:
        self.problem: RouteError | None = None
        self._join = join
        self._name = name
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ray_route-join", daemon=True)

    def begin(self) -> None:
        """Begin to join; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """Begin no further attempt."""
        self._stopping.set()

    def wait(self, within_s: float) -> None:
        """Wait until the attempt under way has ended, for so many seconds at most."""
        if self._thread.is_alive():
            self._thread.join(within_s)

    def _run(self) -> None:
        backoff_s = _BACKOFF_S
        while not self._stopping.is_set():
            try:
                self._join()
            except Exception as error:  # whatever it is may pass
                self.problem = _as_ours(error)
                logger.warning(
                    "%s can't join its service yet: %s",
                    *(self._name, self.problem),
                    exc_info=not isinstance(error, RouteError | ray.exceptions.RayError),
                )
                # Jitter: a store comes back to all of its pods at once.
                self._stopping.wait(backoff_s * random.uniform(0.5, 1.0))  # noqa: S311
                backoff_s = min(2 * backoff_s, _MAX_BACKOFF_S)
            else:
                self.problem = None
                return


def _as_ours(error: Exception) -> RouteError:
    """Return an error that can travel to whoever asks for it."""
    if isinstance(error, RouteError):
        return error
    return PodUnavailableError(reason=f"{type(error).__name__}: {error}", may_have_run=False)
