"""States of uids on their way from one pod to the next.

A uid's state is what its pod has of it when nobody may call it: as `on_release` returned it, or as
it arrived from another pod. It is used by the one link that replaced exactly the epoch under which
it was given up, and by no other.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Prepare = Callable[[str, Any], Any]
"""Makes of a uid and its state, as it was given up, what `on_acquire` gets."""

Bytes = bytes | memoryview
"""A pickle: in this process' own memory, or, of a large one, in Ray's."""

_NOTHING = object()


@dataclass(slots=True)
class State:
    """What is kept of one uid; `packed` is how it came here, None of one that was given up here.

    One that was given up here goes back to its uid as it is, or on to others as it is `written`.
    """

    value: Any = None
    packed: Bytes | None = None
    written: Any = None
    """Its bytes, or why there are none, as long as they are not sent."""
    prepared: Any = _NOTHING
    arrived: bool = False
    """Another pod has given it up, and the uid is not this pod's."""
    exports: int = 0
    """How many are just pickling it: until they have ended nobody may change it."""

    def take(self, uid: str, prepare: Prepare) -> Any:
        """Return what `on_acquire` gets; each time anew, since one that failed may have used it."""
        prepared, self.prepared = self.prepared, _NOTHING
        if prepared is not _NOTHING:
            return prepared
        value = self.value if self.packed is None else unpack(self.packed)
        return prepare(uid, value)


def arrival(uid: str, packed: Bytes, prepare: Prepare) -> State:
    """Make the state of a uid that has come from another pod; raise what its own code raises."""
    return State(packed=packed, prepared=prepare(uid, unpack(packed)), arrived=True)


def unpack(packed: Bytes) -> Any:
    """Read a state back, letting other threads run meanwhile."""
    return pickle.Unpickler(_Source(packed)).load()  # noqa: S301 - a pod of the same service sent it


class _Source:
    """Gives a pickle in pieces: each is a call in Python, at which other threads get their turn.

    To read one at once keeps the interpreter lock to its end, and a pod that can't renew its lease
    meanwhile is fenced.
    """

    def __init__(self, packed: Bytes) -> None:
        self._packed = memoryview(packed).cast("B")
        self._at = 0

    def read(self, size: int = -1) -> bytes:
        end = len(self._packed) if size < 0 else self._at + size
        piece = bytes(self._packed[self._at : end])
        self._at += len(piece)
        return piece

    def readinto(self, buffer: Any) -> int:
        piece = self._packed[self._at : self._at + len(buffer)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def readline(self) -> bytes:
        end = self._at
        while end < len(self._packed) and self._packed[end] != ord("\n"):
            end += 1
        return self.read(end + 1 - self._at)
