"""What a pod knows of one uid."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from ray_route.pod.call_time import CallTime
from ray_route.pod.states import State
from ray_route.protocol.commands import Fate


class Phase(Enum):
    """Where a uid stands; one that is absent has none."""

    ACQUIRING = "acquiring"
    HELD = "held"
    ENDING = "ending"
    GIVEN = "given"
    ARRIVED = "arrived"


UNHELD = (Phase.GIVEN, Phase.ARRIVED)
"""Nothing runs for it, and nothing has been acquired."""


@dataclass(slots=True)
class Wish:
    """A release that is asked for: by which router, until when, and whether calls are refused."""

    router: int
    epoch: int
    until: float
    closes: bool
    term: int
    void: bool = False
    """It was taken back, or its router superseded, after the hook had been taken out to be run."""


NO_WISHES: Mapping[int, Wish] = {}
"""Those of most uids: one table for all."""


@dataclass(slots=True)
class Entry:
    """What is known of one uid.

    A pod has 100,000 and more: what most have not they share.
    """

    uid: str
    """The one string that is kept of it: each call brings another."""
    epoch: int
    phase: Phase
    term: int
    until: float = -math.inf
    """The end of the pod's own lease on the uid."""
    used_at: float = 0.0
    persistent: bool = False
    calls: list[object] | None = None
    """Those that run; a list, not a number: what is interrupted while it counts can be mended."""
    lost: bool = False
    """Redis does not name this pod: nothing is saved, `on_lost` runs when its calls have ended."""
    begun: bool = False
    """Its hook runs: from here on nothing stops it."""
    removes: Fate = Fate.STAYS
    """What is to become of its link: the pod itself gives it up, or is asked to."""
    given_at: float = math.inf
    wishes: Mapping[int, Wish] = field(default_factory=lambda: NO_WISHES)
    """By the numbers of who asks; replaced, never changed (see `AskedReleases`)."""
    state: State | None = None
    """What its owner under the next epoch is to have of it; none while it is held."""
    load: float | None = None
    """What the pod's code says of its load, in units of one uid."""
    call_time: CallTime = field(default_factory=CallTime)
    tried: bool = False
    """It has arrived, and `on_acquire` has failed: it waits for its next call."""

    @property
    def running(self) -> int:
        """How many calls run."""
        return len(self.calls or ())

    @property
    def has_own_state(self) -> bool:
        """True if this pod keeps its state for others, or for itself."""
        return self.state is not None and not self.state.arrived

    @property
    def may_stay(self) -> bool:
        """True if its uid may be given back, with its state, though it is given up."""
        return self.removes in (Fate.STAYS, Fate.MAY_GO)

    @property
    def refuses_calls(self) -> bool:
        """True while it is asked to be given up as soon as its calls have ended."""
        return any(wish.closes for wish in self.wishes.values())

    @property
    def is_wanted(self) -> bool:
        """True while somebody has it given up for another pod, or to remove its link."""
        return any(not wish.void for wish in self.wishes.values())

    def is_idle(self, at: float, idle_s: float) -> bool:
        """True if nobody has used it for so long that the pod gives it up by itself."""
        return not (self.persistent or self.running) and at >= self.used_at + idle_s
