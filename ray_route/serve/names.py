"""What Serve's names are called in the directory."""

from __future__ import annotations

import hashlib
import re

from ray_route.errors import InvalidInputError
from ray_route.model import MAX_NAME, check_uid

_PLAIN = re.compile(r"[A-Za-z0-9_-]+")
_ODD = re.compile(r"[^A-Za-z0-9_.-]")
_DIGEST = 8


def service_name(app: str, deployment: str) -> str:
    """Return the service of a deployment: "app.deployment", if that is a name and no other's.

    Else its odd characters are replaced, and a digest makes it differ from all others.
    """
    plain = f"{app}.{deployment}"
    if _PLAIN.fullmatch(app) and _PLAIN.fullmatch(deployment) and len(plain) <= MAX_NAME:
        return plain
    cleaned = _ODD.sub("-", plain)[: MAX_NAME - _DIGEST - 1]
    return f"{cleaned}-{_digest(repr((app, deployment)))[:_DIGEST]}"


def session_uid(session_id: str) -> str:
    """Return the uid of a session: its id, or a digest of one that can't be a uid."""
    try:
        return check_uid(session_id)
    except InvalidInputError:
        return f"sha256-{_digest(session_id)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
