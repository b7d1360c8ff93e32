"""What a namespace runs with. Fixed by the first client; later ones must not contradict it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ray_route.errors import ConfigError
from ray_route.placement import Strategy, strategy_named

_DURABLE = ("ttl_s", "margin_s", "shards", "heartbeat_s", "pod_lease_s", "staleness_s")


@dataclass(frozen=True, slots=True)
class RouteConfig:
    """Options of a namespace; durations in seconds.

    Raises `ConfigError` at construction, naming the option.
    """

    ttl_s: float = 300.0
    """Life of a temporary link that nobody uses; longer than any lease by `margin_s`.

    A pod gives up a uid that nobody has called for two thirds of it, or for `deploy`'s `idle_s`.

    Below `pod_lease_s`, links of a pod that is silent may end before it can be declared gone: then
    an outage that is shorter than its lease moves users, too.
    """
    margin_s: float = 60.0
    """How long before its end in Redis every cached copy of a link has run out."""
    shards: int = 256
    """Hash-tag buckets of uids; fixed for ever at a namespace's first use."""
    heartbeat_s: float = 1.0
    """How often a pod renews, the router reads the pod tables, and the change stream grows."""
    pod_lease_s: float = 10.0
    """How long a silent pod keeps its users."""
    fast_failover: bool = False
    """Believe Ray when it says that an actor died, before its process is known to have ended.

    Users of a pod that Ray lost sight of move at once, and for up to `pod_lease_s` the old pod
    may still serve callers that reach it.
    """
    restart_grace_s: float = 0.0
    """How long users of a pod whose process ended wait for its restart before they move."""
    staleness_s: float = 10.0
    """How long near caches serve hits without having heard from the change stream."""
    placement: str | Strategy = "least_loaded"
    """`least_loaded`, `round_robin`, `prefer_node`, `together` (uids like `group/rest` of one group
    on one pod), or a callable (see `ray_route.placement`)."""
    load_tolerance: float = 0.0
    """Pods whose load is within this of the least loaded one take turns."""
    ramp_s: float = 30.0
    """For so long a pod that joins late gets twice an equal share of new uids at most (0: any)."""
    router_cache_size: int = 1_000_000
    """Links that the router keeps in memory (some 340 bytes each)."""
    near_cache_size: int = 100_000
    """Links that each client process keeps in memory."""

    def __post_init__(self) -> None:
        for option in ("ttl_s", "margin_s", "heartbeat_s", "pod_lease_s", "staleness_s"):
            if not 0.001 <= getattr(self, option) < math.inf:
                raise ConfigError(
                    option=option, reason="must be a finite number of seconds, at least 0.001"
                )
        for option in ("shards", "router_cache_size", "near_cache_size"):
            if not getattr(self, option) >= 1:
                raise ConfigError(option=option, reason="must be at least 1")
        if self.margin_s >= self.ttl_s:
            raise ConfigError(
                option="margin_s", reason="must be less than ttl_s, or no lease would be left"
            )
        if self.heartbeat_s * 3 > self.pod_lease_s:
            raise ConfigError(option="heartbeat_s", reason="must be at most a third of pod_lease_s")
        if self.heartbeat_s * 3 > self.staleness_s:
            raise ConfigError(
                option="staleness_s", reason="must be at least three times heartbeat_s"
            )
        for option in ("load_tolerance", "ramp_s", "restart_grace_s"):
            if not 0 <= getattr(self, option) < math.inf:
                raise ConfigError(option=option, reason="must be finite and not negative")
        self.strategy()

    @property
    def lease_s(self) -> float:
        """The longest lease of any link: of a persistent one, or of a fresh temporary one."""
        return self.ttl_s - self.margin_s

    def strategy(self) -> Strategy:
        """Make the placement strategy, with its own turn counter."""
        if callable(self.placement):
            return self.placement
        return strategy_named(self.placement, self.load_tolerance)

    def durable(self) -> dict[str, Any]:
        """Return the options that leases rest on: every process of a namespace needs the same."""
        return {name: getattr(self, name) for name in _DURABLE}

    def differing(self, options: dict[str, Any]) -> list[str]:
        """Name the given options whose values are not the ones in force."""
        return [name for name, value in options.items() if not _same(getattr(self, name), value)]

    @classmethod
    def of(cls, options: dict[str, Any]) -> RouteConfig:
        """Make a configuration from keyword options; an unknown one is a `ConfigError`."""
        known = cls.__dataclass_fields__
        for name, value in options.items():
            if name not in known:
                raise ConfigError(option=name, reason=f"is unknown; known are {sorted(known)}")
            default = known[name].default
            if isinstance(default, bool):
                if not isinstance(value, bool):
                    raise ConfigError(option=name, reason=f"must be True or False, not {value!r}")
                continue
            if isinstance(default, (int, float)) and (
                isinstance(value, bool) or not isinstance(value, (int, float))
            ):
                raise ConfigError(option=name, reason=f"must be a number, not {value!r}")
            if isinstance(default, int) and not isinstance(value, int):
                raise ConfigError(option=name, reason=f"must be an integer, not {value!r}")
        return cls(**options)


def _same(held: Any, given: Any) -> bool:
    # A callable that crossed a process border is another object: any two count as the same.
    return held == given or (callable(held) and callable(given))
