"""What a controller does just now: each step that it takes is told in words before."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

from ray_route.runtime.waiting import Check, no_check

logger = logging.getLogger(__name__)

Steps = Iterator[str]
"""What is done next, in words, before each step that changes something."""


class StoppedError(Exception):
    """What a controller does by itself gives way to something else."""


class Doing:
    """What one controller does just now; log records of its steps have `facts` as attributes."""

    def __init__(self, service: str, facts: Mapping[str, str]) -> None:
        self._service = service
        self._log = logging.LoggerAdapter(logger, facts)
        self.words = ""
        """Empty while nothing is done."""

    def take(self, steps: Steps, check: Check = no_check) -> None:
        """Take some steps, and `check` before each."""
        for step in steps:
            self.words = step
            self._log.info("service %s: %s", self._service, step)
            check()

    def say(self, words: str) -> None:
        """Note what is done just now, where that is no step."""
        self.words = words
