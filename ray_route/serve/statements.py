"""Where a session lives, and what a request says of that.

A router states the home that it has chosen on the request's metadata, which Serve pickles for the
replica: nobody outside can set it.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, NamedTuple

from ray_route.model import Link

_ATTRIBUTE = "ray_route_home"


class Home(NamedTuple):
    """Where a session lives: its link, and the name of that pod's Ray actor."""

    link: Link
    actor: str


class Way(str, Enum):
    """How a request came to a replica."""

    HOME = "home"
    SPILLED = "spilled"
    """Its home had no room, and the deployment's option `when_full` lets it go elsewhere."""
    FORWARDED = "forwarded"
    """Another replica has passed it on; it is never passed on again."""


class Statement(NamedTuple):
    """The home of a request's session, and its way to where it is."""

    home: Home
    way: Way


def state(metadata: Any, home: Home, way: Way) -> None:
    """Have a request say where its session lives."""
    # Plain values: a replica whose process lacks this package still reads its requests.
    link = home.link
    said = (home.actor, link.pod, link.incarnation, link.epoch, way.value)
    setattr(metadata, _ATTRIBUTE, said)


def stated(metadata: Any) -> Statement | None:
    """Return what a request says; None if it came by no router of ours."""
    said = getattr(metadata, _ATTRIBUTE, None)
    if said is None:
        return None
    actor, pod, incarnation, epoch, way = said
    link = Link(pod, incarnation, epoch, persistent=False, lease_s=0.0)
    return Statement(Home(link, actor), Way(way))
