"""What a controller counts and logs of its service, for metrics and for formatters of logs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from ray_route.controller.recipe import Recipe
from ray_route.controller.wishes import Wishes
from ray_route.runtime import telemetry
from ray_route.runtime.metrics import (
    CONTROLLER_STARTS,
    POD_START_FAILURES,
    PODS_MADE_ANEW,
    PODS_WANTED,
    REBALANCED_UIDS,
    SERVICE_PROBLEMS,
    UPGRADES,
    meter,
)


class Figures:
    """Counts what one controller does. Thread-safe."""

    def __init__(self, recipe: Recipe) -> None:
        self._service = recipe.spec.service
        self.facts = {"namespace": recipe.spec.namespace, "service": self._service}
        """What log records have as attributes."""
        self._meter = meter(recipe.spec.namespace)

    def begin(self, wishes: Wishes, problems: Callable[[], int]) -> None:
        """Count a start, and have what is wanted and `problems` asked at each report."""

        def wanted() -> int:
            return wishes.wanted.replicas if wishes.wanted else 0

        for metric, ask in ((PODS_WANTED, wanted), (SERVICE_PROBLEMS, problems)):
            self._meter.gauge(metric, partial(self._labelled, ask), (self._service,))
        self._meter.count(CONTROLLER_STARTS, self._service)
        telemetry.start()

    def _labelled(self, ask: Callable[[], int]) -> list[tuple[tuple[str], int]]:
        return [((self._service,), ask())]

    def made_anew(self, pods: int) -> None:
        """Count pods that Ray did not have any more."""
        self._meter.count(PODS_MADE_ANEW, self._service, by=pods)

    def start_failed(self, pod: int) -> None:
        """Count a pod whose constructor failed."""
        self._meter.count(POD_START_FAILURES, self._service, str(pod))

    def moved(self, uids: int) -> None:
        """Count uids that a rebalancing has moved."""
        self._meter.count(REBALANCED_UIDS, self._service, by=uids)

    def upgrade_ended(self, *, is_undone: bool) -> None:
        """Count an upgrade that ended."""
        self._meter.count(UPGRADES, self._service, "undone" if is_undone else "done")

    def log(
        self, to: logging.Logger, level: int, text: str, *args: object, pod: int | None = None
    ) -> None:
        """Log something; its record says of which namespace, service and pod."""
        extra = self.facts if pod is None else {**self.facts, "pod": pod}
        to.log(level, text, *args, extra=extra, stacklevel=2)
