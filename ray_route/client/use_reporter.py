"""Telling the router which links are looked up, so that they do not run out under their users."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from threading import Lock

Send = Callable[[str, "dict[str, int]"], None]

_UIDS_PER_REPORT = 1_000
# Reports of a fleet that started together do not come together.
_JITTER = 0.3


class UseReporter:
    """Gathers the links that were found to have been used, and tells of all at once.

    `send` tells of one service's uids with their epochs. Pods report what they serve; this is for
    uids that are looked up and never called.
    """

    def __init__(self, period_s: float, send: Send) -> None:
        self._period_s = period_s
        self._send = send
        self._lock = Lock()
        self._used: dict[str, dict[str, int]] = {}

    def period_s(self) -> float:
        """Seconds until the next report, a little different each time."""
        return self._period_s * random.uniform(1 - _JITTER, 1)  # noqa: S311 - no secret

    def note(self, service: str, used: Mapping[str, int]) -> None:
        """Take in links in use, by uid and epoch."""
        if used:
            with self._lock:
                self._used.setdefault(service, {}).update(used)

    def report(self) -> None:
        """Tell of all that was noted since the last report."""
        with self._lock:
            used, self._used = self._used, {}
        for service, epochs in used.items():
            uids = list(epochs)
            for start in range(0, len(uids), _UIDS_PER_REPORT):
                some = uids[start : start + _UIDS_PER_REPORT]
                self._send(service, {uid: epochs[uid] for uid in some})
