"""What agents log: their records have one name, which their users filter by, and say whose."""

from __future__ import annotations

import logging

logger = logging.getLogger("ray_route.pod.agent")


def logger_of(
    namespace: str, service: str, pod: int | None
) -> logging.LoggerAdapter[logging.Logger]:
    """Return a logger whose records say which pod they are about."""
    ids = {"namespace": namespace, "service": service, "pod": pod}
    return logging.LoggerAdapter(logger, ids)
