"""What a pod gives of the states that it keeps, to pods that fetch them.

Runs beside calls and hooks, and waits for nobody: two pods may fetch from each other.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ray import cloudpickle

from ray_route.pod.holdings import Holdings
from ray_route.pod.states import State

EXPORT_GROUP = "ray_route_export"

# States travel together up to so many bytes; a larger one by itself, as bytes that Ray copies once.
_TOGETHER_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Unsent:
    """Why a state is not among those sent; `is_final`: it never will be."""

    reason: str = ""
    is_final: bool = False


LARGE = Unsent("it is to be asked for by itself")
DROPPED = Unsent("it can't be pickled, and the uid moves without it")
LATER = Unsent("it is to be asked for again")


class Exports:
    """Gives states away as bytes; the pod keeps each until it is told that another has it."""

    def __init__(self, held: Holdings, *, drops_unpicklable: bool) -> None:
        self._held = held
        self._drops = drops_unpicklable

    def some(self, uids: Mapping[str, int]) -> bytes:
        """Return, packed, of each uid its state of that epoch, packed, or an `Unsent`.

        Of those that are many bytes together some are put off.
        """
        sent: dict[str, bytes | Unsent] = {}
        left = _TOGETHER_BYTES
        for uid, epoch in uids.items():
            if left <= 0:
                sent[uid] = LATER
                continue
            found = self._packed(uid, epoch)
            if isinstance(found, bytes):
                left -= len(found)
                if len(found) > _TOGETHER_BYTES:
                    found = LARGE
            sent[uid] = found
        return pickle.dumps(sent, pickle.HIGHEST_PROTOCOL)

    def one(self, uid: str, epoch: int) -> bytes:
        """Return one uid's state, packed; empty if it is here no more."""
        found = self._packed(uid, epoch)
        return found if isinstance(found, bytes) else b""

    def _packed(self, uid: str, epoch: int) -> bytes | Unsent:
        with self._exporting(uid, epoch) as state:
            if state is None:
                return Unsent("its pod keeps it no more: the uid was given back, or moved")
            if state.packed is not None:
                return state.packed
            try:
                packed = pack(state.value)
            except Exception as error:  # noqa: BLE001 - the user's own code, or a value of any kind
                if self._drops:
                    return DROPPED
                return Unsent(f"its state can't be pickled: {error!r}", is_final=True)
            if len(packed) > _TOGETHER_BYTES:
                state.packed = packed  # it is asked for once more
            return packed

    @contextmanager
    def _exporting(self, uid: str, epoch: int) -> Iterator[State | None]:
        """Provide a state that nobody changes meanwhile."""
        with self._held.lock:
            entry = self._held.entries.get(uid)
            is_it = entry is not None and entry.epoch == epoch and uid in self._held.kept
            state = entry.state if entry is not None and is_it else None
            if state is not None:
                state.exports += 1
        try:
            yield state
        finally:
            if state is not None:
                with self._held.lock:
                    state.exports -= 1


def export_some(pod: Any, uids: dict[str, int]) -> bytes:
    """Answer a pod that fetches states; see `Exports.some`."""
    exported: bytes = pod._ray_route_agent.gate.exports.some(uids)  # noqa: SLF001 - of our own class
    return exported


def export_one(pod: Any, uid: str, epoch: int) -> bytes:
    """Answer a pod that fetches one large state; see `Exports.one`."""
    exported: bytes = pod._ray_route_agent.gate.exports.one(uid, epoch)  # noqa: SLF001 - as above
    return exported


def pack(value: Any) -> bytes:
    """Pickle a state, letting other threads run meanwhile; raise whatever its pickling raises."""
    sink = _Sink()
    cloudpickle.CloudPickler(sink, pickle.HIGHEST_PROTOCOL).dump(value)
    return b"".join(sink.pieces)


class _Sink:
    """Takes a pickle in pieces, so that other threads get their turn (see `unpack`)."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def write(self, piece: Any) -> int:
        self.pieces.append(bytes(piece))
        return len(piece)
