"""What it means for a call that its pod refused it, or ended with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray

from ray_route.client.session import Session
from ray_route.errors import (
    FencedError,
    PodUnavailableError,
    RayGoneError,
    RouteError,
    RouteTimeoutError,
)
from ray_route.model import Link
from ray_route.protocol.calls import Refused
from ray_route.runtime.metrics import CALL_REPEATS
from ray_route.runtime.waiting import LifeEndedError

GONE = (ray.exceptions.RayActorError, LifeEndedError)
"""What comes instead of an answer from a pod that has ended."""

UNDECIDED = (RouteTimeoutError, RayGoneError)
"""What may come while a call is on its way, and says by itself nothing of it."""


def follow(
    session: Session, uid: str, service: str, link: Link, refused: Refused, *, idempotent: bool
) -> int:
    """Return the epoch to ask for after a refusal; raise it if it can't be followed."""
    refusal = refused.error
    if not isinstance(refusal, FencedError) or (refusal.may_have_run and not idempotent):
        raise refusal
    session.near.drop(service, uid, link.epoch)
    session.meter.count(CALL_REPEATS, service, "fenced")
    return link.epoch + 1


def may_have_run(refused: Refused) -> bool:
    """Return True if a call may have run before it was refused."""
    return bool(getattr(refused.error, "may_have_run", False))


def amended(error: RouteError, *, ran_before: bool) -> RouteError:
    """Return an error of a call's last attempt, such that it speaks of the earlier ones, too."""
    if ran_before and getattr(error, "may_have_run", None) is False:
        return error.about(may_have_run=True)
    return error


def unavailable(ids: Mapping[str, Any], error: Exception) -> PodUnavailableError:
    """Make the error of a call, of these ids, whose pod ended with it."""
    first_line = str(error).partition("\n")[0]
    return PodUnavailableError(
        reason=f"{type(error).__name__}: {first_line}", may_have_run=True, **ids
    )


def judged(error: Exception, ids: Mapping[str, Any], *, may_have_run: bool) -> Exception:
    """Return an error that ended a call's way; one that is undecided says whether it may have run.

    And of which call it is, by its ids.
    """
    if not isinstance(error, UNDECIDED):
        return error
    facts = error._facts  # noqa: SLF001 - what it is made of
    made = type(error)(**{**facts, **ids, "may_have_run": may_have_run})
    made.__cause__ = error
    return made
