"""How damaged values are told from good ones, and that there is one.

What reads on past a damaged key says so in the log, and not at every look.
"""

from __future__ import annotations

import logging
import threading

from cachetools import TTLCache

from ray_route.clock import now
from ray_route.errors import DamagedKeyError

logger = logging.getLogger(__name__)

# Epochs, incarnations and counters stay below: what is greater can't be counted up exactly in Lua.
MOST = 2**53
_DIGITS = len(str(MOST))
_SHOWN_BYTES = 40

_AGAIN_S = 300.0
_KEPT = 1_000

_lock = threading.Lock()
_told: TTLCache[tuple[str, str], bool] = TTLCache(_KEPT, _AGAIN_S, timer=now)


def tell(error: DamagedKeyError) -> None:
    """Log a damaged key that was passed over, at most once in five minutes. Thread-safe."""
    with _lock:
        is_known = (error.key, error.reason) in _told
        _told[error.key, error.reason] = True
    if not is_known:
        ids = {"namespace": error.namespace, "service": error.service, "pod": error.pod}
        logger.error("passed over: %s", error, extra=ids)


def is_number(text: bytes) -> bool:
    """True if a text can be an epoch, an incarnation, or a counter."""
    return text.isdigit() and len(text) <= _DIGITS and int(text) <= MOST


def shown(value: bytes) -> str:
    """Write a value that may be anything."""
    return repr(value[:_SHOWN_BYTES].decode(errors="replace"))
