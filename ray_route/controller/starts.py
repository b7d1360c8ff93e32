"""What becomes of pods that a controller has made by itself, and when others are to be tried."""

from __future__ import annotations

import logging
import random
from collections.abc import Collection, Container
from dataclasses import dataclass
from typing import Any

import ray

from ray_route.clock import backoff_s, now
from ray_route.controller.figures import Figures
from ray_route.errors import PodStartError
from ray_route.pod.starting import readiness
from ray_route.pod.stopping import Actors
from ray_route.runtime.unseen import seen

logger = logging.getLogger(__name__)

_MAX_BACKOFF_S = 30.0


@dataclass(slots=True)
class _Failures:
    """How often a pod has failed to start in a row, what it raised, and when it is tried again."""

    count: int = 0
    again_at: float = 0.0
    problem: str = ""


class Starts:
    """The starts of one service's pods: a pod that fails to start is tried again with back-off."""

    def __init__(self, service: str, figures: Figures) -> None:
        self._service = service
        self._figures = figures
        self._failures: dict[int, _Failures] = {}
        self._starting: dict[int, Any] = {}

    @property
    def under_way(self) -> Collection[int]:
        """Pods of which it is not known yet whether they have started."""
        return self._starting.keys()

    def problems(self, indexes: Container[int]) -> dict[int, str]:
        """Return what kept these pods from starting, by index."""
        failures = list(self._failures.items())
        return {pod: failed.problem for pod, failed in failures if pod in indexes}

    def begun(self, made: Actors) -> None:
        """Take in pods that have just been made."""
        for pod, handle in made.items():
            self._starting[pod] = seen(handle._ray_route_ready.remote())  # noqa: SLF001 - our own

    def forget_all_but(self, indexes: Container[int]) -> None:
        """Forget the starts of pods that are not wanted any more: their class may be no more."""
        for pods in (self._failures, self._starting):
            for pod in [pod for pod in pods if pod not in indexes]:
                del pods[pod]

    def hear(self) -> None:
        """Hear of the starts that have ended meanwhile."""
        for pod, answer in list(self._starting.items()):
            if not ray.wait([answer], timeout=0)[0]:
                continue
            del self._starting[pod]
            try:
                readiness(answer, pod, f"pod {pod} of service {self._service!r}")
                self._failures.pop(pod, None)
            except PodStartError as error:
                self._note_failure(pod, error)

    def may_begin(self, pod: int) -> bool:
        """True unless a pod has just failed to start: it is tried again later."""
        failed = self._failures.get(pod)
        return failed is None or failed.again_at <= now()

    def _note_failure(self, pod: int, error: PodStartError) -> None:
        failed = self._failures.setdefault(pod, _Failures())
        pause_s = backoff_s(failed.count, 1.0, _MAX_BACKOFF_S) * random.uniform(0.5, 1.0)  # noqa: S311
        failed.count += 1
        failed.problem, failed.again_at = str(error), now() + pause_s
        self._figures.start_failed(pod)
        told = ("next attempt in %.1f s: %s", pause_s, error)
        self._figures.log(logger, logging.ERROR, *told, pod=pod)
