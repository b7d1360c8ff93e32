"""Why links are as they are: what the router has decided lately."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping

from ray_route.model import Link

_KEPT = 20_000


class Decisions:
    """The router's last decisions about links, for whoever asks why a uid is where it is."""

    def __init__(self) -> None:
        self._noted: deque[tuple[float, str, str, str, int]] = deque(maxlen=_KEPT)

    def note(self, service: str, links: Mapping[str, Link], decision: str) -> None:
        """Note what has been decided about uids, and the pods of their links."""
        at = time.time()
        self._noted.extend((at, service, uid, decision, link.pod) for uid, link in links.items())

    def about(self, service: str, uid: str) -> tuple[str, ...]:
        """Return what was decided about a uid, oldest first, with the router's local time."""
        return tuple(
            f"{time.strftime('%H:%M:%S', time.localtime(at))} {decision} pod {pod}"
            for at, of_service, of_uid, decision, pod in self._noted
            if of_uid == uid and of_service == service
        )
