"""What a controller is asked for, and says of its service."""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import dataclass, field

from ray_route.controller.recipe import Recipe
from ray_route.errors import RouteError
from ray_route.pod.stopping import Actors
from ray_route.runtime.waiting import Check


@dataclass(frozen=True, slots=True)
class Description:
    """What a controller says: `facts` are the recipe's, `size` those of the number of pods.

    `size` is None until it has begun.
    """

    facts: dict[str, str]
    size: dict[str, str] | None
    ended: bool


@dataclass(slots=True)
class Request:
    """What one caller has asked for, until it is done or given up."""

    made: Actors = field(default_factory=dict)
    given_up: bool = False


def code_of(present: Callable[[], Recipe]) -> str:
    """Return the hash of a class's text, or why it is not known."""
    try:
        return present().facts["code"]
    except RouteError as error:  # its holder is away, which is not all that there is to say
        return f"unknown: {error}"


class StoppedError(Exception):
    """What a controller does by itself gives way to something else."""


def give_way(check: Check, requests: Sized) -> None:
    """Check, and raise `StoppedError` if somebody has asked for something."""
    check()
    if requests:
        raise StoppedError("somebody asks for something else")
