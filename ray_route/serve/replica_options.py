"""What a replica does with requests: options of `StickyRequestRouter` that reach its process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ray_route.errors import ConfigError
from ray_route.serve.session_ids import SessionIds

ON_STRAY = ("serve", "refuse", "forward")
PATIENCE_S = 30.0
BODY_LIMIT = 1 << 20


@dataclass(frozen=True)
class ReplicaOptions:
    """See `StickyRequestRouter`. Raises `ConfigError` for what can't work."""

    on_stray: str = "serve"
    session_id_from: Sequence[str] = ()
    body_limit_bytes: int = BODY_LIMIT
    patience_s: float = PATIENCE_S
    config: dict[str, Any] = field(default_factory=dict)
    """Options of `RouteConfig`."""

    def __post_init__(self) -> None:
        if self.on_stray not in ON_STRAY:
            reason = f"must be one of {', '.join(map(repr, ON_STRAY))}, not {self.on_stray!r}"
            raise ConfigError(option="on_stray", reason=reason)
        _check_positive("patience_s", self.patience_s, "a positive number of seconds")
        _check_positive("body_limit_bytes", self.body_limit_bytes, "a positive number of bytes")
        if self.ids.read_bodies and self.on_stray != "forward":
            reason = "the body is read by replicas alone, so json:… needs on_stray='forward'"
            raise ConfigError(option="session_id_from", reason=reason)

    @classmethod
    def of(cls, options: dict[str, Any]) -> ReplicaOptions:
        """Take what belongs here out of `options`; the rest is of `RouteConfig`."""
        ours = {one.name for one in fields(cls)} - {"config"}
        config = {name: value for name, value in options.items() if name not in ours}
        return cls(**{name: options[name] for name in options.keys() & ours}, config=config)

    @property
    def ids(self) -> SessionIds:
        """Where session ids are found; made anew at each call."""
        return SessionIds(self.session_id_from)


def _check_positive(option: str, value: object, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ConfigError(option=option, reason=f"must be {what}")
