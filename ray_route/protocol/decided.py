"""What a router has decided about links, as it tells whoever looks on."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Decision:
    """What a router has decided about a uid, and when, by its own clock in seconds.

    `what` is placed, relinked (its pod had died), moved (its pod gave it up), set, set if absent,
    given back, brought back or removed, the last perhaps "in 5 s". `source` is the pod that had
    the uid before.
    """

    at: float
    service: str
    uid: str
    what: str
    pod: int
    source: int | None = None

    def __str__(self) -> str:
        when = time.strftime("%H:%M:%S", time.localtime(self.at))
        if self.source is None:
            return f"{when} {self.what}: pod {self.pod}"
        to = f": pod {self.pod}" * (self.source != self.pod)
        return f"{when} {self.what} from pod {self.source}{to}"


@dataclass(frozen=True, slots=True)
class Decided:
    """Decisions of one router (an incarnation), which has made `count` of them in all."""

    router: int
    count: int
    decisions: list[Decision]
