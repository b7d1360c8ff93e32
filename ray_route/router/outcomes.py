"""What became of links in Redis that a script was run for, one by one."""

from __future__ import annotations

from collections.abc import Mapping

from ray_route.errors import DamagedKeyError, RouteError
from ray_route.model import Link
from ray_route.protocol.commands import Refreshed
from ray_route.router.shards import Outcome

Outcomes = Mapping[str, Outcome | RouteError]

# Redis counts in whole milliseconds.
_ROUNDED_S = 0.001


def known(outcome: Outcome | RouteError) -> Outcome:
    """Return what is known; raise what stood in the way of knowing."""
    if isinstance(outcome, RouteError):
        raise outcome
    return outcome


def linked(outcome: Outcome | RouteError) -> Link | None:
    """Return the link that holds; raise what stood in the way of knowing."""
    return known(outcome).link


def written(outcome: Outcome | RouteError) -> Link | None:
    """Return the link that a script wrote; None where it wrote none, or did not run."""
    return outcome.link if isinstance(outcome, Outcome) and outcome.written else None


def not_held(uids: Mapping[str, int], outcomes: Outcomes) -> dict[str, int]:
    """Return the uids whose link is another, or none; raise what could not be read.

    Of a damaged link nothing is known, and the others must not suffer from it.
    """
    return {uid: epoch for uid, epoch in uids.items() if _holds(outcomes[uid], epoch) is False}


def _holds(outcome: Outcome | RouteError, epoch: int) -> bool | None:
    """Say whether a link is the one of that epoch; None if it is damaged."""
    if isinstance(outcome, DamagedKeyError):
        return None
    link = linked(outcome)
    return link is not None and link.epoch == epoch


def refreshed(uids: Mapping[str, int], outcomes: Outcomes, lease_s: float) -> Refreshed:
    """Say which links are others by now, and which do not live on for a whole lease."""
    ended = not_held(uids, outcomes)
    ending = {uid for uid, outcome in outcomes.items() if _ends(outcome, lease_s - _ROUNDED_S)}
    return Refreshed(ended, ending - ended.keys())


def _ends(outcome: Outcome | RouteError, least_s: float) -> bool:
    """Say whether a link lives on for less than that; one that is damaged nobody lengthens."""
    if isinstance(outcome, DamagedKeyError):
        return outcome.ends
    link = linked(outcome)
    return link is not None and link.lease_s < least_s
