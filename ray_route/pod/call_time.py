"""How much of its time a uid has spent in calls lately."""

from __future__ import annotations

import math
from dataclasses import dataclass

_HALF_LIFE_S = 60.0
# What is halved every minute amounts to that of so many seconds.
_WINDOW_S = _HALF_LIFE_S / math.log(2)


@dataclass(slots=True)
class CallTime:
    """The time in which at least one call ran: that of a minute ago counts half.

    `at` is when it was last looked at; a call may have run since.
    """

    seconds: float = 0.0
    at: float = -math.inf

    def begin(self, at: float) -> None:
        """Take in that the first of some calls begins."""
        self._fade(at)

    def end(self, at: float) -> None:
        """Take in that the last of them ends."""
        began = self.at
        self._fade(at)
        self.seconds += at - began

    def share(self, at: float, *, running: bool) -> float:
        """Return which share of its time the uid has spent in calls lately, 0 to about 1."""
        passed = at - self.at
        faded = self.seconds * 0.5 ** (passed / _HALF_LIFE_S) if self.seconds else 0.0
        return (faded + (min(passed, _WINDOW_S) if running else 0.0)) / _WINDOW_S

    def _fade(self, at: float) -> None:
        if self.seconds:
            self.seconds *= 0.5 ** ((at - self.at) / _HALF_LIFE_S)
        self.at = at
