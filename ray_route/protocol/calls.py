"""What a client and a pod say to each other in a fenced call: its header, and a refusal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ray_route.errors import RouteError

Header = tuple[str, int, int, str]
"""uid, epoch, incarnation, method."""

BatchedCall = tuple[Header, tuple[Any, ...], dict[str, Any]]
"""One of the calls that travel together: header, arguments, keywords."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A pod's answer instead of a result. A value, so that user code's errors stay apart."""

    error: RouteError


@dataclass(frozen=True, slots=True)
class Raised:
    """An error of the user's code within a batch of calls."""

    error: BaseException
