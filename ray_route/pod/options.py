"""How a service's pods serve, as `deploy` was told."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray_route.errors import InvalidInputError
from ray_route.model import check_duration
from ray_route.pod.instances import StateStore

# Calls that a pod with turns can have: each waits as a coroutine, and threads are counted apart.
_SLOTS = 10_000
_UNPICKLABLE = ("keep", "drop")


@dataclass(frozen=True, slots=True)
class PodOptions:
    """Options of `deploy`; see there."""

    cpu_factor: float
    grace_s: float
    exit_when_fenced: bool
    release_s: float | None
    on_unpicklable: str
    per_uid: bool
    turns: bool
    idle_s: float | None
    threads: int
    """With turns, so many calls run at a time, where not on the event loop."""
    save_every_s: float

    @property
    def has_turns(self) -> bool:
        """True if each uid's calls run one at a time."""
        return self.turns or self.per_uid

    def for_ray(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return a pod's actor options as Ray is to have them."""
        return {**options, "max_concurrency": _SLOTS} if self.has_turns else dict(options)

    def check(
        self,
        cls: type,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        store: StateStore | None,
    ) -> None:
        """Raise `InvalidInputError` for options that can't be, or a class that can't serve so."""
        if self.on_unpicklable not in _UNPICKLABLE:
            raise _invalid("on_unpicklable", self.on_unpicklable, "must be 'keep' or 'drop'")
        if self.idle_s is not None:
            check_duration("idle_s", self.idle_s)
        if self.has_turns and (not isinstance(self.threads, int) or self.threads < 1):
            reason = "must be an integer of at least 1"
            raise _invalid("ray_actor_options['max_concurrency']", self.threads, reason)
        check_duration("save_every_s", self.save_every_s)
        if store is not None and not self.per_uid:
            raise _invalid("store", store, "is for per_uid=True alone")
        if self.per_uid:
            _check_made_for_uids(cls, args, kwargs)


def _check_made_for_uids(cls: type, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    if hasattr(cls, "on_acquire"):
        raise no_class(cls, "has on_acquire: with per_uid, put into __init__ what it does")
    try:
        inspect.signature(cls).bind("uid", *args, **kwargs)
    except TypeError as error:
        raise no_class(cls, f"can't be made for a uid, cls(uid, ...): {error}") from error
    except ValueError:  # it has no signature, as some of C have none
        return


def no_class(cls: object, reason: str) -> InvalidInputError:
    """Make the error of a class that can't be deployed."""
    return _invalid("cls", cls, reason)


def _invalid(argument: str, value: object, reason: str) -> InvalidInputError:
    return InvalidInputError(argument=argument, value=value, reason=reason)
